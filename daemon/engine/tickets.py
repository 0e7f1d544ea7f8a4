"""A request as the engine has it: what decisions are about, and what only the I/O around the core needs."""

from __future__ import annotations

import asyncio
import time

from penstock.ipc.messages import Answer

from ..core.model import Agent, Request
from ..core.refusals import Refusal


class Ticket(Request):
    """A request together with what only the I/O around the core needs."""

    __slots__ = (
        "answer",
        "body",
        "failed",
        "future",
        "headers",
        "refusal",
        "request_id",
        "result",
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
        future: asyncio.Future[None],
        own_deadline: bool = False,
        rank: int | None = None,
        trace: tuple[str, str] = ("", ""),
    ) -> None:
        """``rank``: as ``Engine.screen`` gave it; None: the urgency alone counts."""
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
        self.future = future
        self.traceparent, self.tracestate = trace
        self.answer: Answer | None = None
        self.result = b""
        self.refusal: Refusal | None = None
        self.failed = False
        """The supervisor failed at it, and its log has that: there is neither an answer nor a refusal."""

    @property
    def queued(self) -> float:
        """Seconds until a worker began with it; of one that has no answer, until it was sent to one, or until now."""
        began_at = self.answer.taken_at if self.answer is not None else self.dispatched_at or time.monotonic()
        return began_at - self.arrived_at
