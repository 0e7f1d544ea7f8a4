"""The control socket: HTTP on a Unix socket, with ``POST /RPC2`` for calls and two paths that stream logs.

``supervisorctl tail -f`` does not use XML-RPC but a plain GET whose chunked answer never ends. When it does end here
(the daemon stops, the worker is gone from the configuration) the connection is closed with it, since the stock client
waits for that and not for the last chunk.

Few clients use this socket, and they are trusted: who may open it may stop everything. So this is aiohttp as it comes,
with limits on bodies and connections against mistakes.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import contextlib
import hashlib
import hmac
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import unquote

from aiohttp import web
from aiohttp.http import HttpVersion11

from ..config.configuration import Configuration
from ..config.owner import owner
from ..config.settings import Control
from ..fleet.fleet import Fleet
from ..host.listen import BindError, unix
from ..host.logfiles import Follower, LogFile, NoLogError, from_a_character_on
from ..host.state import SUN_PATH
from ..host.workerlogs import WorkerLogs
from .rpc import Dispatcher, MalformedError

log = logging.getLogger("penstock.control")

MAX_BODY: Final = 1024 * 1024
MAX_CONNECTIONS: Final = 128
BODY_TIMEOUT: Final = 30.0
"""Seconds that a client may take to send a call."""

KEEPALIVE: Final = 75.0
FIRST: Final = 1024
"""Bytes of the past with which the following of a log begins, as in supervisord."""

SHOWN: Final = 200
"""Bytes of a body that is no XML-RPC that go into the log."""


def bind(settings: Control) -> socket.socket:
    """The control socket, listening, with its mode and owner (``BindError``, ``ConfigError``).

    Its directory is made if it is missing.
    """
    uid, gid = owner("control.owner", settings.owner)
    path = Path(settings.socket)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BindError(f"cannot make {path.parent} for the control socket: {error.strerror}") from error
    try:
        listener = unix(path, settings.mode, uid, gid, MAX_CONNECTIONS)
    except OSError as error:
        raise BindError(f"cannot listen on the control socket {path}: {error.strerror or error}") from error
    if len(os.fsencode(path)) > SUN_PATH:
        log.warning("%s is longer than %d bytes: only penstock ctl can connect to it", path, SUN_PATH)
    return listener


class ControlServer:
    """Answers on the control socket."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        fleet: Fleet,
        worker_output: WorkerLogs,
        main_log: LogFile,
        configuration: Configuration,
    ) -> None:
        self._configuration = configuration
        self._loop = asyncio.get_running_loop()
        self._dispatcher = dispatcher
        self._fleet = fleet
        self._worker_output = worker_output
        self._main_log = main_log
        self._server = web.Server(
            cast(Any, self._handle), keepalive_timeout=KEEPALIVE, access_log=None, handler_cancellation=True
        )
        self._acceptor: asyncio.Server | None = None
        self._closing = asyncio.Event()
        self._streams: set[asyncio.Event] = set()

    async def open(self, listener: socket.socket) -> None:
        """Take connections from this socket."""
        self._acceptor = await self._loop.create_unix_server(self._server, sock=listener, backlog=MAX_CONNECTIONS)

    async def close(self) -> None:
        """End the streams, let calls be answered, and remove the socket."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._configuration.current.control.socket)
        if self._acceptor is not None:
            self._acceptor.close()
        self._closing.set()
        for wake in self._streams:
            wake.set()
        self._server.pre_shutdown()
        await self._server.shutdown(1.0)

    # Requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if len(self._server.connections) > MAX_CONNECTIONS:
            return _last(web.Response(status=503, text="too many connections\n"))
        refused = self._refuse(request)
        if refused is not None:
            return refused
        # As in supervisord, what follows the name of a service does not matter.
        if request.path.startswith("/RPC2"):
            return await self._call(request) if request.method == "POST" else _wrong_method("POST")
        parts = unquote(request.path).lstrip("/").split("/")
        if parts[0] not in ("logtail", "mainlogtail"):
            return web.Response(status=404, text="not found\n")
        if request.method != "GET":
            return _wrong_method("GET")
        file = self._file(parts)
        return web.Response(status=404, text="not found\n") if file is None else await self._stream(request, file)

    def _refuse(self, request: web.BaseRequest) -> web.Response | None:
        """What those get who have to say who they are and do not."""
        settings = self._configuration.current.control
        if not settings.username:
            return None
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                user, _, password = base64.b64decode(given, validate=True).decode().partition(":")
            except ValueError:
                # It is not base64, not even ASCII, or what is in it is not UTF-8.
                return _last(web.Response(status=400, text="bad request\n"))
            if _same(user, settings.username) & _fits(password, settings.password):
                return None
        headers = {"WWW-Authenticate": 'Basic realm="default"'}
        return _last(web.Response(status=401, headers=headers, text="user name and password are required\n"))

    async def _call(self, request: web.BaseRequest) -> web.Response:
        if request.headers.get("Content-Length") is None and "chunked" not in request.headers.get(
            "Transfer-Encoding", ""
        ):
            return _last(web.Response(status=411, text="a Content-Length is required\n"))
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                while piece := await request.content.readany():
                    body += piece
                    if len(body) > MAX_BODY:
                        return _last(web.Response(status=413, text=f"more than {MAX_BODY} bytes\n"))
        except TimeoutError:
            return _last(web.Response(status=408, text="the call did not arrive in time\n"))
        try:
            answer = await self._dispatcher.respond(bytes(body))
        except MalformedError as error:
            log.warning("a call of %d bytes is not XML-RPC (%s): %r", len(body), error, bytes(body[:SHOWN]))
            return _last(web.Response(status=400, text=f"not XML-RPC: {error}\n"))
        return web.Response(body=answer, content_type="text/xml")

    # Streams

    def _file(self, parts: list[str]) -> LogFile | None:
        """The log that a path names."""
        if parts[0] == "mainlogtail":
            return self._main_log
        name = parts[1] if len(parts) > 1 else ""
        worker = self._fleet.worker(name if ":" in name else f"{name}:{name}")
        channel = parts[2] if len(parts) > 2 else "stdout"
        if worker is None or channel not in ("stdout", "stderr"):
            return None
        worker_log = self._worker_output.log(worker.name)
        return worker_log.output if channel == "stdout" else worker_log.error

    async def _stream(self, request: web.BaseRequest, file: LogFile) -> web.StreamResponse:
        wake = asyncio.Event()

        def told() -> None:
            self._loop.call_soon_threadsafe(wake.set)

        try:
            follower = file.follow(FIRST, told)
        except NoLogError:
            return web.Response(status=404, text="not found\n")
        self._streams.add(wake)
        try:
            response = web.StreamResponse()
            response.headers["Content-Type"] = "text/plain;charset=utf-8"
            response.headers["Last-Modified"] = formatdate(follower.modified, usegmt=True)
            response.headers["X-Accel-Buffering"] = "no"
            response.force_close()
            if request.version >= HttpVersion11:
                response.enable_chunked_encoding()
            await response.prepare(request)
            await self._pump(response.write, follower, file, wake)
            await response.write_eof()
            return response
        finally:
            self._streams.discard(wake)
            follower.close()

    async def _pump(
        self, write: Callable[[bytes], Awaitable[None]], follower: Follower, file: LogFile, wake: asyncio.Event
    ) -> None:
        """Write what comes, by whole characters: the client takes each piece for a text of its own."""
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        beginning = True
        while True:
            wake.clear()
            while data := follower.read():
                if beginning:
                    beginning = False
                    data = from_a_character_on(data)
                text = decode(data)
                if text:
                    await write(text.encode())
            if file.ended or self._closing.is_set():
                return
            await wake.wait()


def _last(response: web.Response) -> web.Response:
    response.force_close()
    return response


def _wrong_method(allowed: str) -> web.Response:
    return _last(web.Response(status=405, headers={"Allow": allowed}, text="method not allowed\n"))


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _fits(given: str, wanted: str) -> bool:
    """Whether a password is the one that is configured, as it is or as ``{SHA}`` and its digest."""
    if wanted.startswith("{SHA}"):
        digest = hashlib.sha1(given.encode()).hexdigest()  # noqa: S324 - the form that supervisord's users have
        return _same(digest, wanted.removeprefix("{SHA}").lower())
    return _same(given, wanted)
