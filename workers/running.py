"""A running call: what its books, its runner and its span share of it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from penstock.ipc.log import call_fields
from penstock.ipc.messages import Call

from .agent import Definition
from .batches import Members
from .context import Context
from .database import Holding
from .database.metering import Meter
from .nested import Children
from .outflow import Outflow
from .threads import ThreadCall

Result = tuple[int, str, list[tuple[str, str]] | None, bytes]
"""Status, media type, headers and body."""


class Rest(NamedTuple):
    """What a plain function has returned to be awaited, and the context in which it ran on its thread."""

    awaitable: Awaitable[object]
    context: contextvars.Context


class CannotStartError(Exception):
    """The call could not begin. The text says what is missing."""


class Runner(Protocol):
    """Runs calls of one kind. Each that was started is settled exactly once, cancelled or not."""

    def start(self, run: Running, body: bytes) -> None:
        """Begin, and return at once (``CannotStartError``; then it is not settled)."""

    def cancel(self, run: Running) -> None:
        """Have it end soon. ``run.cancelled`` says why, and is set before. It is called once for a call."""


class Running:
    """A call that this worker has."""

    __slots__ = (
        "agent",
        "batch",
        "begun_at",
        "cancelled",
        "children",
        "context",
        "cpu",
        "ended_at",
        "holding",
        "meter",
        "outflow",
        "runner",
        "slot",
        "spec",
        "taken_at",
        "task",
        "thread_call",
    )

    def __init__(self, spec: Call, agent: Definition, slot: int) -> None:
        self.spec = spec
        self.agent = agent
        self.slot = slot
        self.batch: Members | None = None
        """The requests that it is for, if its agent gets batches. ``spec`` is then that of the first, with the latest
        deadline of all."""
        self.runner: Runner | None = None
        """Whoever runs it now; None before its start."""
        self.context: Context | None = None
        self.children: Children | None = None
        """Its calls of other agents, once it has made any."""
        self.task: asyncio.Task[None] | None = None
        self.thread_call: ThreadCall | None = None
        self.holding: Holding | None = None
        """The connections of a sync call, so that its statement can be cancelled from outside."""
        self.outflow: Outflow | None = None
        """The way of its items, once it streams."""
        self.meter: Meter | None = None
        """Of its time with the database, if its agent uses that."""
        self.cancelled = ""
        self.taken_at = 0.0
        self.begun_at = 0.0
        self.ended_at = 0.0
        self.cpu = 0.0


Settle = Callable[[Running, Result | Rest | None, BaseException | None], None]
"""Called on the loop when a call has ended, with either its result or its exception."""


def log_fields(spec: Call) -> dict[str, str]:
    """What a line of the log that concerns a call says of it."""
    return call_fields(spec.request_id, spec.traceparent, spec.agent)
