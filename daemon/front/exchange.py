"""A request as the routes see it, and what they ask of the connection and the span that it belongs to.

``front.connection`` makes one of each request that aiohttp has parsed. Nothing in here knows how a connection is
served, what the routes are, or what makes a span: those know this.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, overload

from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy

from ..core.refusals import Comeback
from ..engine.tickets import Ticket
from .responses import Response
from .tracecontext import Trace

T = TypeVar("T")


class BodyTooLarge(Exception):
    """The body is over the limit."""


class Connection(Protocol):
    """What an exchange uses of the connection that it came over."""

    transport: asyncio.Transport | None
    """None once the client is gone."""
    body_since: float
    """When the body that is being read began (``now``); 0 if none is."""
    fresh: bool
    """No agent was called on it yet."""
    comeback: Comeback | None
    """What its client was told, if the last call was refused."""

    @property
    def peername(self) -> str | tuple[str, int, int, int] | tuple[str, int] | None:
        """The client's address and port (and flow and scope of IPv6), or the path of its Unix socket."""

    def now(self) -> float:
        """The loop's time in seconds."""


class Span(Protocol):
    """What the routes tell the span of a call."""

    outgoing: Trace
    """What the call carries on."""

    def settled(self, ticket: Ticket) -> None:
        """The request has an answer."""


class Exchange:
    """One request on a connection, as aiohttp parsed it."""

    __slots__ = ("answered", "message", "name", "payload", "protocol", "span")

    def __init__(self, message: RawRequestMessage, payload: StreamReader, protocol: Connection) -> None:
        self.message = message
        self.payload = payload
        self.protocol = protocol
        self.name = ""
        """Of the client's token; empty where none is asked for."""
        self.span: Span | None = None
        """Of a call, where spans are on."""
        self.answered: asyncio.Future[None] | None = None
        """Of a call that was submitted: done when it has its outcome."""

    @property
    def method(self) -> str:
        return self.message.method

    @property
    def path(self) -> str:
        """The path as it was sent, without the query; that of an absolute target (``GET http://host/path``), too."""
        target = self.message.path.partition("?")[0]
        if not target.startswith("/") and target[:8].lower().startswith(("http://", "https://")):
            target = "/" + target.partition("://")[2].partition("/")[2]
        return target

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        return self.message.headers

    @property
    def client(self) -> str:
        """The name of the client's token, else its IP address; ``unix`` on a Unix socket."""
        if self.name:
            return self.name
        peer = self.protocol.peername
        # On a listener for both families a client with an IPv4 address has it as ::ffff:192.0.2.1.
        return peer[0].removeprefix("::ffff:") if isinstance(peer, tuple) else "unix"

    @property
    def secure(self) -> bool:
        """It came over TLS."""
        transport = self.protocol.transport
        return transport is not None and transport.get_extra_info("sslcontext") is not None

    @overload
    async def read(self, limit: int) -> bytes: ...

    @overload
    async def read(self, limit: int, arrived: Callable[[int], T | None]) -> bytes | T: ...

    async def read(self, limit: int, arrived: Callable[[int], T | None] | None = None) -> bytes | T:
        """The whole body (``BodyTooLarge`` beyond ``limit`` bytes, ``SlowBodyError``).

        ``arrived`` is told of bytes as they come; what it gives back ends the reading, and is the result.
        """
        payload = self.payload
        if payload.is_eof():
            body = payload.read_nowait(-1)
            if len(body) > limit:
                raise BodyTooLarge
            return body
        if self.headers.get("Expect", "").lower() == "100-continue" and self.protocol.transport is not None:
            self.protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # A buffer that grows: very many small pieces would take a multiple of the memory that they count.
        buffer = io.BytesIO()
        self.protocol.body_since = self.protocol.now()
        try:
            while chunk := await payload.readany():
                if buffer.tell() + len(chunk) > limit:
                    raise BodyTooLarge
                if arrived is not None and (refusal := arrived(len(chunk))) is not None:
                    return refusal
                buffer.write(chunk)
        finally:
            self.protocol.body_since = 0.0
        return buffer.getvalue()

    def ended(self, ticket: Ticket) -> None:
        """The exchange is the sink of its ticket: whoever awaits ``answered`` goes on."""
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(None)

    def _cancel(self, error: BaseException) -> None:
        """Called by aiohttp when the client is gone: whoever reads the body learns of it."""
        self.payload.set_exception(error)


Handler = Callable[[Exchange], Awaitable[Response]]
