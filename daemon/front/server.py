"""The listener: aiohttp's HTTP/1.1 protocol with a request object and a way of answering of our own.

aiohttp parses, keeps connections alive, pipelines and notices clients that go. What is replaced is what costs most for
small requests: its request object (a mutable mapping with caches), and its response object (a multidict serialized
and written in two steps). The surface used for that is small: a ``request_factory``, which is public, and three
methods that ``RequestHandler`` calls on what the factory made (``_finish``, ``_cancel``, ``_task``), for which reason
``setup.py`` pins aiohttp's minor version.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion11
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy

from .headers import request_id
from .problems import problem
from .responses import Raw, problem_response

log = logging.getLogger("penstock.http")

LARGE: Final = 64 * 1024
"""Bytes from which a body is written by itself (no copy into one buffer) and the client's reading awaited."""

BACKLOG: Final = 4096
"""Connections the kernel may hold for us; it cuts this to ``net.core.somaxconn``."""


class BindError(Exception):
    """The address cannot be listened on. The text names it and why."""


class BodyTooLarge(Exception):
    """The body is over the limit."""


class Exchange:
    """One request on a connection, as aiohttp parsed it."""

    __slots__ = ("_task", "headers", "message", "method", "payload", "protocol", "writer")

    def __init__(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None] | None,
    ) -> None:
        self.message = message
        self.method = message.method
        self.headers: CIMultiDictProxy[str] = message.headers
        self.payload = payload
        self.protocol = protocol
        self.writer = writer
        self._task = task

    @property
    def remote(self) -> str:
        """The client's IP address; ``unix`` on a Unix socket."""
        peer = self.protocol.peername
        return peer[0] if isinstance(peer, tuple) else "unix"

    async def read(self, limit: int) -> bytes:
        """The whole body (``BodyTooLarge`` beyond ``limit`` bytes)."""
        payload = self.payload
        if payload.is_eof():
            body = payload.read_nowait(-1)
            if len(body) > limit:
                raise BodyTooLarge
            return body
        if self.headers.get("Expect", "").lower() == "100-continue" and self.protocol.transport is not None:
            self.protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        chunks: list[bytes] = []
        size = 0
        while chunk := await payload.readany():
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge
            chunks.append(chunk)
        return b"".join(chunks)

    # What aiohttp's RequestHandler calls.

    def _finish(self) -> None:
        """The handler is done."""

    def _cancel(self, error: BaseException) -> None:
        """The client is gone: whoever reads the body learns of it."""
        self.payload.set_exception(error)


Handler = Callable[[Exchange], Awaitable[Raw]]


class _Connection(web.RequestHandler):
    """aiohttp's connection, which answers with ``Raw``."""

    __slots__ = ()

    async def finish_response(  # type: ignore[override]
        self, request: Exchange, resp: Raw, start_time: float | None
    ) -> tuple[Raw, bool]:
        transport = self.transport
        if transport is None:
            return resp, True
        message = request.message
        head = resp.head
        if resp.close or message.should_close:
            resp.keep_alive = False
            head += "Connection: close\r\n\r\n"
        elif message.version < HttpVersion11:
            head += "Connection: keep-alive\r\n\r\n"
        else:
            head += "\r\n"
        body = resp.body if request.method != "HEAD" else b""
        if len(body) < LARGE:
            transport.write(head.encode("latin-1", "replace") + body)
        else:
            transport.write(head.encode("latin-1", "replace"))
            transport.write(body)
            await request.writer.drain()
        return resp, False

    def handle_error(  # type: ignore[override]
        self,
        request: Exchange,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> Raw:
        """What the parser refuses, and faults of our own: never a traceback to the client."""
        given = request_id(request.headers)
        if status < 500:
            log.debug("%s: refused by the parser: %s", given, exc)
            detail = (message or "the request is not valid HTTP").partition("\n")[0].strip().rstrip(":")
        else:
            log.error("%s: the supervisor failed to handle a request", given, exc_info=exc)
            detail = "the supervisor failed to handle this request"
        status, body = problem("http-error", detail, given, status=status)
        return problem_response(status, body, given, close=True)


class Server(web.Server):
    """Makes a connection object for every client."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(
            cast(Any, handler),
            request_factory=cast(Any, Exchange),
            # aiohttp 3.14 lets handlers run on when their client goes; here it has to be asked for.
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            lingering_time=2.0,
        )

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


def bind(address: str) -> socket.socket:
    """A listening socket for ``HOST:PORT``, ``[V6]:PORT`` or ``unix:PATH`` (``BindError``)."""
    try:
        if address.startswith("unix:"):
            return _bind_unix(address.removeprefix("unix:"))
        host, _, port = address.rpartition(":")
        return _bind_tcp(host.strip("[]"), int(port))
    except OSError as error:
        why = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise BindError(f"cannot listen on {address}: {why}") from error


def _bind_tcp(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _bind_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _sweep(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _sweep(path: str) -> None:
    """Remove the socket file of a listener that is gone; one that somebody listens on stays, and so does a file."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
