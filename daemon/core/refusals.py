"""The refusals: why a request ends without a result, and when its client should retry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Problem(StrEnum):
    """Why a request ends without a result, by the NAME of its problem type. The HTTP status is the front's affair."""

    THROTTLED = "throttled"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    WORKER_DIED = "worker-died"
    POISON_REQUEST = "poison-request"


@dataclass(slots=True, eq=False)
class Comeback:
    """What one was told who was turned away."""

    pool: str
    client: str
    at: float
    """When it may come back."""
    work: float
    """Pool seconds that its request means."""
    rank: int
    second: int = 0
    """Of the clock, in which there is a place for it; 0: none."""
    turn: int = 0
    """The tick until which it counts as outside."""

    def is_early(self, now: float) -> bool:
        """Whether it is back before its time."""
        return now < self.at

    def left(self, now: float) -> float:
        """Whole seconds until its time, at least one."""
        return float(max(1, math.ceil(self.at - now - 1e-6)))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not accepted, or an accepted one that ends without a result."""

    problem: Problem
    detail: str
    retry_after: float = 1.0
    """Seconds after which another try is worth it; used only where the problem is temporary."""
    reason: str = ""
    """Which rule refused it, in a word, for counting; empty where the problem says it all."""
    comeback: Comeback | None = None
    """What it was told, if it was told to come back: to be shown with its next request."""
    worker: str = ""
    """The worker that had the call; empty where none had."""
