"""psycopg's pools, which give no connection without a permit, and none whose session was cut.

A session that the database cut (a restart, ``pg_terminate_backend``) shows on its socket: an idle connection with
something to read was told of its end. So the check at getconn is one ``poll`` of a descriptor, not a round trip.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

import psycopg
import psycopg_pool
from psycopg.rows import tuple_row

from penstock.ipc.log import get_logger
from penstock.ipc.tasks import Tasks

from .access import PREPARE_AFTER
from .holding import holding
from .metering import AsyncConnection, Connection, meter, metered
from .permits import AsyncPermits, ThreadPermits
from .waiting import Waits, patience, pool_timeout

log = get_logger("penstock.database")


def _drawn(connection: AsyncConnection | Connection) -> None:
    """A connection was taken from its pool, by the call that this code runs for if there is one."""
    call = connection.holder = meter.get()
    if call is not None:
        call.holds += 1


def _returned(connection: Any) -> None:
    """It is in its pool again."""
    call, connection.holder = connection.holder, None
    if call is not None:
        call.holds -= 1


def _readable(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


def _is_altered(connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> bool:
    """Whether an agent changed how the connection's transactions begin. What it makes of rows is put back here.

    (What an agent sets in the session itself, by SQL, stays: a round trip for each call would cost too much.)
    """
    given: Any = connection
    given.row_factory = tuple_row
    given.cursor_factory = psycopg.AsyncCursor if isinstance(connection, psycopg.AsyncConnection) else psycopg.Cursor
    begins = (connection.isolation_level, connection.read_only, connection.deferrable)
    return bool(connection.autocommit) or begins != (None, None, None)


async def _restore(connection: psycopg.AsyncConnection[Any]) -> None:
    """For the next call as it was for this one, by no more than what psycopg remembers; closed where that cannot be."""
    try:
        await connection.set_autocommit(False)
        await connection.set_isolation_level(None)
        await connection.set_read_only(None)
        await connection.set_deferrable(None)
    except psycopg.Error:
        await connection.close()


def _restore_in_thread(connection: psycopg.Connection[Any]) -> None:
    try:
        connection.set_autocommit(False)
        connection.set_isolation_level(None)
        connection.set_read_only(None)
        connection.set_deferrable(None)
    except psycopg.Error:
        connection.close()


class AsyncPool(psycopg_pool.AsyncConnectionPool[AsyncConnection]):
    """A pool that gives no connection whose session was cut, and none without a permit.

    psycopg_pool's own ``check`` would do for the first, but it pauses for about a second between a connection that
    failed it and the next. A closed connection that comes back is replaced at once.
    """

    waits: Waits
    prepare_threshold: int | None = PREPARE_AFTER
    permits: AsyncPermits
    _returning: Final = Tasks(log, "giving a connection back")

    async def getconn(self, timeout: float | None = None) -> AsyncConnection:
        """As in psycopg_pool, but what is in use is waited for until the deadline."""
        begun = time.monotonic()
        ends, seconds = patience(begun, timeout, self.timeout)
        try:
            with metered():
                permitted = await self.permits.acquire(ends - begun)
            if not permitted:
                raise pool_timeout(ends - begun)
            connection = await self.fetch(min(ends, time.monotonic() + seconds))
        except psycopg.OperationalError:
            self.waits.observe(begun, failed=True)
            raise
        self.waits.observe(begun)
        return connection

    async def fetch(self, ends: float) -> AsyncConnection:
        """A connection for the permit that one has, until ``ends`` (monotonic seconds), without counting the wait.

        The permit goes back with the connection, or at once if there is none.
        """
        try:
            connection = await self._usable(ends)
        except BaseException:
            self.permits.release()
            raise
        _drawn(connection)
        return connection

    async def _usable(self, ends: float) -> AsyncConnection:
        seconds = ends - time.monotonic()
        while True:
            try:
                with metered():
                    connection = await super().getconn(max(0.001, ends - time.monotonic()))
            except psycopg_pool.PoolTimeout as error:
                raise pool_timeout(seconds) from error
            if not connection.closed and not _readable(connection.fileno()):
                connection.prepare_threshold = self.prepare_threshold
                return connection
            await connection.close()
            await self._put_back(connection, lambda: None)

    async def putconn(self, connection: AsyncConnection) -> None:
        """As in psycopg_pool."""
        if _is_altered(connection):
            await _restore(connection)
        await self._put_back(connection, lambda: self._settle(connection))

    def _settle(self, connection: AsyncConnection) -> None:
        _returned(connection)
        self.permits.release()

    async def _put_back(self, connection: AsyncConnection, then: Callable[[], None]) -> None:
        """So that a cancellation on the way loses no connection. ``then``: once it is there."""
        if not self._lock.locked() and not self._waiting:
            await super().putconn(connection)  # nothing in there to wait for, so nowhere to be cancelled
            then()
            return

        def done(returning: asyncio.Task[None]) -> None:
            if not returning.cancelled() and returning.exception() is None:
                then()

        returning = self._returning.start(super().putconn(connection))
        returning.add_done_callback(done)
        await asyncio.shield(returning)

    def try_again(self) -> None:
        """No connection could be made for ``reconnect_timeout``. Who waits for one has not given up yet."""
        if self._waiting:
            self._maybe_grow_pool()


class ThreadPool(psycopg_pool.ConnectionPool[Connection]):
    """The same for threads."""

    waits: Waits
    prepare_threshold: int | None = PREPARE_AFTER
    permits: ThreadPermits

    def getconn(self, timeout: float | None = None) -> Connection:
        """As in psycopg_pool, but what is in use is waited for until the deadline, at which nothing can interrupt the
        waiting.
        """
        begun = time.monotonic()
        ends, seconds = patience(begun, timeout, self.timeout)
        held = holding.get()
        try:
            with nullcontext() if held is None else held.call.shield():
                with metered():
                    permitted = self.permits.acquire(ends - begun, None if held is None else held.turn())
                if not permitted:
                    raise pool_timeout(ends - begun)
                connection = self.fetch(min(ends, time.monotonic() + seconds))
        except psycopg.OperationalError:
            self.waits.observe(begun, failed=True)
            raise
        self.waits.observe(begun)
        return connection

    def fetch(self, ends: float) -> Connection:
        """A connection for the permit that one has, until ``ends`` (monotonic seconds), without counting the wait.

        The permit goes back with the connection, or at once if there is none.
        """
        try:
            connection = self._usable(ends)
        except BaseException:
            self.permits.release()
            raise
        _drawn(connection)
        held = holding.get()
        if held is not None:
            held.add(self, connection)
        return connection

    def _usable(self, ends: float) -> Connection:
        seconds = ends - time.monotonic()
        while True:
            try:
                with metered():
                    connection = super().getconn(max(0.001, ends - time.monotonic()))
            except psycopg_pool.PoolTimeout as error:
                raise pool_timeout(seconds) from error
            if not connection.closed and not _readable(connection.fileno()):
                connection.prepare_threshold = self.prepare_threshold
                return connection
            connection.close()
            super().putconn(connection)

    def putconn(self, connection: Connection) -> None:
        """As in psycopg_pool."""
        held = holding.get()
        if _is_altered(connection):
            _restore_in_thread(connection)
        if held is None:
            self._put_back(connection)
            return
        with held.call.shield():
            held.settle()
            self._put_back(connection)
            held.remove(connection)

    def _put_back(self, connection: Connection) -> None:
        super().putconn(connection)
        _returned(connection)
        self.permits.release()

    def try_again(self) -> None:
        """No connection could be made for ``reconnect_timeout``. Who waits for one has not given up yet."""
        with self._lock:
            if self._waiting:
                self._maybe_grow_pool()
