"""The worker's two psycopg pools, held to what the supervisor grants.

The daemon as a whole may hold ``database.max_connections``; the supervisor counts and tells each worker how many its
pool of each kind may have (``Grant``). A pool is opened by the first grant, and its connections are made when they are
first needed. A call takes a permit before it takes a connection, permits are as many as the grant: so a grant that
shrinks is kept even while calls queue up, since the connections beyond it find themselves idle, are closed, and
``Released`` says so.

A session that the database cut (a restart, ``pg_terminate_backend``) shows on its socket: an idle connection with
something to read was told of its end. So the check at getconn is one ``poll`` of a descriptor, not a round trip.

Statements that are used often are prepared by psycopg, under names that are the session's. Behind a pooler that gives
each transaction another session that fails; where it was not configured away, the first such failure ends it.

Cancelling a statement asks the server over a second connection, and what was asked may come true late. So a connection
of a thread goes back to its pool only when nothing is being cancelled on it any more; otherwise the next call's
statement could be the one that is hit. (psycopg does the same by itself for coroutines.)
"""

from __future__ import annotations

import asyncio
import select
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, Final

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from penstock.ipc.log import get_logger
from penstock.ipc.messages import WAIT_BOUNDS, DatabaseAccess, PoolStatistics

from .concurrency import remaining
from .metering import AsyncConnection as AsyncConnection
from .metering import Connection as Connection
from .metering import metered
from .threads import Job

log = get_logger("penstock.database")

OF_ANOTHER_SESSION: Final = (psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName)
"""How a prepared statement fails in a session where it is not, or where another's has its name."""

SHRINK_INTERVAL: Final = 0.02
"""Seconds between two looks for idle connections while a pool has to shrink."""

CANCEL_PATIENCE: Final = 0.5
"""Seconds that asking the server to cancel a statement may take."""

PREPARE_AFTER: Final = 5
"""Executions of a statement after which it is prepared: psycopg's own default."""

_access: DatabaseAccess | None = None


def dsn() -> str | None:
    """Where PostgreSQL is, for code that connects by itself (a start hook, say); None while the database is off.

    For the embedded server it leaves little to libpq's environment. For that not to count at all, connect by
    ``AsyncConnection.connect`` or ``Connection.connect`` of this module, which are psycopg's otherwise.
    """
    return None if _access is None else _access.dsn


def prepare_threshold() -> int | None:
    """What code that connects by itself passes to psycopg by this name, as ``database.prepared_statements`` says."""
    return PREPARE_AFTER if _access is None or _access.prepared_statements else None


class Unavailable(Exception):
    """No connection could be had. ``problem`` is ``database-unavailable`` or ``deadline-exceeded``."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail


class PoolTimeout(Unavailable, psycopg_pool.PoolTimeout):
    """The same from a pool that an agent was handed, where psycopg_pool's users expect its own exception."""


def _pool_timeout(seconds: float) -> PoolTimeout:
    if remaining() <= 0.001:
        return PoolTimeout("deadline-exceeded", "the deadline was over before there was a database connection")
    return PoolTimeout("database-unavailable", f"there was no database connection within {seconds:.3g} s")


def _readable(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


class Waits:
    """How long connections of one kind were waited for since the last look. For coroutines and threads alike."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(WAIT_BOUNDS) + 1)
        self._seconds = 0.0
        self._errors = 0

    def observe(self, since: float, failed: bool = False) -> None:
        """A wait that began at ``since`` (monotonic seconds) has ended."""
        seconds = time.monotonic() - since
        with self._lock:
            self._counts[bisect_left(WAIT_BOUNDS, seconds)] += 1
            self._seconds += seconds
            self._errors += failed

    def take(self) -> tuple[list[int], float, int]:
        """Counts by ``WAIT_BOUNDS``, seconds and errors; from now on they are counted anew."""
        with self._lock:
            taken = self._counts, self._seconds, self._errors
            self._counts, self._seconds, self._errors = [0] * (len(WAIT_BOUNDS) + 1), 0.0, 0
        return taken


def _is_altered(connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> bool:
    """Whether an agent changed how the connection's transactions begin. What it makes of rows is put back here.

    (What an agent sets in the session itself, by SQL, stays: a round trip for each call is too dear.)
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


class AsyncPool(psycopg_pool.AsyncConnectionPool[psycopg.AsyncConnection[Any]]):
    """A pool that gives no connection whose session was cut.

    psycopg_pool's own ``check`` would do, but it pauses for about a second between a connection that failed it and the
    next. A closed connection that comes back is replaced at once.
    """

    waits: Waits
    prepare_threshold: int | None = PREPARE_AFTER
    _returning: Final[set[asyncio.Future[None]]] = set()
    """What goes on by itself, so that somebody holds it."""

    async def getconn(self, timeout: float | None = None) -> psycopg.AsyncConnection[Any]:
        """As in psycopg_pool."""
        begun = time.monotonic()
        try:
            connection = await self.fetch(begun + (self.timeout if timeout is None else timeout))
        except psycopg.OperationalError:
            self.waits.observe(begun, failed=True)
            raise
        self.waits.observe(begun)
        return connection

    async def fetch(self, ends: float) -> psycopg.AsyncConnection[Any]:
        """A connection, until ``ends`` (monotonic seconds), without counting the wait."""
        seconds = ends - time.monotonic()
        while True:
            try:
                with metered():
                    connection = await super().getconn(max(0.001, ends - time.monotonic()))
            except psycopg_pool.PoolTimeout as error:
                raise _pool_timeout(seconds) from error
            if not connection.closed and not _readable(connection.fileno()):
                connection.prepare_threshold = self.prepare_threshold
                return connection
            await connection.close()
            await self.putconn(connection)

    async def putconn(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """As in psycopg_pool, but a cancellation on the way loses no connection."""
        if _is_altered(connection):
            await _restore(connection)
        if not self._lock.locked() and not self._waiting:
            await super().putconn(connection)  # nothing in there to wait for, so nowhere to be cancelled
            return
        returning = asyncio.ensure_future(super().putconn(connection))
        self._returning.add(returning)
        returning.add_done_callback(self._returning.discard)
        await asyncio.shield(returning)


class ThreadPool(psycopg_pool.ConnectionPool[psycopg.Connection[Any]]):
    """The same for threads."""

    waits: Waits
    prepare_threshold: int | None = PREPARE_AFTER

    def getconn(self, timeout: float | None = None) -> psycopg.Connection[Any]:
        """As in psycopg_pool, but no longer than the call's deadline, at which nothing can interrupt the waiting."""
        begun = time.monotonic()
        try:
            connection = self.fetch(begun + min(self.timeout if timeout is None else timeout, remaining()))
        except psycopg.OperationalError:
            self.waits.observe(begun, failed=True)
            raise
        self.waits.observe(begun)
        return connection

    def fetch(self, ends: float) -> psycopg.Connection[Any]:
        """A connection, until ``ends`` (monotonic seconds), without counting the wait."""
        held = holding.get()
        if held is None:
            return self._usable(ends)
        with held.job.whole():
            connection = self._usable(ends)
            held.add(self, connection)
        return connection

    def _usable(self, ends: float) -> psycopg.Connection[Any]:
        seconds = ends - time.monotonic()
        while True:
            try:
                with metered():
                    connection = super().getconn(max(0.001, ends - time.monotonic()))
            except psycopg_pool.PoolTimeout as error:
                raise _pool_timeout(seconds) from error
            if not connection.closed and not _readable(connection.fileno()):
                connection.prepare_threshold = self.prepare_threshold
                return connection
            connection.close()
            super().putconn(connection)

    def putconn(self, connection: psycopg.Connection[Any]) -> None:
        """As in psycopg_pool."""
        held = holding.get()
        if _is_altered(connection):
            _restore_in_thread(connection)
        if held is None:
            super().putconn(connection)
            return
        with held.job.whole():
            held.settle()
            super().putconn(connection)
            held.remove(connection)


class Holding:
    """The connections that one sync call holds, its own and those it took from a pool that it was handed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._lock = threading.Lock()
        self._held: list[tuple[ThreadPool, psycopg.Connection[Any]]] = []
        self._cancelling: threading.Thread | None = None
        self._context = copy_context()
        """Of the call, so that the log knows which it was whose statement is cancelled."""

    def add(self, pool: ThreadPool, connection: psycopg.Connection[Any]) -> None:
        with self._lock:
            self._held.append((pool, connection))

    def remove(self, connection: psycopg.Connection[Any]) -> None:
        with self._lock:
            self._held = [each for each in self._held if each[1] is not connection]

    def cancel(self, then: Callable[[], None]) -> bool:
        """Have the statements that run cancelled and then call ``then``; False, and nothing, without a connection.

        On a thread of its own: it takes a round trip to the server, which must not hold up the loop.
        """
        with self._lock:
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


class AsyncPermits:
    """Permits for coroutines, in the order they asked."""

    def __init__(self) -> None:
        self.limit = 0
        self.held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def resize(self, limit: int) -> None:
        self.limit = limit
        self._wake()

    @property
    def waiting(self) -> int:
        return sum(not waiter.done() for waiter in self._waiting)

    def _wake(self) -> None:
        while self._waiting and self.held < self.limit:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self.held += 1
                waiter.set_result(None)

    async def acquire(self, timeout: float) -> bool:
        """False: there was none within ``timeout`` seconds."""
        if self.held < self.limit and not self._waiting:
            self.held += 1
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting.append(waiter)
        timer = loop.call_later(max(0.0, timeout), waiter.cancel)
        try:
            await waiter
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if waiter.done() and not waiter.cancelled():
                self.release()
            else:
                waiter.cancel()
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
            if task is not None and task.cancelling():
                raise
            return False
        finally:
            timer.cancel()
        return True

    def release(self) -> None:
        self.held -= 1
        self._wake()


class ThreadPermits:
    """Permits for threads."""

    def __init__(self) -> None:
        self.limit = 0
        self.held = 0
        self.waiting = 0
        self._changed = threading.Condition()

    def resize(self, limit: int) -> None:
        with self._changed:
            self.limit = limit
            self._changed.notify_all()

    def acquire(self, timeout: float) -> bool:
        """False: there was none within ``timeout`` seconds."""
        with self._changed:
            self.waiting += 1
            try:
                if not self._changed.wait_for(lambda: self.held < self.limit, max(0.0, timeout)):
                    return False
            finally:
                self.waiting -= 1
            self.held += 1
            return True

    def release(self) -> None:
        with self._changed:
            self.held -= 1
            self._changed.notify()


async def _roll_back(connection: psycopg.AsyncConnection[Any]) -> None:
    try:
        if connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            # Left in the middle of a statement, which nobody will read to its end.
            await connection.cancel_safe(timeout=CANCEL_PATIENCE)
            await connection.close()
        else:
            await connection.rollback()
    except psycopg.Error as error:
        # The pool closes what comes back broken; the agent's own exception says why it is.
        log.debug("a connection could not be rolled back: %s", error)


def _roll_back_in_thread(connection: psycopg.Connection[Any]) -> None:
    try:
        if connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            connection.cancel_safe(timeout=CANCEL_PATIENCE)
            connection.close()
        else:
            connection.rollback()
    except psycopg.Error as error:
        log.debug("a connection could not be rolled back: %s", error)


class Database:
    """Both pools of one worker."""

    def __init__(self, access: DatabaseAccess | None, application: str, released: Callable[[str, int], None]) -> None:
        """``application``: the sessions' ``application_name``. ``released`` is called with the kind and the number of
        connections once a pool has shrunk to its grant.
        """
        global _access
        _access = access
        self._access = access
        self._application = application
        self._released = released
        self.async_pool: AsyncPool | None = None
        self.sync_pool: ThreadPool | None = None
        self._async_permits = AsyncPermits()
        self._thread_permits = ThreadPermits()
        self._shrinking: set[asyncio.Task[None]] = set()
        self._granted = {"async": 0, "sync": 0}
        self._waits = {"async": Waits(), "sync": Waits()}
        self._reported: dict[str, tuple[int, int, int, int]] = {}
        self._granting = {"async": asyncio.Lock(), "sync": asyncio.Lock()}
        self._prepare_threshold = prepare_threshold()

    # Grants

    async def grant(self, kind: str, connections: int) -> None:
        """The pool of this kind may hold so many connections from now on."""
        permits = self._async_permits if kind == "async" else self._thread_permits
        # Opening and resizing wait: a second grant must not overtake the first.
        async with self._granting[kind]:
            before, self._granted[kind] = self._granted[kind], connections
            if connections < before:
                permits.resize(connections)
                task = asyncio.create_task(self._shrink(kind, connections))
                self._shrinking.add(task)
                task.add_done_callback(self._shrinking.discard)
            else:
                await self._grow(kind, connections)
                permits.resize(connections)

    async def _grow(self, kind: str, connections: int) -> None:
        assert self._access is not None
        settings: dict[str, Any] = {
            "min_size": 0,
            "max_size": connections,
            "open": False,
            "timeout": self._access.acquire_timeout,
            "kwargs": {"application_name": self._application, "connect_timeout": 10},
            "reconnect_timeout": 2.0,
            "num_workers": 2,
            "connection_class": AsyncConnection if kind == "async" else Connection,
        }
        if kind == "async":
            if self.async_pool is None:
                self.async_pool = AsyncPool(self._access.dsn, **settings)
                self.async_pool.waits = self._waits[kind]
                self.async_pool.prepare_threshold = self._prepare_threshold
                await self.async_pool.open()
            await self.async_pool.resize(0, connections)
        else:
            if self.sync_pool is None:
                self.sync_pool = ThreadPool(self._access.dsn, **settings)
                self.sync_pool.waits = self._waits[kind]
                self.sync_pool.prepare_threshold = self._prepare_threshold
                self.sync_pool.open()
            self.sync_pool.resize(0, connections)

    async def _shrink(self, kind: str, connections: int) -> None:
        """Close what is idle beyond the grant, until no more than the grant is left."""
        pool: Any = self.async_pool if kind == "async" else self.sync_pool
        if pool is not None:
            # psycopg_pool shrinks by itself, but one connection every max_idle; the step that it takes is asked for
            # here.
            resized = pool.resize(0, max(1, connections))
            if kind == "async":
                await resized
            while pool.get_stats()["pool_size"] > connections:
                if self._granted[kind] != connections:
                    return  # there was another grant meanwhile, which is what counts
                shrunk = pool._shrink_pool()
                if kind == "async":
                    await shrunk
                await asyncio.sleep(SHRINK_INTERVAL)
        if self._granted[kind] == connections:
            self._released(kind, connections)

    def learn(self, failure: BaseException) -> None:
        """Prepare no more statements if a call failed by one that psycopg had prepared in another session."""
        if self._prepare_threshold is None or not isinstance(failure, OF_ANOTHER_SESSION):
            return
        if '"_pg3_' not in str(failure):
            return  # one that the agent itself has prepared
        self._prepare_threshold = None
        for pool in (self.async_pool, self.sync_pool):
            if pool is not None:
                pool.prepare_threshold = None
        log.warning(
            "each transaction gets another session, from a pooler in between: statements are not prepared any more by"
            " this worker; set database.prepared_statements = false"
        )

    def statistics(self) -> list[PoolStatistics]:
        """Of the pools that have changed since the last look."""
        pools: list[tuple[str, AsyncPool | ThreadPool | None, int]] = [
            ("async", self.async_pool, self._async_permits.waiting),
            ("sync", self.sync_pool, self._thread_permits.waiting),
        ]
        found = []
        for kind, pool, waiting in pools:
            if pool is None and not waiting:
                continue
            counts, seconds, errors = self._waits[kind].take()
            held = {} if pool is None else pool.get_stats()
            size, available = held.get("pool_size", 0), held.get("pool_available", 0)
            now = size, available, waiting + held.get("requests_waiting", 0), self._granted[kind]
            if any(counts) or now != self._reported.get(kind):
                self._reported[kind] = now
                found.append(PoolStatistics(kind, *now, counts, seconds, errors))
        return found

    # Connections

    def _budget(self, deadline: float) -> float:
        """Seconds that a call may wait for a connection (``Unavailable`` if there can be none)."""
        if self._access is None:
            raise Unavailable("database-unavailable", "the database is off (database.dsn)")
        return min(self._access.acquire_timeout, deadline - time.monotonic())

    def _none(self, deadline: float) -> Unavailable:
        if time.monotonic() >= deadline - 0.001:
            return Unavailable("deadline-exceeded", "the deadline was over before there was a database connection")
        assert self._access is not None
        return Unavailable(
            "database-unavailable", f"there was no database connection within {self._access.acquire_timeout:g} s"
        )

    @asynccontextmanager
    async def connection(self, deadline: float) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A connection in a transaction: committed at the end, rolled back by an exception (``Unavailable``)."""
        begun, wait, waits = time.monotonic(), self._budget(deadline), self._waits["async"]
        with metered():
            permitted = await self._async_permits.acquire(wait)
        if not permitted:
            waits.observe(begun, failed=True)
            raise self._none(deadline)
        try:
            assert self.async_pool is not None
            try:
                connection = await self.async_pool.fetch(begun + wait)
            except (psycopg_pool.PoolTimeout, psycopg.OperationalError) as error:
                waits.observe(begun, failed=True)
                raise self._none(deadline) from error
            waits.observe(begun)
            try:
                yield connection
                await connection.commit()
            except BaseException:
                await _roll_back(connection)
                raise
            finally:
                await self.async_pool.putconn(connection)
        finally:
            self._async_permits.release()

    @contextmanager
    def connection_in_thread(self, deadline: float) -> Iterator[psycopg.Connection[Any]]:
        """The same for the thread of a sync agent."""
        begun, wait, waits = time.monotonic(), self._budget(deadline), self._waits["sync"]
        with metered():
            permitted = self._thread_permits.acquire(wait)
        if not permitted:
            waits.observe(begun, failed=True)
            raise self._none(deadline)
        try:
            assert self.sync_pool is not None
            try:
                connection = self.sync_pool.fetch(begun + wait)
            except (psycopg_pool.PoolTimeout, psycopg.OperationalError) as error:
                waits.observe(begun, failed=True)
                raise self._none(deadline) from error
            waits.observe(begun)
            try:
                yield connection
                connection.commit()
            except BaseException:
                _roll_back_in_thread(connection)
                raise
            finally:
                self.sync_pool.putconn(connection)
        finally:
            self._thread_permits.release()

    async def pool(self, deadline: float) -> AsyncPool:
        """The pool itself, for agents that ask for it (``Unavailable``)."""
        if self.async_pool is None:
            # A call can be here before the first grant, which follows the worker's being ready.
            with metered():
                permitted = await self._async_permits.acquire(self._budget(deadline))
            if not permitted:
                raise self._none(deadline)
            self._async_permits.release()
        assert self.async_pool is not None
        return self.async_pool

    def pool_in_thread(self, deadline: float) -> ThreadPool:
        """The same for the thread of a sync agent."""
        if self.sync_pool is None:
            with metered():
                permitted = self._thread_permits.acquire(self._budget(deadline))
            if not permitted:
                raise self._none(deadline)
            self._thread_permits.release()
        assert self.sync_pool is not None
        return self.sync_pool

    async def close(self) -> None:
        """Close all connections."""
        for task in self._shrinking:
            task.cancel()
        if self.async_pool is not None:
            await self.async_pool.close(1.0)
        if self.sync_pool is not None:
            self.sync_pool.close(1.0)
