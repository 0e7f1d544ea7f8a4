"""Agents that return the trace context of their call."""

from __future__ import annotations

import asyncio
import http.client
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from penstock.workers import Context, agent


def _trace(ctx: Context) -> dict[str, Any]:
    ctx.log.warning("traced")
    spans = any(name.startswith("opentelemetry") for name in sys.modules)
    return {"traceparent": ctx.traceparent, "tracestate": ctx.tracestate, "opentelemetry": spans}


@agent
async def trace(body: Any, ctx: Context) -> dict[str, Any]:
    return _trace(ctx)


@agent
def trace_sync(body: Any, ctx: Context) -> dict[str, Any]:
    return _trace(ctx)


@agent
def onward(port: int, ctx: Context) -> str:
    """Calls another agent of the daemon, within the same trace."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"traceparent": ctx.traceparent, "tracestate": ctx.tracestate}
    connection.request("POST", "/v1/agents/trace", b"null", headers)
    return connection.getresponse().read().decode()


def _nested() -> str:
    from opentelemetry import trace as otel

    with otel.get_tracer("agents").start_as_current_span("nested") as span:
        span.set_attribute("thread", threading.current_thread().name)
    return f"{span.get_span_context().span_id:016x}"


@agent
async def nest(body: Any) -> str:
    return _nested()


@agent
def nest_sync(body: Any) -> str:
    return _nested()


@agent
def nest_later(body: Any) -> Any:
    """A plain function that gives something to be awaited."""
    return nest(body)


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@agent
async def fail_oddly(body: Any) -> None:
    raise OddError


@agent
def idle(seconds: float) -> None:
    """Holds its thread, and lets itself be interrupted."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


@agent
async def nest_stream() -> AsyncIterator[str]:
    """Spans of its own, one for each item, within one that lasts as long as the stream."""
    for _ in range(2):
        await asyncio.sleep(0.1)
        yield _nested()


@agent
def nest_stream_sync() -> Iterator[str]:
    for _ in range(2):
        time.sleep(0.1)
        yield _nested()


@agent
async def fail_stream() -> AsyncIterator[int]:
    yield 1
    raise ValueError("later")
