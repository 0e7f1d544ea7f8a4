"""The worker's two psycopg pools, held to what the supervisor grants.

The daemon as a whole may hold ``database.max_connections``; the supervisor counts and tells each worker how many its
pool of each kind may have (``Grant``). A pool is opened by the first grant, and its connections are made when they are
first needed. Whatever takes a connection takes a permit first, and permits are as many as the grant: so a grant that
shrinks is kept even while calls queue up, since the connections beyond it find themselves idle, are closed, and
``Released`` says so.

A permit is waited for until the deadline, since the others are in use and will come back. With a permit a connection
should be there, and ``acquire_timeout`` is the patience for that. Only a call that holds a connection already waits for
the permit of a further one no longer than that, so that two of them do not wait for each other for ever.

Statements that are used often are prepared by psycopg, under names that are the session's. Behind a pooler that gives
each transaction another session that fails; where it was not configured away, the first such failure ends it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus

from penstock.ipc.log import get_logger
from penstock.ipc.messages import DatabaseAccess, PoolStatistics
from penstock.ipc.tasks import Tasks

from .access import prepare_threshold, set_access
from .holding import CANCEL_PATIENCE, holding
from .metering import AsyncConnection, Connection, metered
from .permits import AsyncPermits, ThreadPermits
from .pools import AsyncPool, ThreadPool
from .waiting import Unavailable, Waits

log = get_logger("penstock.database")

OF_ANOTHER_SESSION: Final = (psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName)
"""How a prepared statement fails in a session where it is not, or where another's has its name."""

SHRINK_INTERVAL: Final = 0.02
"""Seconds between two looks for idle connections while a pool has to shrink."""


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
        set_access(access)
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
            "a pooler gives each transaction another session, so this worker stops preparing statements;"
            " set database.prepared_statements = false"
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
            calls = waiting + held.get("requests_waiting", 0)
            now = size, available, calls, self._granted[kind]
            if any(counts) or now != self._reported.get(kind):
                self._reported[kind] = now
                found.append(
                    PoolStatistics(
                        kind=kind,
                        size=size,
                        available=available,
                        waiting=calls,
                        granted=self._granted[kind],
                        waits=counts,
                        wait_seconds=seconds,
                        errors=errors,
                    )
                )
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
