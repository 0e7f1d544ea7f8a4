"""What the simulator simulates: requests of a trace, crowds and their members, calls, and the machine."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from penstock.daemon.core.model import Agent, Request
from penstock.daemon.core.refusals import Comeback


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of a trace. ``cpu`` and ``waiting``: seconds that it really takes, which the core cannot see."""

    at: float
    agent: str
    cpu: float
    waiting: float
    client: str = "c"
    priority: int = 3
    timeout: float | None = None
    """The client's own, in seconds."""
    retries: int = 0
    """How often a refusal is obeyed."""


@dataclass(slots=True)
class Ending:
    """What became of a request: ``problem`` is empty for a result."""

    arrival: Arrival
    problem: str
    took: float
    attempt: int
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """So many members who ask one thing at a time, from ``begin`` to ``end``."""

    count: int
    ask: Callable[[random.Random], tuple[str, float, float]]
    """The agent, and the seconds that a call of it really computes and waits."""
    begin: float
    end: float
    pause: float = 0.0
    """Mean seconds between an answer and the next request."""
    obeys: bool = False
    """They come back when Retry-After says; otherwise at once."""
    leaves: int = 0
    """After so many refusals in turn a member gives up for good; 0: never."""
    names: int = 1
    """So many clients are told apart: 1 if all are behind one address, ``count`` if each has its own."""
    once: bool = False
    """Each member wants one answer only."""
    reconnects: bool = False
    """A new connection for each request."""


class Member:
    """One of a crowd, with its connection."""

    __slots__ = ("back", "fresh", "name", "number", "refused")

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.refused = 0
        """How often in turn."""
        self.back: Comeback | None = None
        self.fresh = True


class Call(Request):
    __slots__ = ("arrival", "attempt", "cpu_left", "ended", "finished", "member", "until")

    def __init__(self, agent: Agent, now: float, arrival: Arrival, attempt: int) -> None:
        limit = agent.timeout if arrival.timeout is None else min(arrival.timeout, agent.timeout)
        super().__init__(
            agent,
            now,
            now + limit,
            priority=arrival.priority,
            size=100,
            client=arrival.client,
            own_deadline=arrival.timeout is not None,
        )
        self.arrival = arrival
        self.attempt = attempt
        self.cpu_left = 0.0
        self.until = math.inf
        self.finished = False
        self.ended: Callable[[Ending], None] | None = None
        self.member: Member | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What the model is made of."""

    workers: int = 4
    slots: int = 16
    threads: int = 16
    processors: int = 2
    gap: float = 0.0005
    """Seconds that an answer takes back to the supervisor."""
    serving: float = 0.0
    """CPU seconds that the supervisor takes for a request that is answered ..."""
    refusing: float = 0.0
    """... and for a look at one that is not. It goes before the workers where processors are short."""
