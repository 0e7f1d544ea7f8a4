"""A client's connection: aiohttp's HTTP/1.1 protocol with a request object and a way of answering of our own.

aiohttp parses, keeps connections alive, pipelines and notices clients that go. What is replaced is what costs most for
small requests: its task for each of them, its request object (a mutable mapping with caches), and its response object
(a multidict serialized and written in two steps). That rests on attributes of its ``RequestHandler`` that are not
public, for which reason the minor version of aiohttp is pinned, and ``check`` looks for them before anything listens.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import aiohttp
from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import InvalidURLError, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from penstock.ipc.log import call_fields

from ..core.refusals import Comeback
from .exchange import Exchange, Handler
from .headers import fresh_request_id, request_id
from .limits import Limits, SlowBodyError
from .problems import FAILED
from .responses import Pieces, Raw, Response, Stream, problem_response
from .tracecontext import trace_context

log = logging.getLogger("penstock.http")

LARGE: Final = 64 * 1024
"""Bytes from which a body is written by itself (no copy into one buffer) and the client's reading awaited."""

LINGER: Final = 2.0
"""Seconds for which the rest of an unwanted body is read before the connection is closed."""

MAX_LINE: Final = 8190
"""Bytes that the request line, and each field of the header, may have."""

MAX_HEADERS: Final = 100
"""Fields that a header may have."""

UNREADABLE: Final = RawRequestMessage(
    "UNKNOWN", "/", HttpVersion10, CIMultiDictProxy(CIMultiDict()), (), True, None, False, False, URL("/")
)
"""Stands in for a request that the parser could not read."""


class Owner(Protocol):
    """What a connection asks of the server that made it."""

    stray: Callable[[Comeback], None]
    """Told what a client was told that leaves after a refusal."""
    draining: bool
    """Every answer is its connection's last."""

    @property
    def free(self) -> int:
        """How many more connections there may be."""

    def refuse(self, transport: asyncio.Transport) -> None:
        """Answer that all connections are taken, and close."""

    def watch(self) -> None:
        """Have the connections checked from time to time, as long as there are any."""


class Connection(web.RequestHandler):
    """aiohttp's connection, which handles its requests in its own task and answers with ``Raw`` or ``Stream``.

    aiohttp makes a task for each request, so that context variables do not leak from one to the next; the supervisor
    sets none. ``start`` below is its loop without that task, and without what only other kinds of servers need.
    """

    __slots__ = ("_streaming", "_stuck", "body_since", "comeback", "fresh", "header_since")

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.header_since = 0.0
        """When the header that is awaited began; 0 while the connection is idle."""
        self.body_since = 0.0
        """When the body that is being read began; 0 if none is."""
        self.fresh = True
        """No agent was called on it yet."""
        self.comeback: Comeback | None = None
        """What its client was told, if the last call was refused."""
        self._streaming = False
        """An answer is being written piece by piece."""
        self._stuck = (0, 0.0)
        """How much of an answer the client has not taken, and since when it is that much."""

    def now(self) -> float:
        return self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        owner = cast(Owner, self._manager)
        if owner.free <= 0:
            self._force_close = True
            owner.refuse(cast(asyncio.Transport, transport))
            return
        self.header_since = self.now()
        super().connection_made(transport)
        owner.watch()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.comeback is not None and self._manager is not None:
            cast(Owner, self._manager).stray(self.comeback)
            self.comeback = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.header_since:
            self.header_since = self.now()
        super().data_received(data)
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._keep_parsed()

    def _keep_parsed(self) -> None:
        """What came before a request that cannot be read, in the same segment, is answered before it.

        aiohttp's parser has it in a list that is not public and gives nothing out once it has failed.
        """
        failed = self._messages.pop()
        for each in gc.get_referents(self._parser):
            if type(each) is list and each and isinstance(each[0], tuple) and isinstance(each[0][0], RawRequestMessage):
                self._messages.extend((message, payload) for message, payload in each if payload.is_eof())
                each.clear()
        self._messages.append(failed)

    def check(self, limits: Limits, now: float) -> None:
        """Part with the client if it is too slow."""
        size = 0 if self.transport is None else self.transport.get_write_buffer_size()
        if size != self._stuck[0]:
            self._stuck = (size, now)
        if size and self.transport is not None:
            if now - self._stuck[1] > limits.stall_timeout:
                self.transport.abort()
            return
        self._stuck = (0, 0.0)
        if self.body_since:
            if now - self.body_since > limits.body_timeout and self._current_request is not None:
                detail = f"the body was not complete within {limits.body_timeout:g} s (http.body_timeout)"
                self._current_request._cancel(SlowBodyError(detail))
        elif self.awaits_header and now - self.header_since > limits.header_timeout and self.transport is not None:
            detail = f"the header was not complete within {limits.header_timeout:g} s (http.header_timeout)"
            self.transport.write(final("request-timeout", detail))
            self.force_close()

    @property
    def awaits_header(self) -> bool:
        """A header has begun and is not complete."""
        return self._waiter is not None and not self._messages and self.header_since > 0.0

    @property
    def arriving(self) -> bool:
        """A request has begun to come, or the first one is to be expected, and the engine has not got it yet."""
        return self.body_since > 0.0 or (self.header_since > 0.0 and self._current_request is None)

    @property
    def unsent(self) -> bool:
        """Part of an answer is still to be written, or to be taken by the client."""
        return self._streaming or (self.transport is not None and self.transport.get_write_buffer_size() > 0)

    def close_idle(self) -> None:
        """Close if nothing is going on. What goes on ends first."""
        if self._waiter is not None and not self._messages and not self.header_since:
            self.force_close()

    async def start(self) -> None:
        """Take the connection's requests one after another, until it closes."""
        handler = cast(Handler, self._request_handler)
        while not self._force_close:
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            message, payload = self._messages.popleft()
            if self._parser is not None:
                self._parser.message_consumed()
            if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
                self._resume_reading_if_drained()
                # A client that sends very many requests at once takes turns with the others.
                await asyncio.sleep(0)
            keep = await self._serve(handler, message, payload)
            if not keep or self._close or self._force_close:
                break
            self._stay_alive()
        if self.transport is not None:
            self.transport.close()

    async def _serve(self, handler: Handler, message: Any, payload: StreamReader) -> bool:
        """One request and its answer. Whether the connection can take another."""
        if self._manager is not None:
            self._manager.requests_count += 1
        exchange = Exchange(message, payload, self)
        self._current_request = cast(Any, exchange)
        self._request_in_progress = True
        response: Response
        try:
            if isinstance(message, RawRequestMessage):
                response = await handler(exchange)
            else:
                exchange.message = UNREADABLE
                response = self.handle_error(exchange, message.status, message.exc, message.message)
        except ConnectionError:
            return False
        except SlowBodyError as error:
            response = _slow_body(exchange, error)
        except Exception as error:
            response = self.handle_error(exchange, 500, error)
        finally:
            self._current_request = None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        write = self._stream(exchange, response) if isinstance(response, Stream) else self._answer(exchange, response)
        keep = await write
        return self.transport is not None and await self._rest_read(payload) and keep

    async def _answer(self, exchange: Exchange, response: Raw) -> bool:
        """Write the response. Whether the connection may be kept."""
        transport = self.transport
        if transport is None:
            return False
        head = response.head
        keep = not response.close and self._may_keep(exchange.message)
        if not keep:
            head += "Connection: close\r\n\r\n"
        elif exchange.message.version < HttpVersion11:
            head += "Connection: keep-alive\r\n\r\n"
        else:
            head += "\r\n"
        body = response.body if exchange.method != "HEAD" else b""
        if len(body) < LARGE:
            transport.write(head.encode("latin-1", "replace") + body)
        else:
            transport.write(head.encode("latin-1", "replace"))
            transport.write(body)
        if self._paused:
            await self._drain_helper()
        return keep

    def _may_keep(self, message: RawRequestMessage) -> bool:
        """Whether the connection may take another request after this one."""
        # A request to speak another protocol is answered in this one, and what may follow it is not read.
        return not (message.should_close or message.upgrade or cast(Owner, self._manager).draining)

    async def _stream(self, exchange: Exchange, response: Stream) -> bool:
        """Write a body as its pieces come, no faster than the client takes them. Whether the connection may be kept.

        HTTP/1.0 knows no chunks: there the body ends with the connection.
        """
        transport, pieces = self.transport, response.pieces
        chunked = exchange.message.version >= HttpVersion11
        try:
            if transport is None:
                return False
            self._streaming = True
            keep = chunked and self._may_keep(exchange.message)
            framing = "Transfer-Encoding: chunked\r\n" if chunked else ""
            closing = "" if keep else "Connection: close\r\n"
            transport.write(f"{response.head}{framing}{closing}\r\n".encode("latin-1", "replace"))
            if exchange.method != "HEAD":
                await self._write_pieces(transport, pieces, chunked)
            return keep
        except ConnectionError:
            return False
        except Exception as error:
            log.error("a stream failed", exc_info=error, extra={"request_id": request_id(exchange.headers)})
            return False
        finally:
            self._streaming = False
            await pieces.aclose()

    async def _write_pieces(self, transport: asyncio.Transport, pieces: Pieces, chunked: bool) -> None:
        async for piece in pieces:
            if not chunked:
                transport.write(piece)
            elif piece:  # an empty chunk would end the body
                transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
            if self._paused:
                await self._drain_helper()
        if chunked:
            transport.write(b"0\r\n\r\n")

    async def _rest_read(self, payload: StreamReader) -> bool:
        """Read what is left of a body that nobody wanted, for a while. Whether all of it has come.

        Closing at once could cost the client the answer: a reset throws away what it has not read yet.
        """
        if payload.is_eof():
            return True
        try:
            async with asyncio.timeout(LINGER):
                while not payload.is_eof():
                    await payload.readany()
        except TimeoutError:
            return False
        return True

    def _stay_alive(self) -> None:
        self.header_since = 0.0
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    def handle_error(  # type: ignore[override]
        self,
        request: Exchange,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> Raw:
        """What the parser refuses, and faults of our own: never a traceback to the client."""
        name = request_id(request.headers)
        trace = trace_context(request.headers) if request.span is None else request.span.outgoing
        fields = call_fields(name, trace[0], "")
        if status < 500:
            log.debug("refused by the parser: %s", exc, extra=fields)
            status, detail = _unreadable(status, exc, message or "the request is not valid HTTP")
        else:
            log.error("handling a request failed", exc_info=exc, extra=fields)
            detail = FAILED
        return problem_response("http-error", detail, name, status=status, close=True)


def _unreadable(status: int, error: BaseException | None, message: str) -> tuple[int, str]:
    """The status and the detail for what the parser refuses, which says it in Python's terms."""
    if isinstance(error, LineTooLong):
        return 431, f"the request line, or a field of the header, has more than {MAX_LINE} bytes"
    if message.startswith("Too many headers"):
        return 431, f"the header has more than {MAX_HEADERS} fields"
    if isinstance(error, InvalidURLError):
        return status, "the target of the request is not a valid URL"
    return status, message.partition("\n")[0].strip().rstrip(":")[:200]


def _slow_body(exchange: Exchange, error: SlowBodyError) -> Raw:
    return problem_response("request-timeout", str(error), request_id(exchange.headers), close=True)


def final(name: str, detail: str, extra: str = "") -> bytes:
    """A whole response, the connection's last, to a request that was not read."""
    response = problem_response(name, detail, fresh_request_id(), extra=extra)
    return f"{response.head}Connection: close\r\n\r\n".encode() + response.body


INTERNALS: Final = (
    *("_messages", "_waiter", "_force_close", "_close", "_buffer_paused", "_msg_queue_resume_size", "_handler_waiter"),
    *("_request_in_progress", "_current_request", "_keepalive_handle", "_next_keepalive_close_time"),
    *("_keepalive_timeout", "_manager", "_request_handler", "_resume_reading_if_drained", "_process_keepalive"),
    *("_parser", "_paused", "_drain_helper"),
)


def check() -> None:
    """Raise ``ImportError`` if this aiohttp lacks what is used of its internals."""
    missing = [name for name in INTERNALS if not hasattr(web.RequestHandler, name)]
    if missing:
        raise ImportError(
            f"aiohttp {aiohttp.__version__} has no {', '.join(missing)}; see setup for the versions that do"
        )


check()
