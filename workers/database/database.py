"""The worker's two psycopg pools, held to what the supervisor grants.

The daemon as a whole may hold ``database.max_connections``; the supervisor counts and tells each worker how many its
pool of each kind may have (``Grant``). A pool is opened by the first grant, and its connections are made when they are
first needed. Whatever takes a connection takes a permit first, and permits are as many as the grant: so a grant that
shrinks is kept even while calls queue up, since the connections beyond it find themselves idle, are closed, and
``Released`` says so.

A permit is waited for until the deadline, since the others are in use and will come back. With a permit a connection
should be there, and ``acquire_timeout`` is the patience for that. Only a call that holds a connection already waits for
the permit of a further one no longer than that, lest two of them wait for each other.

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
import math
import select
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from contextvars import ContextVar, copy_context
from typing import Any, Final

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from penstock.ipc.log import get_logger
from penstock.ipc.messages import WAIT_BOUNDS, DatabaseAccess, PoolStatistics
from penstock.ipc.tasks import Tasks

from ..concurrency import remaining
from ..threads import Job
from .metering import AsyncConnection as AsyncConnection
from .metering import Connection as Connection
from .metering import meter, metered
from .permits import AsyncPermits, ThreadPermits, Turn

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


def _patience(begun: float, timeout: float | None, usual: float) -> tuple[float, float]:
    """Until when (monotonic seconds) a permit is waited for, and how many seconds then for the connection.

    ``timeout``: as somebody gave it to a pool, ``usual``: the pool's own.
    """
    left = remaining()
    call = meter.get()
    if timeout is None and call is not None and not call.holds and left < math.inf:
        return begun + left, usual
    seconds = min(usual if timeout is None else timeout, left)
    return begun + seconds, seconds


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
        ends, seconds = _patience(begun, timeout, self.timeout)
        try:
            with metered():
                permitted = await self.permits.acquire(ends - begun)
            if not permitted:
                raise _pool_timeout(ends - begun)
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
                raise _pool_timeout(seconds) from error
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
        ends, seconds = _patience(begun, timeout, self.timeout)
        held = holding.get()
        try:
            with nullcontext() if held is None else held.job.whole():
                with metered():
                    permitted = self.permits.acquire(ends - begun, None if held is None else held.turn())
                if not permitted:
                    raise _pool_timeout(ends - begun)
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
                raise _pool_timeout(seconds) from error
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
        with held.job.whole():
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


class Holding:
    """The connections that one sync call holds, its own and those it took from a pool that it was handed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._lock = threading.Lock()
        self._held: list[tuple[ThreadPool, Connection]] = []
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

    def add(self, pool: ThreadPool, connection: Connection) -> None:
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
        self._async_opened = asyncio.Event()
        self._sync_opened = threading.Event()
        self._shrinking = Tasks(log, "shrinking a connection pool")
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
                self._shrinking.start(self._shrink(kind, connections))
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
            "reconnect_failed": lambda pool: pool.try_again(),
        }
        if kind == "async":
            if self.async_pool is None:
                pool = AsyncPool(self._access.dsn, **settings)
                pool.waits, pool.permits = self._waits[kind], self._async_permits
                pool.prepare_threshold = self._prepare_threshold
                await pool.open()
                self.async_pool = pool
                self._async_opened.set()
            await self.async_pool.resize(0, connections)
        else:
            if self.sync_pool is None:
                threaded = ThreadPool(self._access.dsn, **settings)
                threaded.waits, threaded.permits = self._waits[kind], self._thread_permits
                threaded.prepare_threshold = self._prepare_threshold
                threaded.open()
                self.sync_pool = threaded
                self._sync_opened.set()
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

    def _check_on(self) -> DatabaseAccess:
        if self._access is None:
            raise Unavailable("database-unavailable", "the database is off (database.dsn)")
        return self._access

    def _none(self, deadline: float) -> Unavailable:
        if time.monotonic() >= deadline - 0.001:
            return Unavailable("deadline-exceeded", "the deadline was over before there was a database connection")
        seconds = self._check_on().acquire_timeout
        return Unavailable("database-unavailable", f"there was no database connection within {seconds:g} s")

    @asynccontextmanager
    async def connection(self, deadline: float) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A connection in a transaction: committed at the end, rolled back by an exception (``Unavailable``)."""
        patience = self._check_on().acquire_timeout
        begun, waits = time.monotonic(), self._waits["async"]
        try:
            with metered():
                permitted = await self._async_permits.acquire(deadline - begun)
            if not permitted:
                raise self._none(deadline)
            pool = self.async_pool
            assert pool is not None, "permits follow the pool"
            connection = await pool.fetch(min(deadline, time.monotonic() + patience))
        except (Unavailable, psycopg.OperationalError) as error:
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
            await pool.putconn(connection)

    @contextmanager
    def connection_in_thread(self, deadline: float) -> Iterator[psycopg.Connection[Any]]:
        """The same for the thread of a sync agent."""
        patience = self._check_on().acquire_timeout
        begun, waits, held = time.monotonic(), self._waits["sync"], holding.get()
        try:
            with metered():
                turn = None if held is None else held.turn()
                permitted = self._thread_permits.acquire(deadline - begun, turn)
            if not permitted:
                raise self._none(deadline)
            pool = self.sync_pool
            assert pool is not None, "permits follow the pool"
            connection = pool.fetch(min(deadline, time.monotonic() + patience))
        except (Unavailable, psycopg.OperationalError) as error:
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
            pool.putconn(connection)

    async def pool(self, deadline: float) -> AsyncPool:
        """The pool itself, for agents that ask for it (``Unavailable``)."""
        patience = self._check_on().acquire_timeout
        if self.async_pool is None:
            # A call can be here before the first grant, which follows the worker's being ready.
            with metered(), suppress(TimeoutError):
                async with asyncio.timeout(min(patience, deadline - time.monotonic())):
                    await self._async_opened.wait()
        if self.async_pool is None:
            raise self._none(deadline)
        return self.async_pool

    def pool_in_thread(self, deadline: float) -> ThreadPool:
        """The same for the thread of a sync agent."""
        patience = self._check_on().acquire_timeout
        if self.sync_pool is None:
            with metered():
                self._sync_opened.wait(max(0.0, min(patience, deadline - time.monotonic())))
        if self.sync_pool is None:
            raise self._none(deadline)
        return self.sync_pool

    async def close(self) -> None:
        """Close all connections."""
        self._shrinking.cancel()
        if self.async_pool is not None:
            await self.async_pool.close(1.0)
        if self.sync_pool is not None:
            self.sync_pool.close(1.0)
