"""A request as the engine has it: what decisions are about, what only the I/O around the core needs, and the sink that
its answer goes to.

The engine knows nothing of who has asked. An exchange over HTTP is one kind of sink; whatever else asks an agent for
something and wants the answer is another.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from penstock.ipc.messages import EVENTS, LINES, Answer, Head

from ..core.model import Agent, Request, State
from ..core.refusals import Refusal


@dataclass(frozen=True, slots=True)
class Failed:
    """The outcome of a request at which the supervisor itself failed; its log has why."""


class Sink(Protocol):
    """Where the answer to tickets goes.

    It is called on the loop's thread and amid the engine's work, so it is quick and raises nothing, and whatever takes
    time begins later. A ticket that was withdrawn has no outcome, and its sink is not called any more.
    """

    def items(self, ticket: Ticket, body: bytes, head: Head | None) -> None:
        """Part of a streamed result has come: some items as ``media_type`` frames them, or some bytes. ``head``: what
        the answer begins with, with the first part of a stream of bytes.
        """

    def ended(self, ticket: Ticket) -> None:
        """The ticket has its ``outcome``. Called once."""


class Ticket(Request):
    """A request together with what only the I/O around the core needs."""

    __slots__ = (
        "body",
        "events",
        "headers",
        "outcome",
        "request_id",
        "result",
        "sink",
        "traceparent",
        "tracestate",
    )

    def __init__(
        self,
        agent: Agent,
        now: float,
        deadline: float,
        *,
        request_id: str,
        body: bytes,
        headers: dict[str, str] | None,
        priority: int,
        client: str,
        affinity: str,
        sink: Sink,
        own_deadline: bool = False,
        rank: int | None = None,
        trace: tuple[str, str] = ("", ""),
        events: bool = False,
    ) -> None:
        """``rank``: as ``Engine.screen`` gave it; None: the urgency alone counts. ``events``: the items of a stream are
        framed as ``EVENTS``, else as ``LINES``.
        """
        super().__init__(
            agent,
            now,
            deadline,
            priority=priority,
            size=len(body),
            client=client,
            affinity=affinity,
            own_deadline=own_deadline,
        )
        if rank is not None:
            self.rank = rank
        self.request_id = request_id
        self.body = body
        self.headers = headers
        self.sink = sink
        self.events = events
        self.traceparent, self.tracestate = trace
        self.outcome: Answer | Refusal | Failed | None = None
        """How it ended; None until then."""
        self.result = b""
        """The body that comes with an ``Answer``."""

    def end(self, outcome: Answer | Refusal | Failed, result: bytes = b"") -> None:
        """It ends so, and its sink is told. ``result``: the body that comes with an answer."""
        self.state = State.ENDED
        self.outcome = outcome
        self.result = result
        self.sink.ended(self)

    @property
    def media_type(self) -> str:
        """Of its result, if that is a stream of items."""
        return EVENTS if self.events else LINES

    @property
    def queued(self) -> float:
        """Seconds until a worker began with it; of one that has no answer, until it was sent to one, or until now."""
        outcome = self.outcome
        began_at = outcome.taken_at if isinstance(outcome, Answer) else self.dispatched_at or time.monotonic()
        return began_at - self.arrived_at
