"""A span for every call of an agent, by OpenTelemetry's conventions for HTTP servers. Imported only where spans are on.

``Traced`` goes around the routes of a listener. It continues the client's trace or begins one; the request's ticket
carries the span's own ids to the worker, whose span is its child. Other routes make no spans: they are views, and what
scrapes them would fill the traces.

What a span says beyond the conventions: ``penstock.agent``, ``penstock.worker``, ``penstock.request_id``, and
``penstock.queue_seconds``, until a worker began with it. ``error.type`` of a problem is its NAME.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from opentelemetry.trace import SpanKind, Status, StatusCode

from penstock.ipc.messages import Answer
from penstock.ipc.spans import Spans, headers, parent
from penstock.ipc.texts import encodable

from ..engine.tickets import Ticket
from .calls import AGENTS
from .exchange import Exchange, Handler
from .limits import SlowBodyError
from .problems import PROBLEMS
from .responses import Response
from .tracecontext import Trace, trace_context

ROUTE: Final = f"{AGENTS}{{agent}}"
NAME: Final = f"POST {ROUTE}"
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)


class CallSpan:
    """The span of one call."""

    __slots__ = ("_span", "outgoing")

    def __init__(self, spans: Spans, exchange: Exchange) -> None:
        context = parent(*trace_context(exchange.headers))
        self._span = spans.tracer.start_span(NAME, context, SpanKind.SERVER, attributes=_request(exchange))
        self.outgoing: Trace = headers(self._span)
        """What the call carries on."""

    def settled(self, ticket: Ticket) -> None:
        """The request has an answer."""
        if not self._span.is_recording():
            return
        said: dict[str, str | float] = {
            "penstock.agent": ticket.agent.name,
            "penstock.request_id": ticket.request_id,
            "penstock.queue_seconds": ticket.queued,
        }
        if isinstance(ticket.outcome, Answer):
            said["penstock.worker"] = ticket.outcome.worker
        elif ticket.worker is not None:
            said["penstock.worker"] = ticket.worker.name
        self._span.set_attributes(said)

    def answered(self, status: int, problem: str) -> None:
        """The client gets this. Its own faults (4xx) are no errors of a server."""
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_attribute("error.type", problem or str(status))
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def gone(self) -> None:
        """The client is gone, and nobody is answered."""
        self._span.set_attribute("error.type", "client-gone")
        self._span.end()


class Traced:
    """A handler whose calls of agents are spans."""

    def __init__(self, routes: Handler, spans: Spans) -> None:
        self._routes = routes
        self._spans = spans

    async def __call__(self, exchange: Exchange) -> Response:
        message = exchange.message
        if message.method != "POST" or not exchange.path.startswith(AGENTS):
            return await self._routes(exchange)
        span = exchange.span = CallSpan(self._spans, exchange)
        try:
            response = await self._routes(exchange)
        except (asyncio.CancelledError, ConnectionError):
            span.gone()
            raise
        except SlowBodyError:
            span.answered(PROBLEMS["request-timeout"][0], "request-timeout")
            raise
        except Exception as error:
            span.answered(500, type(error).__qualname__)
            raise
        span.answered(response.status, response.problem)
        return response


def _request(exchange: Exchange) -> dict[str, str | int]:
    message = exchange.message
    said: dict[str, str | int] = {
        "http.request.method": message.method,
        "http.route": ROUTE,
        "url.path": encodable(exchange.path),
        "url.scheme": "https" if exchange.secure else "http",
        "network.protocol.version": f"{message.version.major}.{message.version.minor}",
    }
    said.update(_server(message.headers.get("Host", "")))
    peer = exchange.protocol.peername
    if isinstance(peer, tuple):
        said["client.address"] = peer[0]
    agent = message.headers.get("User-Agent")
    if agent:
        said["user_agent.original"] = encodable(agent)
    return said


def _server(host: str) -> dict[str, str | int]:
    """Name and port, as the client calls us."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):
        name, port = host, ""
    said: dict[str, str | int] = {"server.address": encodable(name.strip("[]"))} if name else {}
    if _PORT.fullmatch(port):
        said["server.port"] = int(port)
    return said
