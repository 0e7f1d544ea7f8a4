"""The full-text index that ``search`` and ``answer`` look into: made once, by one of all workers, of all daemons.

Whoever holds an advisory lock in the database makes it; the others wait for the lock and find it made. It is made in
one transaction, so there is never half of one, an older one serves until then, and a worker that dies in the middle
leaves nothing. The edition says from which Python and in which form it was made; another one is made anew.

The database is not a condition for serving: where it cannot be reached the worker starts without it, and goes on trying
beside its work, so that the agents that need no database serve in any case.
"""

from __future__ import annotations

import asyncio
import json
import platform
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from penstock.ipc.log import get_logger

from ..database import AsyncConnection, prepare_threshold

log = get_logger("penstock.demo")

FORM: Final = 1
"""To be counted up with every change to what is extracted or how it is indexed."""

EDITION: Final = f"{FORM}/{platform.python_version()}"
LOCK: Final = 0x70656E7364656D6F
"""The advisory lock's number ("pensdemo")."""

CONNECT_TIMEOUT: Final = 3
RETRY: Final = 5.0
"""Seconds until the next try where the database could not be had."""

PROGRESS: Final = 2000
"""Entries between two lines of the log."""

# Not to_regclass: after the wait for the lock that would still answer from what the session knew before.
_TABLES_QUERY: Final = """
SELECT count(*) FROM pg_tables WHERE schemaname = 'penstock_demo' AND tablename IN ('edition', 'entry')
"""
_EDITION_QUERY: Final = "SELECT 1 FROM penstock_demo.edition WHERE edition = %s"
_FOUNDATION: Final = """
CREATE SCHEMA IF NOT EXISTS penstock_demo;
CREATE TABLE IF NOT EXISTS penstock_demo.edition (
    edition text NOT NULL,
    entries int NOT NULL,
    made_at timestamptz NOT NULL
)
"""
# The parser takes os.path for a host and read_text for two words: so the names are taken apart, at dots, underscores
# and where capitals begin, and kept whole as well. The first paragraph of a docstring counts more than the rest.
_TABLE: Final = r"""
CREATE TABLE penstock_demo.entry_new (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    module text NOT NULL,
    kind text NOT NULL,
    signature text NOT NULL,
    doc text NOT NULL,
    document tsvector NOT NULL GENERATED ALWAYS AS (
        setweight(to_tsvector('english', replace(name, '.', ' ')), 'A')
        || setweight(to_tsvector('english', regexp_replace(name, '([a-z0-9])([A-Z])|[._]', '\1 \2', 'g')), 'A')
        || setweight(to_tsvector('english', translate(split_part(doc, E'\n\n', 1), './()', '    ')), 'B')
        || setweight(to_tsvector('english', translate(doc, './()', '    ')), 'D')
    ) STORED
)
"""
_COPY: Final = "COPY penstock_demo.entry_new (name, module, kind, signature, doc) FROM STDIN"
_FINISH: Final = """
CREATE INDEX ON penstock_demo.entry_new USING gin (document);
ANALYZE penstock_demo.entry_new;
DROP TABLE IF EXISTS penstock_demo.entry;
ALTER TABLE penstock_demo.entry_new RENAME TO entry;
TRUNCATE penstock_demo.edition
"""
_MADE: Final = "INSERT INTO penstock_demo.edition VALUES (%s, %s, now())"


class ExtractError(Exception):
    """The documentation could not be read."""


class Keeper:
    """Sees to it that the index is there."""

    def __init__(self, retry: float = RETRY) -> None:
        """``retry``: seconds between two tries."""
        self._retry = retry
        self.trying: asyncio.Task[None] | None = None
        """Ends when the index is there; None if it was there, or made, at once."""

    async def begin(self, dsn: str) -> None:
        """Make the index if it is missing; if that cannot be done now, return and go on trying."""
        if not await self._tried(dsn):
            self.trying = asyncio.create_task(self._try_on(dsn))

    async def _try_on(self, dsn: str) -> None:
        while True:
            await asyncio.sleep(self._retry)
            if await self._tried(dsn):
                return

    async def _tried(self, dsn: str) -> bool:
        try:
            await ensure(dsn)
        except (psycopg.Error, ExtractError, OSError) as error:
            log.warning("search and answer do not work yet; trying again in %g s: %s", self._retry, error)
            return False
        return True

    def end(self) -> None:
        """Stop trying."""
        if self.trying is not None:
            self.trying.cancel()


async def ensure(dsn: str) -> bool:
    """Make the index if our edition is not there; whether it was made now (``psycopg.Error``, ``ExtractError``)."""
    connection = await AsyncConnection.connect(
        dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT, prepare_threshold=prepare_threshold()
    )
    async with connection:
        if await _is_there(connection):
            return False
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            if await _is_there(connection):
                return False
            await _make(connection)
        return True


async def _is_there(connection: psycopg.AsyncConnection[Any]) -> bool:
    if await (await connection.execute(_TABLES_QUERY)).fetchone() != (2,):
        return False
    return await (await connection.execute(_EDITION_QUERY, [EDITION])).fetchone() is not None


async def _make(connection: psycopg.AsyncConnection[Any]) -> None:
    started = time.monotonic()
    log.info("indexing the standard library: reading its documentation")
    async with _extracted() as (total, entries):
        await connection.execute(_FOUNDATION)
        await connection.execute(_TABLE)
        count = 0
        async with connection.cursor().copy(_COPY) as copy:
            async for entry in entries:
                await copy.write_row(entry)
                count += 1
                if count % PROGRESS == 0:
                    log.info("indexing the standard library: %d of %d entries", count, total)
    if count != total:
        raise ExtractError(f"the reader of the documentation ended after {count} of {total} entries")
    await connection.execute(_FINISH)
    await connection.execute(_MADE, [EDITION, count])
    log.info("indexed the standard library: %d entries in %.1f s", count, time.monotonic() - started)


@asynccontextmanager
async def _extracted() -> AsyncIterator[tuple[int, AsyncIterator[list[str]]]]:
    """The number of entries, and the entries as they come from a process of their own (``ExtractError``)."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(Path(__file__).with_name("extract.py"))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    assert process.stdout is not None
    try:
        first = await process.stdout.readline()
        if not first:
            raise ExtractError(f"the reader of the documentation ended with status {await process.wait()}")
        yield int(first), _decoded(process.stdout)
    finally:
        if process.returncode is None and not process.stdout.at_eof():
            process.kill()
        # Not wait(): that waits for the end of the output too, which nobody would read.
        await process.communicate()


async def _decoded(lines: asyncio.StreamReader) -> AsyncIterator[list[str]]:
    async for line in lines:
        yield json.loads(line)
