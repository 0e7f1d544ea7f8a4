"""The agents that the benchmarks call: each isolates one thing."""

from __future__ import annotations

import asyncio
import os
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
