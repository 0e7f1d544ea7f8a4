"""The time that a call spends with the database.

Whenever psycopg waits for the server, it does so in one method of the connection, ``wait``: for statements, fetches of
server-side cursors, COPY, pipelines, transactions. So the pools' connections are of classes that measure there, for the
call in whose context they are used, whether its agent was handed the connection or took it from a pool. Waiting for a
connection is measured where it is waited for (``pools.py``, ``database.py``). What a call does in between with the rows
that it got is the agent's time, though it holds the connection.

A coroutine can wait for several things at once, which counts once: the sum of a call's parts is never more than the
call. Threads that a sync agent starts by itself have no call, and are not measured.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

from psycopg.abc import PQGen

from penstock.ipc import libpq

RV = TypeVar("RV")


class Meter:
    """Adds up the time of one call during which at least one of the blocks that it surrounds was running."""

    __slots__ = ("_begun_at", "_running", "holds", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.holds = 0
        """Connections that the call has, wherever it took them."""
        self._running = 0
        self._begun_at = 0.0

    def __enter__(self) -> None:
        if not self._running:
            self._begun_at = time.monotonic()
        self._running += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running -= 1
        if not self._running:
            self.seconds += time.monotonic() - self._begun_at


meter: ContextVar[Meter | None] = ContextVar("penstock_database_meter", default=None)
"""Of the call that this code runs for; None for what runs for no call, and for calls without the database."""

_unread = Meter()


def metered() -> Meter:
    """The block that this surrounds is time with the database."""
    # Outside of calls it is measured for nothing, which costs less than to ask at every place.
    return meter.get() or _unread


class AsyncConnection(libpq.AsyncConnection):
    """As psycopg's, measured, and to the embedded server without libpq's environment."""

    holder: Meter | None = None
    """Of the call that has it; None in the pool, and with what runs for no call."""

    async def wait(self, gen: PQGen[RV], *arguments: Any, **settings: Any) -> RV:
        """As in psycopg."""
        with metered():
            return await super().wait(gen, *arguments, **settings)


class Connection(libpq.Connection):
    """As psycopg's, and measured."""

    holder: Meter | None = None
    """Of the call that has it; None in the pool, and with what runs for no call."""

    def wait(self, gen: PQGen[RV], *arguments: Any, **settings: Any) -> RV:
        """As in psycopg."""
        with metered():
            return super().wait(gen, *arguments, **settings)
