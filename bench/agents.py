"""The agents that the benchmarks call: each isolates one thing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg

from penstock.workers import agent


@agent(idempotent=True)
async def echo(body: Any) -> Any:
    return body


@agent(idempotent=True)
def spin(ms: float) -> int:
    """So many milliseconds of CPU time in pure Python."""
    return burn(ms)


@agent(idempotent=True)
def spin_long(ms: float) -> int:
    """The same under another name, since costs are learnt by agent."""
    return burn(ms)


def burn(ms: float) -> int:
    """Compute until this thread has used so many milliseconds of CPU time."""
    until = time.thread_time() + ms / 1e3
    rounds = 0
    while time.thread_time() < until:
        for _ in range(50):
            rounds += 1
    return rounds


@agent(idempotent=True)
async def wait(ms: float) -> float:
    """Wait without computing."""
    await asyncio.sleep(ms / 1e3)
    return ms


@agent(idempotent=True)
async def row(body: Any, db: psycopg.AsyncConnection[Any]) -> Any:
    """One row from the database."""
    return await (await db.execute("SELECT 1, 'row'")).fetchone()


@agent(idempotent=True)
def row_sync(body: Any, db: psycopg.Connection[Any]) -> Any:
    """One row, by a thread."""
    return db.execute("SELECT 1, 'row'").fetchone()
