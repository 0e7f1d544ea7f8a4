"""The two things that decisions are about: an agent, and a request for it.

Both are plain mutable objects with slots: the request path makes one ``Request`` and nothing else. The shell derives
its own class from ``Request`` for what only it needs (the body, the waiting client), and the core never looks there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Final

from .window import Cost

if TYPE_CHECKING:
    from .comebacks import Comeback
    from .dispatch import Worker

PRIORITIES: Final = 8
"""Urgencies of RFC 9218: 0 goes first, 7 last."""

RANKS: Final = 2 * PRIORITIES
"""Places in the order of service: every urgency, and once more, behind all of those, for clients over their share."""


class Problem(StrEnum):
    """Why a request ends without a result, by the NAME of its problem type. The HTTP status is the front's affair."""

    THROTTLED = "throttled"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    WORKER_DIED = "worker-died"
    POISON_REQUEST = "poison-request"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not accepted, or an accepted one that ends without a result."""

    problem: Problem
    detail: str
    retry_after: float = 1.0
    """Seconds after which another try is worth it; looked at only where the problem is a passing one."""
    reason: str = ""
    """Which rule refused it, in a word, for counting; empty where the problem says it all."""
    comeback: Comeback | None = None
    """What it was told, if it was told to come back: to be shown with its next request."""
    worker: str = ""
    """The worker that had the call; empty where none had."""


class State(Enum):
    """Where a request is."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    """Its client has an answer or is gone. A worker may still be at it: its slot is not free until it says so."""


@dataclass(slots=True, eq=False)
class Agent:
    """An agent as decisions see it: settings from its worker's report, and the measured cost."""

    name: str
    pool: str
    sync: bool = False
    idempotent: bool = False
    timeout: float = 30.0
    priority: int = 3
    max_concurrency: int = 0
    """Calls that one worker runs at once; 0: no limit but the worker's slots."""
    database: str = ""
    connection: bool = False
    """Each call holds one of its worker's connections of the kind ``database``."""
    cost: Cost = field(default_factory=Cost)
    running: int = 0
    """Calls in flight, and the sum of the moments at which they were sent: for their mean age."""
    sent_at: float = 0.0

    def own_time(self, now: float) -> float:
        """Seconds that a call would take if it had the machine for itself, as far as can be told.

        Those that run count with their age, or with as much of it as was theirs in calls that have ended.
        """
        cost = self.cost
        own = cost.cpu + cost.waiting
        if not self.running:
            return own
        return max(own, (now - self.sent_at / self.running) * min(1.0, own / cost.wall))


class Request:
    """One call of one agent, from admission to its end."""

    __slots__ = (
        "affinity",
        "agent",
        "arrived_at",
        "call",
        "client",
        "cpu",
        "deadline",
        "deaths",
        "dispatched_at",
        "lacked_at",
        "long",
        "order",
        "own_deadline",
        "priority",
        "rank",
        "retried",
        "share",
        "size",
        "stalled",
        "state",
        "tag",
        "tick",
        "wall",
        "work",
        "worker",
    )

    def __init__(
        self,
        agent: Agent,
        arrived_at: float,
        deadline: float,
        *,
        priority: int = 3,
        size: int = 0,
        client: str = "",
        affinity: str = "",
        own_deadline: bool = False,
    ) -> None:
        """``arrived_at`` and ``deadline`` are absolute monotonic seconds, ``size`` the body's bytes.

        ``own_deadline``: the deadline is the client's, not the agent's.
        """
        self.agent = agent
        self.arrived_at = arrived_at
        self.deadline = deadline
        self.priority = priority
        self.size = size
        self.client = client
        self.affinity = affinity
        self.own_deadline = own_deadline
        self.state = State.NEW
        self.order = 0
        """Place in the order of arrival; kept when a request goes back to the queue, as are the next two."""
        self.rank = priority
        """Its place among the ranks: lower ones go first."""
        self.tag = 0.0
        """Its place within its rank: lower ones go first."""
        self.worker: Worker | None = None
        self.call = 0
        """The id of the current attempt, unique among all attempts."""
        self.dispatched_at = 0.0
        self.lacked_at = 0.0
        """When it began to wait for a database connection; 0 if it does not."""
        self.work = 0.0
        """Expected seconds of work, as booked on the worker."""
        self.wall = 0.0
        self.cpu = 0.0
        """Expected wall and CPU seconds, as booked in the queue, then on the worker."""
        self.long = False
        """Whether its agent's calls are long ones, as booked in the same places."""
        self.share = 0.0
        """The part of a processor that it is booked with on the worker."""
        self.deaths = 0
        """Workers that died by themselves while this request had begun on them."""
        self.retried = False
        """It had begun on a worker that died; it is tried again once."""
        self.stalled = False
        """It was told to end, and its worker has not given the slot back in half the grace."""
        self.tick = -1
        """Where the timer wheel holds it; -1: nowhere."""
