"""Ending the database sessions that a killed worker left behind.

PostgreSQL notices that a client is gone only when it talks to it next; until then a long statement runs on, and holds
its locks. A dead worker's scoreboard shows which backends it used. They are ended over one connection that the
supervisor keeps for it, and only while they still carry the worker's ``application_name``: a process id may have been
given to another since.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Any, Final

import psycopg

from penstock.ipc.libpq import AsyncConnection
from penstock.ipc.tasks import Tasks

log = logging.getLogger("penstock.sessions")

TIMEOUT: Final = 5.0
"""Seconds for connecting and for ending sessions."""

_END: Final = (
    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND pid = ANY(%s)"
)


class Sessions:
    """The supervisor's own connection, made when it is first needed."""

    def __init__(self) -> None:
        self._dsn = ""
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()
        self._tasks = Tasks(log, "ending database sessions")

    def start(self, dsn: str) -> None:
        """Workers use this database from now on."""
        self._dsn = dsn

    def end(self, worker: str, application: str, backends: Collection[int]) -> asyncio.Task[None]:
        """End these backends if they are sessions of this application, in the background. Done also if that failed.

        ``worker``: for the log.
        """
        return self._tasks.start(self._end(application, list(backends), {"worker": worker}))

    async def _end(self, application: str, backends: list[int], fields: dict[str, str]) -> None:
        try:
            async with self._lock, asyncio.timeout(TIMEOUT):
                connection = await self._open()
                rows = await (await connection.execute(_END, (application, backends))).fetchall()
                log.info("ended %d database sessions of %s", len(rows), application, extra=fields)
        except (psycopg.Error, TimeoutError) as error:
            why = error or "timed out"
            log.warning("database sessions of %s could not be ended: %s", application, why, extra=fields)
            await self._drop()

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = await AsyncConnection.connect(
                self._dsn,
                autocommit=True,
                application_name="penstock supervisor",
                connect_timeout=int(TIMEOUT),
                prepare_threshold=None,  # there may be a pooler in between, and it would gain nothing
            )
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def close(self) -> None:
        """Wait for what is being ended, and close the connection."""
        await self._tasks.wait(TIMEOUT)
        await self._drop()
