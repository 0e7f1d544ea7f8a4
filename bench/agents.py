"""The agents that the benchmarks call: each isolates one thing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg

from bench.work import burn
from penstock.workers import agent


@agent(idempotent=True)
async def echo(body: Any) -> Any:
    """The body back."""
    return body


@agent(idempotent=True)
def spin(rounds: int) -> int:
    """So many rounds of Python; ``work.rounds_for`` turns milliseconds into rounds."""
    return burn(rounds)


@agent(idempotent=True)
def spin_long(rounds: int) -> int:
    """The same under another name, since costs are learnt by agent."""
    return burn(rounds)


@agent(idempotent=True)
async def wait(seconds: float) -> float:
    """Wait without computing."""
    await asyncio.sleep(seconds)
    return seconds


@agent(idempotent=True)
async def ask_backend(seconds: float) -> float:
    """Wait for a backend that is sometimes slower: so many times as its file says."""
    await asyncio.sleep(seconds * float(_slowness().read_text() or 1.0))
    return seconds


@agent
async def slow_backend(factor: float) -> float:
    """Make the backend so many times slower from now on."""
    _slowness().write_text(str(factor))
    return factor


def _slowness() -> Path:
    return Path(os.environ["PENSTOCK_BENCH_SLOWNESS"])


@agent(idempotent=True)
async def row(body: Any, db: psycopg.AsyncConnection[Any]) -> Any:
    """One row from the database."""
    return await (await db.execute("SELECT 1, 'row'")).fetchone()


@agent(idempotent=True)
async def rest(seconds: float, db: psycopg.AsyncConnection[Any]) -> float:
    """Wait for the database, which holds a connection for so long."""
    await db.execute("SELECT pg_sleep(%s)", [seconds])
    return seconds


@agent(idempotent=True)
def row_sync(body: Any, db: psycopg.Connection[Any]) -> Any:
    """One row, by a thread."""
    return db.execute("SELECT 1, 'row'").fetchone()


ITEM = {"number": 123456789, "word": "penstock"}
"""Forty bytes as JSON, with what frames it."""


async def _items(count: int) -> AsyncIterator[dict[str, Any]]:
    for _ in range(count):
        yield ITEM


def _plain_items(count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        yield ITEM


@agent(idempotent=True, stream=True)
async def items(count: int) -> AsyncIterator[dict[str, Any]]:
    """A stream of so many items."""
    return _items(count)


@agent(idempotent=True, stream=True)
def plain_items(count: int) -> Iterator[dict[str, Any]]:
    """The same from a thread."""
    return _plain_items(count)


@agent(idempotent=True)
async def made(count: int) -> int:
    """What ``items`` costs by itself: they are made, and kept by nobody."""
    return sum([1 async for _ in _items(count)])


@agent(idempotent=True)
def plain_made(count: int) -> int:
    """What ``plain_items`` costs by itself."""
    return sum(1 for _ in _plain_items(count))


def _score(each: int, bodies: list[int]) -> list[int]:
    """As what is vectorised costs: a large part once, and a little for each body."""
    burn(SCORING + each * len(bodies))
    return bodies


SCORING = 300
"""Rounds that ``score`` takes whatever it gets (about 1.5 ms)."""
EACH = 3
"""Rounds for each body."""


@agent(idempotent=True)
def score(body: int) -> int:
    """One body a call."""
    return _score(EACH, [body])[0]


@agent(idempotent=True, batch=32, batch_wait=0.002)
def score_batch(bodies: list[int]) -> list[int]:
    """The same work for up to 32 bodies at once."""
    return _score(EACH, bodies)


@agent(idempotent=True)
def plain_echo(body: Any) -> Any:
    """The body back, from a thread."""
    return body


@agent(idempotent=True, batch=32, batch_wait=0.002)
def echo_batch(bodies: list) -> list[Any]:  # type: ignore[type-arg]
    """The bodies back, from one thread."""
    return bodies
