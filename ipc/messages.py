"""Every message that crosses between the supervisor and a worker, as frozen structs.

Three directions, three unions:

* ``ToWork`` (``Call``, ``Batch``) travels on the worker's own work socket, its body in a frame of its own; those of a
  batch are one after another in it.
* ``ToWorker`` (``Cancel``, ``Grant``, ``Stop``, ``More``, ``Part``, ``Reply``) travels on the worker's control socket,
  which is read first, so that a cancellation overtakes the calls that wait behind it. The body frame is empty for all
  but ``Part`` and ``Reply``.
* ``FromWorker`` (``Starting``, ``Ready``, ``Failed``, ``Items``, ``Answer``, ``Released``, ``Leaving``, ``Statistics``,
  ``Ask``, ``Abandon``, ``Taken``) travels on the shared answer socket; each brings a body in a frame of its own, which
  is empty for all but ``Items``, ``Answer`` and ``Ask``.

A streamed result is any number of ``Items`` and then the ``Answer``, whose body is empty. The worker sends no more
bytes than it has credit for: ``WINDOW`` at first, and what ``More`` adds to it. Only the last item may go beyond.

A call may ask for another agent (``Ask``), its child. What the child streams comes as ``Part``, and its end as one
``Reply``, unless the asker has told ``Abandon`` before. The window of such a stream is ``WINDOW``, too; ``Taken`` gives
back what the asker has read.

Every message from a worker carries the worker's name and its generation (which incarnation of that name speaks),
so that the supervisor can drop what a predecessor still had in its pipe.

Times are seconds. Absolute times are readings of ``time.monotonic()``: on Linux that clock is the same one for all
processes of a host, so a deadline needs no translation.

A call id is unique for each *attempt* at a request and rises with every call sent to a worker. That gives two things
for nothing: an answer to an abandoned attempt matches no call any more, and a worker that is told to cancel a call id
above all it has seen knows that the call is still in its pipe.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import msgspec

PROTOCOL: Final = 4
"""Raised whenever a message changes in a way that an older peer would misread."""


WINDOW: Final = 32 * 1024
"""Bytes of a stream that its worker may send before it is told of more."""

EVENTS: Final = "text/event-stream"
"""The media type of a stream as server-sent events: ``data: JSON`` and an empty line for each item."""

LINES: Final = "application/x-ndjson"
"""That of a stream with a line of JSON for each item."""


class Outcome(IntEnum):
    """How a call ended, as the worker reports it."""

    RESULT = 0
    """The agent returned; the body frame is its result."""
    PROBLEM = 1
    """It did not; ``Answer.problem`` names the problem (a NAME of the problem table) and ``detail`` explains it."""
    CANCELLED = 2
    """The call ended because the supervisor had cancelled it. Nobody waits for it; only its slot is given back."""


class DatabaseAccess(msgspec.Struct, frozen=True):
    """How a worker reaches PostgreSQL."""

    dsn: str
    acquire_timeout: float
    prepared_statements: bool = True


class AgentInfo(msgspec.Struct, frozen=True):
    """An agent as its worker describes it. ``None`` means that the author left it to the configuration."""

    name: str
    module: str
    doc: str
    kind: str
    """``async`` runs on the worker's loop, ``sync`` in its thread pool."""
    pool: str
    idempotent: bool
    timeout: float | None
    priority: int
    """Default urgency, 0 (first) to 7 (last), for requests without a ``Priority`` header."""
    max_concurrency: int
    """Calls of this agent that one worker runs at once; 0: as many as it has slots."""
    raw_body: bool
    """The agent takes the body as ``bytes``, whatever its media type."""
    wants_headers: bool
    """The agent looks at the request's headers; for all others they are not sent."""
    database: str
    """``async``, ``sync`` or empty: which of the worker's two connection pools its calls draw from."""
    connection: bool
    """Each call holds a connection of that pool while it runs."""
    body_schema: dict[str, Any]
    result_schema: dict[str, Any]
    """Of the result, or of each item of a stream."""
    stream: bool = False
    """The agent answers with a stream of items."""
    batch: int = 0
    """Requests that go to the agent together, at most; 0: each is a call of its own."""
    batch_wait: float = 0.0
    """Seconds that the first of them may wait for others while a worker is free."""


class BrokenModule(msgspec.Struct, frozen=True):
    """An agent module that could not be imported, with the reason in one line."""

    module: str
    error: str


class Launch(msgspec.Struct, frozen=True):
    """The parameters of a worker."""

    protocol: int
    name: str
    pool: str
    index: int
    generation: int
    supervisor_pid: int
    work_address: str
    control_address: str
    answer_address: str
    modules: list[str]
    """Importable names; an entry ``dill:PATH`` is a file with a dill-pickled mapping of names to functions."""
    pools: dict[str, list[str]]
    """Every pool's agent patterns (``fnmatch``), in the order of the configuration: the first match serves an agent."""
    concurrency: int
    threads: int
    database: DatabaseAccess | None
    log_level: str
    log_format: str
    max_item: int = 8 * 1024 * 1024
    """Bytes that an item of a stream may have (``http.max_body``)."""


class Call(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """One attempt at a request. The body follows in its own frame."""

    call: int
    agent: str
    deadline: float
    request_id: str
    client: str
    headers: dict[str, str] | None
    traceparent: str = ""
    """What the call continues, in W3C Trace Context's form: the supervisor's span if there is one, else what the client
    sent; empty if it sent nothing."""
    tracestate: str = ""
    raw_headers: dict[str, bytes] | None = None
    """Headers whose values are not UTF-8, as they came."""
    events: bool = False
    """The items of a stream are framed as ``EVENTS``; else as ``LINES``."""


class Batch(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Requests for one batched agent that go together: one slot of the worker, one run of the function, and an answer
    to each call, all of them when the batch has ended. The first answer that is no cancellation has what it took.
    """

    calls: list[Call]
    """Their ids are consecutive."""
    sizes: list[int]
    """Bytes of each body."""


ToWork = Call | Batch


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Stop working on a call, by force if it must be: its client is gone or its deadline is over."""

    call: int
    reason: str
    """``deadline`` or ``gone``; for the log and for ``Context.cancelled()``."""


class Grant(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """How many database connections the pool of one kind may hold from now on."""

    kind: str
    connections: int


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Run the stop hooks, close the pools and exit with status 0. Sent once nothing is in flight."""


class More(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """So many bytes more of a call's stream may be sent."""

    call: int
    credit: int


class Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a streamed response begins with, where the agent says it by a ``Response``."""

    status: int
    content_type: str
    headers: list[tuple[str, str]] | None


class Part(msgspec.Struct, frozen=True, array_like=True, tag=20, gc=False):
    """Part of what a call's child streams: whole lines of JSON, or with ``head`` (in the first) bytes."""

    call: int
    ask: int
    head: Head | None = None


class Reply(msgspec.Struct, frozen=True, array_like=True, tag=21, gc=False):
    """A call's child has ended. The body is its result, or where ``problem`` says so the problem as JSON."""

    call: int
    ask: int
    problem: bool
    status: int
    content_type: str
    """Empty for a child that has streamed, whose parts came before."""


ToWorker = Cancel | Grant | Stop | More | Part | Reply


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The worker's modules are loaded, its start hooks have run, it takes calls."""

    worker: str
    generation: int
    protocol: int
    pid: int
    agents: list[AgentInfo]
    broken: list[BrokenModule]
    code: str
    """A fingerprint of the agents' code as it was loaded: the same for the same, whichever process has loaded it."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The worker cannot serve and is about to exit with status 1."""

    worker: str
    generation: int
    reason: str
    configuration: bool
    """The fault lies in the configuration (an agent asks for a pool that does not exist), so a retry is no use."""


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """A call has ended and its slot is free. For ``RESULT`` and ``PROBLEM`` a body frame follows, perhaps empty."""

    worker: str
    generation: int
    call: int
    outcome: int
    status: int
    content_type: str
    headers: list[tuple[str, str]] | None
    problem: str
    detail: str
    wall: float
    """Seconds from the moment that the agent's function was entered to its end; 0 when it never was."""
    cpu: float
    """CPU seconds of the call's thread, or of its coroutine's steps."""
    db: float
    """Seconds with the database: waiting for a connection, for statements and for the end of the transaction. What a
    call does at the same time counts once; what it does otherwise while it holds a connection does not count."""
    taken_at: float
    """When the worker began with the call (its body is decoded first); before that it waited."""
    ended_at: float
    """When it was done with it. What lies between the two and is not ``db`` is the agent's."""
    stalled: float = 0.0
    """Of ``wall``: seconds in which a stream had to wait for its reader."""
    nested: float = 0.0
    """Of ``wall``: seconds in which calls of other agents were open."""


class Items(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Part of a streamed result; the bytes, framed as the client gets them, are in the body frame."""

    worker: str
    generation: int
    call: int
    count: int
    """Items in it; 0 of a stream of bytes."""
    head: Head | None = None
    """With the first part of a stream of bytes."""


class Released(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """The pool of this kind holds no more than ``connections`` from now on: the answer to a smaller ``Grant``."""

    worker: str
    generation: int
    kind: str
    connections: int


class Leaving(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """The worker was asked from outside (SIGTERM) to go: please drain it and start another."""

    worker: str
    generation: int


class Starting(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """What the worker is about to do before it is ready, and may take long for. Its modules are imported by then."""

    worker: str
    generation: int
    step: str


WAIT_BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds in seconds of the buckets that waits for a database connection are counted in."""


class PoolStatistics(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One of a worker's database pools. The first numbers are as of now, the others what was added since the last."""

    kind: str
    size: int
    """Connections that are open."""
    available: int
    """Of these, the idle ones."""
    waiting: int
    """Calls that wait for one."""
    granted: int
    """As many as there may be."""
    waits: list[int]
    """Times that a connection was asked for, by ``WAIT_BOUNDS`` of what that took; the last entry: longer."""
    wait_seconds: float
    errors: int
    """Of these, how often none was given."""


class Statistics(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """How the database pools fare: once a second at most, and only after something has changed."""

    worker: str
    generation: int
    pools: list[PoolStatistics]


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=20, gc=False):
    """A call asks for another agent; the body is in the body frame."""

    worker: str
    generation: int
    call: int
    ask: int
    """From 1 on, in each call."""
    agent: str
    deadline: float
    """The latest: the caller's own, or earlier."""
    traceparent: str = ""
    tracestate: str = ""


class Abandon(msgspec.Struct, frozen=True, array_like=True, tag=21, gc=False):
    """The call waits no more for what it has asked for."""

    worker: str
    generation: int
    call: int
    ask: int


class Taken(msgspec.Struct, frozen=True, array_like=True, tag=22, gc=False):
    """The call has read so many bytes more of what its child streams."""

    worker: str
    generation: int
    call: int
    ask: int
    credit: int


FromCall = Ask | Abandon | Taken
"""What a call says of its children."""

FromWorker = Starting | Ready | Failed | Items | Answer | Released | Leaving | Statistics | FromCall
