"""Accepts connections, as many in one turn of the loop as have come.

``loop.create_server`` would do it, but for two things. libuv takes one connection in a turn; where clients that are
refused ask again at once, a turn is long, and the last of two hundred that connect together would wait for seconds
before anybody knows of them. And with TLS a connection is given to its server only after the handshake: whoever opens
very many and says nothing could take every descriptor that the daemon may have. Accepted from here, it counts from its
first moment, and beyond ``http.max_connections`` it is closed at once, since nothing can be said to a client before the
handshake. Without TLS it is for the server to say so.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import Final

from penstock.ipc.tasks import Tasks

from .server import Server

log = logging.getLogger("penstock.http")

BATCH: Final = 64
"""Connections accepted in one turn of the loop."""

AGAIN: Final = 0.1
"""Seconds until the next attempt where the host gives no more descriptors."""

SHUTDOWN: Final = 2.0
"""Seconds that a client may take to say its farewell (TLS's ``close_notify``)."""


class Acceptor:
    """Takes connections from a listening socket for a server, until it is closed."""

    def __init__(self, server: Server, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        """Begins to accept; with TLS where there is a context."""
        self._loop = asyncio.get_running_loop()
        self._server = server
        self._listener = listener
        self._context = context
        self._handshakes = Tasks(log, "accepting a connection")
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        self._refused = False
        """The last attempt to accept failed, which was said."""
        listener.setblocking(False)
        self._resume()

    @property
    def handing_over(self) -> bool:
        """Connections were accepted that their server does not know yet."""
        return len(self._handshakes) > 0

    def close(self) -> None:
        """Accept no more. Handshakes that have begun may end. May be called twice."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener)
            if self._pause is not None:
                self._pause.cancel()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if not self._refused:
                    log.error("no connection can be accepted for now: %s", error.strerror)
                self._refused = True
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(AGAIN, self._resume)
                return
            self._refused = False
            if self._context is not None and self._server.free <= len(self._handshakes):
                connection.close()
                continue
            connection.setblocking(False)
            self._handshakes.start(self._hand_over(connection))

    async def _hand_over(self, connection: socket.socket) -> None:
        secure = self._context is not None
        try:
            await self._loop.connect_accepted_socket(
                self._server,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._server.limits.header_timeout if secure else None,
                ssl_shutdown_timeout=SHUTDOWN if secure else None,
            )
        except OSError as error:
            # A client that speaks no TLS, does not trust the certificate, takes too long, or is gone.
            log.debug("a connection failed: %s", error)
            connection.close()
        except BaseException:
            connection.close()
            raise
