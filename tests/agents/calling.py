"""Agents that call others."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg

from penstock.workers import CallFailed, Context, Response, agent


@agent
async def leaf(value: Any, ctx: Context) -> dict[str, Any]:
    return {"value": value, "id": ctx.request_id, "client": ctx.client, "left": ctx.remaining(), "pid": os.getpid()}


@agent
async def ask(agent: str, ctx: Context, body: Any = None, timeout: float | None = None) -> Any:
    """Whatever the other gives."""
    return await ctx.call(agent, body, timeout)


@agent
async def caught(agent: str, ctx: Context, body: Any = None, timeout: float | None = None) -> Any:
    try:
        return await ctx.call(agent, body, timeout)
    except CallFailed as error:
        return {"name": error.name, "status": error.status, "detail": error.detail, "problem": error.problem}


@agent
def ask_sync(agent: str, ctx: Context, body: Any = None, timeout: float | None = None) -> Any:
    return ctx.call_sync(agent, body, timeout)


@agent
async def chain(levels: int, ctx: Context) -> list[str]:
    """The request ids, the deepest first."""
    if levels <= 1:
        return [ctx.request_id]
    return [*await ctx.call("chain", {"levels": levels - 1}), ctx.request_id]


@agent
def chain_sync(levels: int, ctx: Context) -> list[str]:
    if levels <= 1:
        return [ctx.request_id]
    return [*ctx.call_sync("chain_sync", {"levels": levels - 1}), ctx.request_id]


@agent
async def endless(ctx: Context) -> Any:
    try:
        return await ctx.call("endless")
    except CallFailed as error:
        return error.name


@agent
async def tree(levels: int, width: int, ctx: Context) -> int:
    """How many calls there were."""
    if levels <= 1:
        return 1
    body = {"levels": levels - 1, "width": width}
    below: list[int] = await asyncio.gather(*(ctx.call("tree", body) for _ in range(width)))
    return 1 + sum(below)


@agent
async def fan(count: int, ctx: Context) -> list[Any]:
    """The values, and the names of problems in their places."""

    async def one(number: int) -> Any:
        try:
            return (await ctx.call("leaf", number))["value"]
        except CallFailed as error:
            return error.name

    return await asyncio.gather(*map(one, range(count)))


@agent
async def sleep(seconds: float, path: str = "") -> str:
    """``path``: a file that gets a line at the start, and one at each end."""
    note(path, "begun")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note(path, "cancelled")
        raise
    note(path, "done")
    return "slept"


@agent
def block(seconds: float) -> str:
    time.sleep(seconds)
    return "blocked"


def note(path: str, text: str) -> None:
    if path:
        with open(path, "a") as file:
            file.write(f"{text}\n")


@agent
async def impatient(path: str, ctx: Context, seconds: float = 0.2) -> str:
    try:
        async with asyncio.timeout(seconds):
            await ctx.call("sleep", {"seconds": 60, "path": path})
    except TimeoutError:
        return "too late"
    return "in time"


@agent
async def forgetful(path: str, ctx: Context) -> str:
    """Ends while its child runs."""
    task = asyncio.create_task(ctx.call("sleep", {"seconds": 60, "path": path}))
    while not os.path.exists(path):
        await asyncio.sleep(0.01)
    return str(task.done())


@agent
async def raw(body: bytes) -> bytes:
    return body[::-1]


@agent
async def teapot() -> Response:
    return Response({"why": "short and stout"}, status=418)


@agent
async def text() -> Response:
    return Response("Grüße", headers={"X-Kind": "text"})


@agent
async def broken() -> None:
    raise ValueError("no")


@agent
async def count(below: int) -> AsyncIterator[int]:
    for number in range(below):
        yield number


@agent
def pieces(count: int) -> Response:
    return Response((b"%d;" % number for number in range(count)), content_type="text/x-numbers")


@agent
async def fails_late() -> AsyncIterator[int]:
    yield 1
    raise ValueError("no more")


@agent
async def streamed(agent: str, ctx: Context, body: Any = None, most: int = 0) -> list[Any]:
    """What came, and the name of the problem that ended it. ``most``: as many at most."""
    found: list[Any] = []
    try:
        async for item in ctx.stream(agent, body):
            found.append(item.decode() if isinstance(item, bytes) else item)
            if len(found) == most:
                break
    except CallFailed as error:
        found.append(error.name)
    return found


@agent
async def passing(agent: str, ctx: Context, body: Any = None) -> AsyncIterator[Any]:
    """Streams what another streams."""
    async for item in ctx.stream(agent, body):
        yield item


@agent
def numbers_sync(below: int, ctx: Context) -> Iterator[Any]:
    """A plain generator that calls others on its thread."""
    for number in range(below):
        yield ctx.call_sync("leaf", number)["value"]


@agent(idempotent=True)
async def dies_once(path: str) -> int:
    return die_once(path)


@agent
async def dies(path: str) -> int:
    return die_once(path)


def die_once(path: str) -> int:
    """Kill this process, unless the file says that one was killed already; else its id."""
    if not os.path.exists(path):
        note(path, str(os.getpid()))
        os.kill(os.getpid(), 9)
    return os.getpid()


@agent
async def pid() -> int:
    return os.getpid()


@agent
async def held(levels: int, ctx: Context, db: psycopg.AsyncConnection[Any]) -> Any:
    """Holds a connection while it asks for one that wants another."""
    await db.execute("select 1")
    if levels <= 1:
        return "got one"
    try:
        return await ctx.call("held", {"levels": levels - 1})
    except CallFailed as error:
        return error.name


@agent
def held_sync(levels: int, ctx: Context, db: psycopg.Connection[Any]) -> Any:
    db.execute("select 1")
    if levels <= 1:
        return "got one"
    try:
        return ctx.call_sync("held_sync", {"levels": levels - 1})
    except CallFailed as error:
        return error.name


@agent
async def later(path: str, ctx: Context) -> Any:
    """Asks for another once the file is there."""
    while not os.path.exists(path):
        await asyncio.sleep(0.01)
    return await ctx.call("leaf", "late")
