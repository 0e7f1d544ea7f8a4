"""Agents that do what none should: block the loop, and compute in C where nothing interrupts them."""

from __future__ import annotations

import asyncio
import hashlib
import time

from penstock.workers import agent


@agent
async def block(seconds: float) -> str:
    """A plain sleep where an awaited one belongs."""
    time.sleep(seconds)
    return "done"


@agent
async def block_in_task(seconds: float) -> str:
    """The same in a task that the agent has made."""

    async def work() -> None:
        time.sleep(seconds)

    await asyncio.create_task(work())
    return "done"


@agent(name="count")
def counting(seconds: float) -> int:
    """Under another name than the function's."""
    until, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        rounds += 1
    return rounds


@agent(name="hash")
def digest(seconds: float) -> str:
    """One call into C that takes many times as long."""
    return hashlib.pbkdf2_hmac("sha256", b"", b"", int(seconds * 2_000_000)).hex()
