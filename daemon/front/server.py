"""The server of a listener: it makes a connection object for every client, and keeps them within the limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import web

from ..core.refusals import Comeback
from .connection import MAX_HEADERS, MAX_LINE, Connection, final
from .exchange import Handler
from .limits import Limits
from .responses import retry_after

KEEPALIVE: Final = 75.0
"""Seconds for which a connection may be idle: longer than what proxies in front keep theirs for, mostly 60."""

REFUSAL_DELAY: Final = 0.2
"""Seconds between a refusal's writing and the closing, so that a reset does not overtake it."""

MOST_REFUSALS: Final = 100
"""Connections over the limit that get a 503 at once: fewer than the descriptors kept free for everything else."""


class Server(web.Server):
    """Makes a connection object for every client, and keeps them within the limits."""

    def __init__(
        self, handler: Handler, limits: Limits | None = None, stray: Callable[[Comeback], None] = lambda comeback: None
    ) -> None:
        """``stray`` is told what a client was told that leaves after a refusal."""
        super().__init__(
            cast(Any, handler),
            # aiohttp 3.14 lets handlers run on when their client goes; here it has to be asked for.
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
        )
        self.limits = limits or Limits()
        """May be replaced at any time."""
        self.stray = stray
        self.draining = False
        """Every answer is its connection's last."""
        self._refused = 0
        self._watch: asyncio.TimerHandle | None = None

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    @property
    def free(self) -> int:
        """How many more connections there may be."""
        return self.limits.connections - len(self._connections)

    def refuse(self, transport: asyncio.Transport) -> None:
        """Answer 503 and close after ``REFUSAL_DELAY``; abort when ``MOST_REFUSALS`` refusals are pending."""
        if self._refused >= MOST_REFUSALS:
            transport.abort()
            return
        detail = f"{self.limits.connections} connections are open, which is the limit (http.max_connections)"
        transport.write(final("overloaded", detail, extra=retry_after(1.0)))
        self._refused += 1
        self._loop.call_later(REFUSAL_DELAY, self._refusal_read, transport)

    def _refusal_read(self, transport: asyncio.Transport) -> None:
        self._refused -= 1
        transport.close()

    def watch(self) -> None:
        """Check the connections regularly, as long as there are any."""
        if self._watch is None:
            self._watch = self._loop.call_later(self.limits.interval, self._check)

    def _check(self) -> None:
        self._watch = None
        now = self._loop.time()
        for connection in self.connections:
            cast(Connection, connection).check(self.limits, now)
        if self._connections:
            self.watch()

    def close_idle(self) -> None:
        """Close idle connections now, and every other one with its next answer."""
        self.draining = True
        for connection in self.connections:
            cast(Connection, connection).close_idle()

    @property
    def arriving(self) -> bool:
        """Whether a request is on its way on any connection."""
        return any(cast(Connection, each).arriving for each in self.connections)

    @property
    def unsent(self) -> bool:
        """Whether part of an answer is still to be sent on any connection."""
        return any(cast(Connection, each).unsent for each in self.connections)

    async def shutdown(self, timeout: float | None = None) -> None:
        await super().shutdown(timeout)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
