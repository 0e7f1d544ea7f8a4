"""Whether a worker has served long enough, or grown large enough, to be replaced by a fresh one.

Workers that were started together and share the load evenly would all reach their limit together. So a worker's number
of calls is up to a tenth below ``max_requests``, by its place in the pool: the first has all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SPREAD: Final = 0.1

SETTLING: Final = 5.0
"""Seconds of a worker's life in which its size is not checked: a limit that is below what every worker needs at its
start is answered by replacing them again and again, and this bounds how fast.
"""

RETRY: Final = 10.0
"""Seconds until a worker is replaced after all whose replacement did not come up."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one pool; 0: none."""

    max_requests: int
    max_rss: int

    def requests(self, index: int, workers: int) -> int:
        """The calls after which the worker of this index in a pool of so many is replaced."""
        return self.max_requests - int(self.max_requests * SPREAD * (index % workers) / workers)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a worker has done and uses."""

    index: int
    answered: int
    age: float
    """Seconds since it was ready."""
    rss: int | None
    """Resident bytes; None: not measured yet."""
    tried: float
    """Seconds since its replacement was last started; infinite if never."""


def exceeded(limits: Limits, workers: int, usage: Usage) -> str:
    """The setting that a worker is over, ``max_requests`` or ``max_rss``; empty if none, or if it is too soon."""
    if usage.tried < RETRY:
        return ""
    if limits.max_requests and usage.answered >= limits.requests(usage.index, workers):
        return "max_requests"
    if limits.max_rss and usage.rss is not None and usage.rss > limits.max_rss and usage.age >= SETTLING:
        return "max_rss"
    return ""
