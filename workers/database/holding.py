"""The connection of a sync call, and how its statements are cancelled from another thread.

Cancelling a statement asks the server over a second connection, and what was asked may come true late. So a connection
of a thread goes back to its pool only when nothing is being cancelled on it any more; otherwise the next call's
statement could be the one that is hit. (psycopg does the same by itself for coroutines.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any, Final, Protocol

import psycopg

from penstock.ipc.log import get_logger

from ..threads import ThreadCall
from .metering import Connection
from .permits import Turn

log = get_logger("penstock.database")

CANCEL_PATIENCE: Final = 0.5
"""Seconds that asking the server to cancel a statement may take."""


class Pool(Protocol):
    """Where a connection goes back to."""

    def putconn(self, connection: Connection) -> None:
        """``ValueError`` if it is there already."""


class Holding:
    """The connections that one sync call holds, its own and those it took from a pool that it was handed."""

    def __init__(self, call: ThreadCall) -> None:
        self.call = call
        self._lock = threading.Lock()
        self._held: list[tuple[Pool, Connection]] = []
        self._cancelling: threading.Thread | None = None
        self._turn: Turn | None = None
        self._cancelled = False
        self._context = copy_context()
        """Of the call, so that the log knows which it was whose statement is cancelled."""

    def turn(self) -> Turn:
        """A place among those that wait for a permit, which is given up when the call is cancelled."""
        turn = Turn()
        with self._lock:
            self._turn = turn
            if self._cancelled:
                turn.settle(granted=False)
        return turn

    def add(self, pool: Pool, connection: Connection) -> None:
        with self._lock:
            self._held.append((pool, connection))

    def remove(self, connection: Connection) -> None:
        with self._lock:
            self._held = [each for each in self._held if each[1] is not connection]

    def cancel(self, then: Callable[[], None]) -> bool:
        """Have the statements that run cancelled and then call ``then``; False, and nothing, without a connection.

        On a thread of its own: it takes a round trip to the server, which must not hold up the loop.
        """
        with self._lock:
            self._cancelled = True
            if self._turn is not None:
                self._turn.settle(granted=False)
            if not self._held:
                return False
            connections = [connection for _, connection in self._held]
            work = (_cancel_statements, connections, then)
            self._cancelling = threading.Thread(target=self._context.run, args=work, daemon=True)
            self._cancelling.start()
            return True

    def settle(self) -> None:
        """Wait until nothing is being cancelled."""
        with self._lock:
            cancelling = self._cancelling
        if cancelling is not None:
            cancelling.join()

    def sweep(self) -> None:
        """Close and give back what the call did not, since it forgot or was interrupted on the way."""
        self.settle()
        for pool, connection in self._held[:]:
            connection.close()
            try:
                pool.putconn(connection)
            except ValueError:
                # It was interrupted just after giving it back.
                self.remove(connection)


holding: ContextVar[Holding | None] = ContextVar("penstock_holding", default=None)
"""What the sync call that runs on this thread holds."""


def _cancel_statements(connections: list[psycopg.Connection[Any]], then: Callable[[], None]) -> None:
    for connection in connections:
        try:
            connection.cancel_safe(timeout=CANCEL_PATIENCE)
        except Exception as error:
            log.warning("a running statement could not be cancelled: %s", error)
    then()
