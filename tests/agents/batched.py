"""Agents that get batches."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from penstock.workers import Context, Response, agent


class Order(msgspec.Struct):
    """What is to become of a request."""

    do: str = "answer"
    number: float = 0.0


def _work(bodies: list[Order]) -> list[Any]:
    """What these orders come to."""
    wanted = {each.do for each in bodies}
    if "raise" in wanted:
        raise RuntimeError(f"one of {len(bodies)} is bad")
    if "die" in wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    if "short" in wanted:
        return [None] * (len(bodies) - 1)
    if "mapping" in wanted:
        return dict.fromkeys(range(len(bodies)))  # type: ignore[return-value]
    return [_result(each, len(bodies), at) for at, each in enumerate(bodies)]


def _result(order: Order, size: int, at: int) -> Any:
    if order.do == "exception":
        return ValueError(f"number {order.number:g} is no good")
    if order.do == "object":
        return object()
    if order.do == "response":
        return Response("made", status=201, headers={"X-Size": str(size)})
    return {"size": size, "at": at, "number": order.number, "pid": os.getpid()}


@agent(batch=8)
async def gathered(bodies: list[Order]) -> list[Any]:
    await asyncio.sleep(max(each.number for each in bodies if each.do == "sleep") if _sleeps(bodies) else 0)
    return _work(bodies)


@agent(batch=8)
def gathered_sync(bodies: list[Order]) -> list[Any]:
    if _sleeps(bodies):
        until = time.monotonic() + max(each.number for each in bodies if each.do == "sleep")
        while time.monotonic() < until:
            time.sleep(0.01)
    return _work(bodies)


def _sleeps(bodies: list[Order]) -> bool:
    return any(each.do == "sleep" for each in bodies)


@agent(batch=8, idempotent=True)
async def again(bodies: list[Order]) -> list[Any]:
    return _work(bodies)


@agent(batch=8, idempotent=True)
def again_sync(bodies: list[Order]) -> list[Any]:
    return _work(bodies)


@agent(batch=4, batch_wait=0.5)
async def waiting(bodies: list[Order]) -> list[Any]:
    return _work(bodies)


@agent(batch=4, batch_wait=20)
async def patient(bodies: list[Order]) -> list[Any]:
    return _work(bodies)


@agent(batch=8, max_concurrency=1)
async def one_by_one(bodies: list[Order]) -> list[Any]:
    await asyncio.sleep(0.05)
    return _work(bodies)


@agent(batch=8)
async def anything(bodies: list, contexts: list[Context]) -> list[Any]:  # type: ignore[type-arg]
    return [[body, each.request_id, each.client, len(bodies)] for body, each in zip(bodies, contexts, strict=True)]


@agent(batch=8)
async def watched(bodies: list[str], contexts: list[Context]) -> list[bool]:
    """Wait for ever, and make a file if that is cancelled."""
    try:
        while True:
            await asyncio.sleep(60)
    finally:
        Path(bodies[0]).write_text(repr([each.cancelled() for each in contexts]))


@agent(batch=8)
async def until_one_leaves(bodies: list[str], contexts: list[Context]) -> list[bool]:
    """Wait until one request is cancelled, then say which, and leave that in a file."""
    while not any(each.cancelled() for each in contexts):
        await asyncio.sleep(0.01)
    found = [each.cancelled() for each in contexts]
    Path(bodies[0]).write_text(repr(found))
    return found


@agent(batch=8)
async def shouted(bodies: list[bytes]) -> list[bytes]:
    return [body.upper() for body in bodies]


@agent(batch=8)
async def numbers(bodies: list[int], db: psycopg.AsyncConnection[Any]) -> list[list[int]]:
    cursor = await db.execute("SELECT n, pg_backend_pid() FROM unnest(%s::int[]) AS n", [bodies])
    return [[*row, len(bodies)] for row in await cursor.fetchall()]


@agent(batch=8, idempotent=True)
def stored(bodies: list[int], db: psycopg.Connection[Any]) -> list[int]:
    """Store them all, or none if one of them is 0."""
    for body in bodies:
        db.execute("INSERT INTO kept VALUES (1 / %s)", [body])
    return bodies
