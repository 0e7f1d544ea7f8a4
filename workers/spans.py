"""A span around every agent's function, the current one while the function runs. Imported only where spans are on.

So what the agent's libraries make spans of (OpenTelemetry's instrumentations of HTTP clients, psycopg and others) and
what the agent makes itself by ``opentelemetry.trace`` lies within it, and it within the supervisor's span of the
request.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from penstock.ipc.log import get_logger
from penstock.ipc.spans import Spans, headers, parent

from .running import Running

log = get_logger("penstock.tracing")

CANCELLED: Final = {"deadline": "deadline-exceeded", "gone": "client-gone"}
"""``error.type`` by the reason of a cancellation."""


class AgentSpans:
    """The spans of this worker's calls."""

    def __init__(self, spans: Spans) -> None:
        """Makes the SDK the one that agents find. One that an agent module has set up has precedence."""
        self._tracer = spans.tracer
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(spans.provider)
        else:
            log.info("an agent module has set up a tracer provider; all spans of this worker use it")
            self._tracer = trace.get_tracer("penstock")

    def around(self, run: Running) -> Callable[..., Any]:
        """The call's function, with a span around it."""
        return self._around_async(run) if run.agent.binding.kind == "async" else self._around_sync(run)

    def _around_async(self, run: Running) -> Callable[..., Any]:
        async def traced(**arguments: Any) -> Any:
            span = self._start(run)
            with self._within(run, span) as lasting:
                result = run.agent.function(**arguments)
                result = await result if inspect.isawaitable(result) else result
                return lasting(result)

        return traced

    def _around_sync(self, run: Running) -> Callable[..., Any]:
        def traced(**arguments: Any) -> Any:
            span = self._start(run)
            with self._within(run, span) as lasting:
                return lasting(run.agent.function(**arguments))

        return traced

    @contextmanager
    def _within(self, run: Running, span: Span) -> Iterator[Callable[[Any], Any]]:
        """A block with this span as the current one, which ends with it. What the block gives to the function that it
        gets takes the span along instead, if it is still to be awaited or iterated over.
        """
        lasts = False

        def lasting(result: Any) -> Any:
            nonlocal lasts
            lasts = True
            if inspect.isawaitable(result):
                return self._rest(run, span, result)
            if run.agent.stream and isinstance(result, AsyncIterator):
                return self._items(run, span, result)
            if run.agent.stream and isinstance(result, Iterator):
                return self._items_in_thread(run, span, result)
            lasts = False
            return result

        token = contexts.attach(trace.set_span_in_context(span))
        try:
            yield lasting
        except BaseException as error:
            # That a generator is closed since its reader wants no more is no failure of its own.
            if run.cancelled or not isinstance(error, GeneratorExit):
                _failed(run, span, error)
            raise
        finally:
            contexts.detach(token)
            if not lasts:
                span.end()

    async def _rest(self, run: Running, span: Span, awaitable: Awaitable[Any]) -> Any:
        """What a plain function has returned to be awaited, within its span."""
        with self._within(run, span) as lasting:
            return lasting(await awaitable)

    async def _items(self, run: Running, span: Span, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """What an agent streams, within its span."""
        with self._within(run, span):
            try:
                async for item in stream:
                    yield item
            finally:
                if isinstance(stream, AsyncGenerator):
                    await stream.aclose()

    def _items_in_thread(self, run: Running, span: Span, stream: Iterator[Any]) -> Iterator[Any]:
        with self._within(run, span):
            try:
                yield from stream
            finally:
                if isinstance(stream, Generator):
                    stream.close()

    def _start(self, run: Running) -> Span:
        spec, agent = run.spec, run.agent
        span = self._tracer.start_span(
            f"agent {agent.name}",
            parent(spec.traceparent, spec.tracestate),
            SpanKind.INTERNAL,
            attributes={
                "penstock.agent": agent.name,
                "penstock.request_id": spec.request_id,
                "code.function.name": f"{agent.module}.{getattr(agent.function, '__qualname__', agent.name)}",
            },
        )
        if run.context is not None:
            run.context.traceparent, run.context.tracestate = headers(span)
        return span


def _failed(run: Running, span: Span, error: BaseException) -> None:
    """What the span says of a function that raised."""
    if run.cancelled:
        span.set_attribute("error.type", CANCELLED.get(run.cancelled, run.cancelled))
        if run.cancelled == "deadline":
            span.set_status(Status(StatusCode.ERROR))
        return
    span.set_attribute("error.type", f"{type(error).__module__}.{type(error).__qualname__}")
    span.set_status(Status(StatusCode.ERROR))
    try:
        span.record_exception(error)
    except Exception as unreadable:
        # An exception of the agent's own making can fail at being looked at.
        log.debug("%s cannot be recorded: %s", type(error).__name__, type(unreadable).__name__)
