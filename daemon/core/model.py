"""The nouns of the core, in one module since they name each other: agents, requests for them, and the workers that
run these.

All are plain mutable objects with slots: the request path makes one ``Request`` and nothing else. The shell derives
its own class from ``Request`` for what only it needs (the body, who gets the answer), and the core never looks there.

*Credits.* A worker has ``slots``; of these at most ``threads`` may be sync calls at once; an agent may have a limit of
its own. A request goes to a worker only against a free credit, so nothing ever queues inside a worker.

*Processor credits.* Slots alone hide a queue: 16 calls that compute for 50 ms share one interpreter lock, and the last
of them waits for 0.8 s where nobody sees it. So each call in flight also takes the share of a processor that its agent
wants (``window.Cost.cpu_share``): about 0 for calls that wait, 1 for calls that compute. A worker is full when the
shares of its calls come to one processor, since it has one interpreter lock; the host is full at 1.5 times the
processors that others (the supervisor, the database, other programs) were seen to leave, which keeps them busy while
answers are on their way. What is beyond waits in the supervisor, where it is ordered, measured and refused.

Of *long* calls no more run at once than there are processors: one more would make none of them end sooner, and in so
many processes that compute a short call finds neither a worker to itself nor its turn on a processor. For long calls
the time that an answer is on its way does not matter, so nothing is lost.

Short calls go on top of that, up to ``QUANTUM`` seconds of CPU time together: a millisecond of work beside a long call
has its turn within one switch interval of the interpreter, and calls shorter than the round trip would leave a
processor idle if each had to wait for the answer to the one before.

*Connections.* A worker with a share of so many database connections gets as many calls that hold one, and no more: a
call beyond would wait in the worker for the one before it, while a later one may get what is free elsewhere. So the
wait for a connection is had in the queue, in order. A share that shrinks counts here at once. The worker is told only
when the calls that it has fit into it (``allot``, ``eased``), so that every call that is sent finds a permit there,
whatever overtakes what on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from typing import Any, Final

from .batching import Batch, Batching
from .processing import QUANTUM, Processors
from .window import Cost

PRIORITIES: Final = 8
"""Urgencies of RFC 9218: 0 goes first, 7 last."""

RANKS: Final = 2 * PRIORITIES
"""Places in the order of service: every urgency, and once more, behind all of those, for clients over their share."""

FULL: Final = 0.95
"""Of a processor: what the calls of a worker may want together before it takes no further one that is long."""

OVERLAP: Final = 1.5
"""Of the processors that others leave: what the calls of all workers may want together."""

UNSEEN: Final = 0.01
"""Seconds that a call of an agent that nothing is known of runs before anything is made of it."""

IDLE: Final = 0.5
"""Of a processor: a worker that was seen to use less has calls that wait."""


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
    """Of a request."""
    batching: Batching | None = None
    """How its requests go together; None: each is a call of its own."""
    run_cost: Cost = field(init=False)
    """Of what is booked on a worker: a batch, or a request, when it is ``cost`` itself."""
    running: int = 0
    """Calls or batches in flight, and the sum of the moments at which they were sent: for their mean age."""
    sent_at: float = 0.0

    def __post_init__(self) -> None:
        self.run_cost = self.cost

    def batch(self, most: int, wait: float) -> None:
        """Let its requests go together, up to ``most`` of them; 0: each by itself."""
        if not most:
            self.batching, self.run_cost = None, self.cost
        elif self.batching is None:
            self.batching, self.run_cost = Batching(most, wait), Cost()
        else:
            self.batching.configure(most, wait)

    def own_time(self, now: float) -> float:
        """Seconds that a call would take if it had the machine for itself, as far as can be told.

        Those that run count with their age, or with as much of it as was theirs in calls that have ended.
        """
        cost = self.run_cost
        own = cost.cpu + cost.waiting
        if not self.running:
            return own
        return max(own, (now - self.sent_at / self.running) * min(1.0, own / cost.wall))


class Request:
    """One call of one agent, from admission to its end."""

    __slots__ = (
        "affinity",
        "agent",
        "alone",
        "arrived_at",
        "batch",
        "call_id",
        "client",
        "cpu",
        "deadline",
        "deaths",
        "depth",
        "dispatched_at",
        "lacked_at",
        "long",
        "order",
        "own_deadline",
        "parent",
        "priority",
        "rank",
        "retried",
        "share",
        "size",
        "stalled",
        "state",
        "streamed",
        "suspended",
        "tag",
        "tick",
        "wall",
        "work",
        "worker",
    )

    parent: Request | None
    """Whose call asks for this one (``core.suspension``). ``depth`` counts these levels."""

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
        self.call_id = 0
        """The id of the current attempt, unique among all attempts."""
        self.dispatched_at = self.lacked_at = 0.0
        """When it was sent. And: when it began to wait for a database connection; 0 if it does not."""
        self.work = 0.0
        """Expected seconds of work, as booked on the worker."""
        self.wall = self.cpu = 0.0
        """Expected wall and CPU seconds, as booked in the queue, then on the worker."""
        self.long = False
        """Whether its agent's calls are long ones, as booked in the same places."""
        self.share = 0.0
        """The part of a processor that it is booked with on the worker."""
        self.deaths = 0
        """Workers that died by themselves while this request had begun on them."""
        self.retried = self.alone = False
        """It had begun on a worker that died; it is tried again once. And: it goes in no batch with others, since a
        worker died of one that it was in.
        """
        self.batch: Batch[Any] | None = None
        """In which it is or was at work; None: in none."""
        self.stalled = self.streamed = self.suspended = False
        """It was told to end, and its worker has not given the slot back in half the grace. And: part of its result has
        gone out, so that it cannot be tried again. And: its call waits for others, and holds no slot.
        """
        self.tick = -1
        """Where the timer wheel holds it; -1: nowhere."""
        self.parent, self.depth = None, 1

    def goes_with(self, batch: Batch[Any], worker: Worker, call: int) -> None:
        """It goes to this worker in a batch, which is booked for it and all others."""
        self.batch = batch
        self.worker = worker
        self.call_id = call
        self.dispatched_at = batch.dispatched_at


class Block(Flag):
    """Why a worker gets no calls. Each reason is set and lifted by itself, so that the end of one ends no other."""

    STALLED = auto()
    """Its socket took no message."""
    DRAINING = auto()
    """It ends the calls that it has, and gets no new ones."""
    WITHDRAWN = auto()
    """Its process has ended or is being killed; its calls are still to be settled."""
    DEAD = auto()
    """It has left its pool."""


@dataclass(slots=True, eq=False)
class Worker:
    """One incarnation of a worker, as far as placing requests goes."""

    name: str
    generation: int
    pool: str
    slots: int
    threads: int
    agents: frozenset[str] = frozenset()
    """The agents it may be asked for now."""
    batches: dict[str, int] = field(default_factory=dict)
    """Of these, the ones that get batches from it, with the members that one may have: its own code says so."""
    blocks: Block = field(default=Block(0), init=False)
    """All that keeps it from being given calls."""
    serving: bool = field(default=True, init=False)
    """It may be given calls: nothing blocks it. Kept beside ``blocks`` since every request asks; only ``block`` and
    ``unblock`` write it."""
    calls: dict[int, Request] = field(default_factory=dict)
    """Calls in flight by id, the oldest first."""
    sync_calls: int = 0
    suspended: int = 0  # Of ``calls``, those that wait for calls of their own.
    connections: dict[str, int] = field(default_factory=dict)
    """Calls of each kind that may hold a database connection; a kind that is missing has no limit."""
    connected: dict[str, int] = field(default_factory=dict)
    """Calls in flight that hold one."""
    drawing: dict[str, int] = field(default_factory=dict)
    """Calls in flight that may use the database: these, and those that are handed the pool itself."""
    owed: dict[str, int] = field(default_factory=dict)
    """Of ``connections``, what it has not been told yet, since it has calls that need more."""
    processors: Processors = field(default_factory=Processors)
    host: Processors = field(default_factory=Processors)
    """The host's, shared by all workers."""
    by_agent: dict[str, int] = field(default_factory=dict)
    """Calls in flight of the agents that have a limit."""
    load: float = 0.0
    """Expected seconds of work in flight."""
    answered: int = 0
    pid: int = 0

    def block(self, reason: Block) -> None:
        """Give it no calls until this reason is lifted."""
        self.blocks |= reason
        self.serving = False

    def unblock(self, reason: Block) -> None:
        """This reason is no more. It serves if there is no other."""
        self.blocks &= ~reason
        self.serving = not self.blocks

    def may_take(self, agent: Agent) -> bool:
        """Whether there is a free credit for a call of this agent."""
        return (
            self.serving
            and self.processors.calls < self.slots
            and agent.name in self.agents
            and self.processors.has_room(agent)
            and not (agent.sync and self.sync_calls >= self.threads)
            and not (agent.max_concurrency and self.by_agent.get(agent.name, 0) >= agent.max_concurrency)
            and not (agent.connection and self.lacks_connection(agent.database))
        )

    def lacks_connection(self, kind: str) -> bool:
        """Whether all the connections of this kind that it may have are in use."""
        allowed = self.connections.get(kind)
        return allowed is not None and self.connected.get(kind, 0) >= allowed

    def offer(self, agents: frozenset[str]) -> None:
        """It may be asked for these agents from now on."""
        self.agents = agents

    def allot(self, kind: str, share: int) -> None:
        """Let so many calls hold a connection from now on. ``eased`` says when to tell the worker."""
        self.connections[kind] = self.owed[kind] = share

    def eased(self) -> list[tuple[str, int]]:
        """The shares that the worker can be told by now, by kind: no call that it was sent needs more."""
        due = [(kind, share) for kind, share in self.owed.items() if self._fits(kind, share)]
        for kind, _ in due:
            del self.owed[kind]
        return due

    def _fits(self, kind: str, share: int) -> bool:
        # A call that was handed the pool takes what it needs one after another, so that it gets by with one.
        return self.connected.get(kind, 0) <= share and (share > 0 or not self.drawing.get(kind, 0))

    def expected(self, now: float) -> float:
        """Seconds of work that a new call would find before it."""
        if len(self.calls) == self.suspended:
            return 0.0
        calls = self.calls.values()
        oldest = next((each for each in calls if not each.suspended) if self.suspended else iter(calls))
        return self.load + (now - oldest.dispatched_at) * oldest.agent.run_cost.cpu_share

    def is_prompt(self, now: float) -> bool:
        """Its oldest call has not been there for long. One that has is no call like those before it; of a younger one
        the answer may just be on its way.
        """
        return now - next(iter(self.calls.values())).dispatched_at < QUANTUM

    def take(self, request: Request, call_id: int, now: float) -> None:
        """Book a call on this worker."""
        request.worker = self
        request.call_id = call_id
        request.dispatched_at = now
        self.calls[call_id] = request
        self._book(request, request.agent, now)

    def take_batch(self, batch: Batch[Any], call: int, now: float) -> None:
        """Book a batch on this worker, as one call. ``call``: that of the first member; the others have the next ones,
        and no books of their own but for ``calls``.
        """
        batch.sent(call, now)
        for call_id, request in enumerate(batch.members, call):
            request.goes_with(batch, self, call_id)
            self.calls[call_id] = request
        self._book(batch, batch.agent, now)

    def _book(self, request: Request | Batch[Any], agent: Agent, now: float) -> None:
        cost = agent.run_cost
        request.work = cost.work
        request.cpu = cost.cpu
        request.share = cost.cpu_share
        request.long = cost.is_long
        agent.running += 1
        agent.sent_at += now
        self.load += request.work
        self.processors.take(request)
        self.host.take(request)
        if agent.sync:
            self.sync_calls += 1
        if agent.database:
            self.drawing[agent.database] = self.drawing.get(agent.database, 0) + 1
        if agent.connection:
            self.connected[agent.database] = self.connected.get(agent.database, 0) + 1
        if agent.max_concurrency:
            self.by_agent[agent.name] = self.by_agent.get(agent.name, 0) + 1

    def release(self, request: Request) -> None:
        """Give the call's credit back; that of a batch, with its last member."""
        del self.calls[request.call_id]
        request.worker = None
        batch = request.batch
        if batch is None:
            self._unbook(request, request.agent)
            return
        batch.left -= 1
        if not batch.left:
            self._unbook(batch, batch.agent)

    def _unbook(self, request: Request | Batch[Any], agent: Agent) -> None:
        # Sums of floats drift; an empty worker is the natural place to begin anew.
        self.load = self.load - request.work if self.calls else 0.0
        agent.running -= 1
        agent.sent_at = agent.sent_at - request.dispatched_at if agent.running else 0.0
        self.processors.release(request)
        self.host.release(request)
        if agent.sync:
            self.sync_calls -= 1
        if agent.database:
            self.drawing[agent.database] -= 1
        if agent.connection:
            self.connected[agent.database] -= 1
        if agent.max_concurrency:
            self.by_agent[agent.name] -= 1

    @property
    def has_unmeasured(self) -> bool:
        """It runs a call of an agent whose cost was not measured yet."""
        return any(not each.agent.cost.calls and not each.suspended for each in self.calls.values())

    def reestimate_unmeasured(self, rate: float, now: float) -> None:
        """Book the calls of agents that nothing is known of anew, if they evidently wait: together they take no more of
        a processor than the whole worker was seen to (``rate``, processors, none of which was short).
        """
        if rate > IDLE:
            return
        unmeasured = {
            each.batch or each
            for each in self.calls.values()
            if not each.agent.cost.calls and now - each.dispatched_at > UNSEEN and not each.suspended
        }
        for request in unmeasured:
            share = min(1.0, max(0.0, rate) / len(unmeasured))
            for each in (self.processors, self.host):
                each.rebook(request, share)
            request.share, request.cpu = share, 0.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a pool has: workers that serve, and their slots and threads."""

    workers: int
    slots: int
    threads: int
