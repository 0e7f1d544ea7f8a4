"""A worker's pools and a server that comes, goes, and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.ipc.messages import DatabaseAccess
from penstock.workers.database import Database, Unavailable
from tests.fix_daemon import until
from tests.fix_postgres import serving, short_directory


@asynccontextmanager
async def database(dsn: str, patience: float) -> AsyncIterator[Database]:
    made = Database(DatabaseAccess(dsn, patience), "test", lambda kind, share: None)
    try:
        yield made
    finally:
        await made.close()


async def ask(made: Database, kind: str) -> object:
    """A round trip by a connection of this kind."""
    deadline = time.monotonic() + 60.0
    if kind == "async":
        async with made.connection(deadline) as connection:
            cursor = await connection.execute("SELECT 1")
            return (await cursor.fetchone() or ("nothing",))[0]

    def work() -> object:
        with made.connection_in_thread(deadline) as connection:
            return (connection.execute("SELECT 1").fetchone() or ("nothing",))[0]

    return await asyncio.to_thread(work)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_who_waits_while_the_server_is_away_gets_a_connection_when_it_is_back(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Longer than psycopg_pool goes on trying: a call that waits must not need another one to come for the next try."""

    async def main(server: str, path: Path) -> None:
        async with database(server.replace(socket, str(path)), 40.0) as made:
            await made.grant(kind, 1)
            waiting = asyncio.create_task(ask(made, kind))
            await until(lambda: "reconnection attempt" in caplog.text, "the pool has given up")
            path.symlink_to(socket)
            assert await asyncio.wait_for(waiting, 30.0) == 1

    with serving() as dsn, short_directory() as made:
        socket = next(part.partition("=")[2] for part in dsn.split() if part.startswith("host="))
        asyncio.run(main(dsn, made / "socket"))


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_acquire_timeout_is_for_connections_that_should_be_free(kind: str) -> None:
    async def main() -> None:
        async with database("host=/nowhere/at/all", 0.2) as made:
            await made.grant(kind, 2)
            results = await asyncio.gather(*(ask(made, kind) for _ in range(4)), return_exceptions=True)
            assert {getattr(each, "problem", each) for each in results} == {"database-unavailable"}
            assert all(isinstance(each, Unavailable) for each in results)
            permits = made._async_permits if kind == "async" else made._thread_permits
            assert (permits.held, permits.waiting) == (0, 0), "what failed holds no permit"

    asyncio.run(main())
