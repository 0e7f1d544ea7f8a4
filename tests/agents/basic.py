"""Agents that the integration tests call."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec

from penstock.workers import Context, Response, agent


class Order(msgspec.Struct):
    text: str
    limit: int = 10


@agent(idempotent=True)
async def echo(body: Any) -> Any:
    return body


@agent
async def order(body: Order) -> dict[str, Any]:
    return {"text": body.text, "limit": body.limit}


@agent
async def wait(seconds: float) -> dict[str, Any]:
    await asyncio.sleep(seconds)
    return {"waited": seconds, "pid": os.getpid()}


@agent
async def mark_and_wait(path: str, seconds: float) -> None:
    """Makes the file when it begins."""
    Path(path).touch()
    await asyncio.sleep(seconds)


@agent
async def hold(path: str) -> dict[str, Any]:
    """Wait until there is a file."""
    while not Path(path).exists():
        await asyncio.sleep(0.01)
    return {"pid": os.getpid()}


@agent(idempotent=True)
async def wait_again(seconds: float) -> dict[str, Any]:
    await asyncio.sleep(seconds)
    return {"waited": seconds, "pid": os.getpid()}


@agent(idempotent=True)
def spin(seconds: float) -> dict[str, Any]:
    """Compute in Python for so long."""
    until = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < until:
        rounds += 1
    return {"rounds": rounds, "pid": os.getpid()}


@agent
def stubborn(seconds: float) -> str:
    """Holds its thread against every exception for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            while time.monotonic() < until:
                pass
        except BaseException:
            continue
    return "done"


@agent
async def fail(body: Any) -> Any:
    raise ValueError(f"a secret: {body}")


@agent
async def die(body: Any) -> Any:
    os._exit(17)


@agent(idempotent=True)
async def die_again(body: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)
    await asyncio.sleep(30)


@agent
async def about(body: Any, ctx: Context) -> dict[str, Any]:
    return {
        "request_id": ctx.request_id,
        "client": ctx.client,
        "agent-header": ctx.headers.get("x-test", ""),
        "remaining": ctx.remaining(),
        "pid": os.getpid(),
    }


@agent
def raw(body: bytes) -> bytes:
    return body[::-1]


@agent
async def teapot(body: Any) -> Response:
    return Response(b"short and stout", status=418, headers={"X-Spout": "yes"}, content_type="text/plain")


@agent
async def split(body: Any) -> Response:
    return Response("x", headers={"X-Evil": "a\r\nSet-Cookie: b"})


@agent(timeout=0.3)
async def brief(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "in time"


@agent(max_concurrency=1)
async def alone(seconds: float) -> dict[str, Any]:
    await asyncio.sleep(seconds)
    return {"pid": os.getpid()}
