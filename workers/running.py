"""A call that runs, as all see it that have a part in it: the books, its coroutine or thread, its span."""

from __future__ import annotations

import asyncio

from penstock.ipc.messages import Call

from .agent import Definition
from .context import Context
from .database import Holding
from .database.metering import Meter
from .threads import Job

Result = tuple[int, str, list[tuple[str, str]] | None, bytes]
"""Status, media type, headers and body."""


class Running:
    """A call that this worker has."""

    __slots__ = (
        "agent",
        "begun_at",
        "cancelled",
        "context",
        "cpu",
        "ended_at",
        "holding",
        "job",
        "meter",
        "slot",
        "spec",
        "taken_at",
        "task",
    )

    def __init__(self, spec: Call, agent: Definition, slot: int) -> None:
        self.spec = spec
        self.agent = agent
        self.slot = slot
        self.context: Context | None = None
        self.task: asyncio.Task[None] | None = None
        self.job: Job | None = None
        self.holding: Holding | None = None
        """The connections of a sync call, so that its statement can be cancelled from outside."""
        self.meter: Meter | None = None
        """Of its time with the database, if its agent uses that."""
        self.cancelled = ""
        self.taken_at = 0.0
        self.begun_at = 0.0
        self.ended_at = 0.0
        self.cpu = 0.0
