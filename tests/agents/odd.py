"""Agents that return all of a request, and that answer in odd ways. None of them raises for what a client sends."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.workers import Context, Response, agent


def _seen(ctx: Context) -> dict[str, str]:
    """Every header, its value's bytes in hexadecimal."""
    return {name: value.encode("utf-8", "surrogateescape").hex() for name, value in ctx.headers.items()}


@agent
async def look(body: bytes, ctx: Context) -> dict[str, Any]:
    ctx.log.info("%s: %r and %s", ctx.client, body[:40], " ".join(ctx.headers.values()))
    return {"headers": _seen(ctx), "size": len(body), "pid": os.getpid()}


@agent
def look_in_thread(body: bytes, ctx: Context) -> dict[str, Any]:
    return {"headers": _seen(ctx), "size": len(body)}


@agent
async def wait(seconds: float, ctx: Context) -> int:
    await asyncio.sleep(min(seconds, 20.0))
    return len(ctx.headers)


@agent(max_concurrency=1)
async def alone(body: Any, ctx: Context) -> int:
    await asyncio.sleep(0.002)
    return len(ctx.headers)


@agent
def compute(path: str, ctx: Context) -> int:
    """Compute until there is a file."""
    until = time.monotonic() + 20.0
    while not Path(path).exists() and time.monotonic() < until:
        sum(range(5000))
    return len(ctx.headers)


@agent
async def answer_with(headers: list[tuple[str, str]], status: int = 200, body: str = "text") -> Response:
    return Response(body, status, headers)


class Unsendable(Response):
    """One that says of itself what no message can hold, or none that the supervisor can read."""

    def __init__(self, what: str, value: Any) -> None:
        super().__init__()
        object.__setattr__(self, what, value)


@agent
async def unsendable(what: str, value: Any) -> Response:
    return Unsendable(what, value if value is not None else object())


@agent
async def huge(number: int = 2**70) -> str:
    """Its schema has a number that no message can hold."""
    return str(number)


class Counted:
    """A decorator that is an object, and says only what it goes around."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__wrapped__ = function
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.__wrapped__(*args, **kwargs)


@agent
@Counted
def counted(number: int) -> int:
    return number + 1


@agent
@Counted
async def counted_async(number: int, ctx: Context) -> list[int]:
    return [number + 1, len(ctx.headers)]


def cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function around an async one, which sometimes has the value already."""
    known: dict[int, Any] = {}

    @functools.wraps(function)
    def look_up(number: int) -> Any:
        async def ask() -> Any:
            known[number] = await function(number)
            return known[number]

        return known[number] if number in known else ask()

    return look_up


@agent
@cached
async def square(number: int) -> int:
    return number * number


@agent
def begun_elsewhere(seconds: float) -> Any:
    """A plain function, on its thread, that gives something to be awaited."""

    async def rest() -> str:
        await asyncio.sleep(seconds)
        return "awaited"

    return rest()
