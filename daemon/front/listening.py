"""The HTTP listeners: their sockets, who may use which routes on them, and what a reload may change about that.

There is one listener, or two when ``http.admin_bind`` is set: then the first does not know the admin routes, and the
second serves everything. Each has a server of its own, so that clients of the first cannot take the connections of the
second. Sockets that the service manager hands over go before what the configuration binds.

A daemon with sockets of its own goes on accepting while it drains, and says 503. With handed-over ones it stops
accepting at once: who connects then waits in the backlog and is served by the next daemon.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Final

from ..config.owner import owner
from ..config.settings import ConfigError, Http
from ..engine.engine import Engine
from ..host import activation, listen
from ..host.descriptors import shares
from ..host.listeners import Listeners
from . import tls, tokens
from .accepting import Acceptor
from .access import guard
from .calls import Calls, Observer
from .events import Events
from .exchange import Handler
from .limits import Limits
from .routes import Administration, Routes
from .server import Server

if TYPE_CHECKING:
    from penstock.ipc.spans import Spans

log = logging.getLogger("penstock.http")

SENDING: Final = 0.01
"""Seconds between two looks whether a daemon that stops has sent its answers."""


class Sockets:
    """The listening sockets, bound or handed over."""

    def __init__(self, http: Http, environ: MutableMapping[str, str]) -> None:
        """Raises ``BindError``, ``ActivationError`` or ``ConfigError``."""
        self.public, self.admin = activation.take(environ)
        self.handed_over = bool(self.public)
        """Somebody else keeps the first listener open while there is no daemon."""
        self._files: dict[str, tuple[int, int] | None] = {}
        """Paths of Unix sockets that were bound here, and what was there then."""
        try:
            if not self.public:
                self.public.append(self._bind(http.bind, http))
            if not self.admin and http.admin_bind:
                self.admin.append(self._bind(http.admin_bind, http))
        except Exception:
            self.close()
            raise

    def _bind(self, address: str, http: Http) -> socket.socket:
        bound = listen.bind(address, http.socket_mode, *owner("http.socket_owner", http.socket_owner))
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            self._files[path] = listen.identity(path)
        return bound

    def addresses(self) -> Listeners:
        """Where they listen, with the ports that the system chose."""
        http, admin = ([activation.describe(each) for each in some] for some in (self.public, self.admin))
        return Listeners(http, admin)

    def close(self) -> None:
        """Close all of them, and remove the files that are still theirs. May be called twice."""
        for listener in (*self.public, *self.admin):
            listener.close()
        for path, mine in self._files.items():
            if mine is not None and listen.identity(path) == mine:
                os.unlink(path)
        self._files.clear()


class Front:
    """The servers on these sockets."""

    def __init__(
        self,
        engine: Engine,
        observer: Observer,
        administration: Administration,
        sockets: Sockets,
        http: Http,
        possible: int,
        spans: Spans | None = None,
    ) -> None:
        """``possible``: connections for which there are descriptors. Raises ``ConfigError`` for tokens and certificates
        that cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._events = Events(self._loop, administration.status)
        self.calls = Calls(engine, observer, http.max_body)
        self._routes = [Routes(engine, administration, self._events, self.calls) for _ in self._listeners]
        self._servers = [Server(_traced(routes, spans), stray=engine.scheduler.stray) for routes in self._routes]
        self._acceptors: list[Acceptor] = []
        self._tls = tls.context(http.tls_certificate, http.tls_key)
        self._configure(http, possible, tokens.load(http.tokens_file))

    @property
    def _listeners(self) -> list[list[socket.socket]]:
        both = [self._sockets.public, self._sockets.admin]
        return [listeners for listeners in both if listeners]

    def _configure(self, http: Http, possible: int, known: tokens.Tokens | None) -> None:
        capacities = shares(possible, http.max_connections, len(self._servers))
        if min(capacities) < http.max_connections:
            allowed = " and ".join(str(each) for each in capacities)
            what = "http.max_connections is %d, but the limit on open files allows %s"
            log.warning(what, http.max_connections, allowed)
        self.calls.max_body = http.max_body
        for routes, server, capacity in zip(self._routes, self._servers, capacities, strict=True):
            routes.guard = guard(known, hide_admin=bool(self._sockets.admin) and routes is self._routes[0])
            server.limits = Limits(capacity, http.header_timeout, http.body_timeout, http.stall_timeout)

    def open(self) -> None:
        """Begin to accept."""
        for server, listeners in zip(self._servers, self._listeners, strict=True):
            for listener in listeners:
                self._acceptors.append(Acceptor(server, listener, self._secure(listener)))
                secure = ", with TLS" if self._secure(listener) else ""
                log.info("listening on %s%s", activation.describe(listener), secure)

    def _secure(self, listener: socket.socket) -> ssl.SSLContext | None:
        return None if listener.family == socket.AF_UNIX else self._tls

    def check(self, http: Http) -> tokens.Tokens | None:
        """The tokens of these settings (``ConfigError`` if they or the certificate cannot be used)."""
        tls.context(http.tls_certificate, http.tls_key)
        return tokens.load(http.tokens_file)

    def apply(self, http: Http, possible: int, known: tokens.Tokens | None) -> None:
        """Take new settings, with the tokens that ``check`` gave. Connections made from now on get the certificate."""
        try:
            if self._tls is not None:
                tls.load(self._tls, http.tls_certificate, http.tls_key)
        except ConfigError as error:
            log.error("%s; connections get the certificate from before", error)
        self._configure(http, possible, known)

    def drain(self) -> None:
        """The daemon drains: every answer is its connection's last."""
        if not self._sockets.handed_over:
            for server in self._servers:
                server.draining = True
            return
        for acceptor in self._acceptors:
            acceptor.close()
        for server in self._servers:
            server.close_idle()

    @property
    def arriving(self) -> bool:
        """Whether clients that were accepted have a request on its way. With handed-over sockets only: who connects
        later is served by the next daemon, and only these have none but this one.
        """
        if not self._sockets.handed_over:
            return False
        return any(each.handing_over for each in self._acceptors) or any(each.arriving for each in self._servers)

    async def finish_sending(self, ends: float, hurry: asyncio.Event) -> None:
        """Let the clients take what is still to be sent of their answers: until ``ends``, by the loop's clock, or until
        there is a hurry. A transport does not tell when it has sent everything, so it is asked.
        """
        self._events.close()
        while any(each.unsent for each in self._servers) and self._loop.time() < ends and not hurry.is_set():
            await asyncio.sleep(SENDING)

    async def close(self) -> None:
        """Stop accepting, and close all connections."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._sockets.close()
        self._events.close()
        for server in self._servers:
            server.pre_shutdown()
        await asyncio.gather(*(server.shutdown(1.0) for server in self._servers))


def _traced(routes: Routes, spans: Spans | None) -> Handler:
    """The handler of a listener: the routes, within spans where those are on."""
    if spans is None:
        return routes
    from .spans import Traced

    return Traced(routes, spans)
