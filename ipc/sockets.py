"""Every ZeroMQ option that Penstock sets, once, with its reason; and the reader and writer of messages.

Why one PUSH for each worker: with one PUSH over several PULLs, ZeroMQ deals messages round robin to whoever is
connected, and the kernel's buffers let a stalled worker swallow many of them before any high-water mark is reached. So
the supervisor counts credits, picks the worker itself, and has a socket for each. The mark below is the safety net
under the credits, never the mechanism.

Why plain sockets and ``add_reader`` instead of ``zmq.asyncio``: that costs a future and a task step for each message,
about a fifth of the supervisor's CPU time on small requests.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final

import zmq
from zmq.backend import Socket as BackendSocket

HIGH_WATER: Final = 4096
"""Messages a socket may hold; above any worker's slots, so that meeting it means a fault, not load."""

ZERO_COPY: Final = 64 * 1024
"""Bytes from which a body is handed to ZeroMQ without a copy; below, the bookkeeping costs more than the copy."""

BATCH: Final = 64
"""Messages handled for one wake-up before the loop gets a turn for everything else."""

# The compiled methods without the Python ones around them, and flags as plain integers: half the cost of a message.
_send: Final = BackendSocket.send
_recv: Final = BackendSocket.recv
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


class UnsafeDirectory(Exception):
    """The directory for the sockets may be entered by others. The text names it and its mode."""


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context with one I/O thread: enough for well over the supervisor's own ceiling."""
    return zmq.Context(io_threads=1)


def check_directory(path: str) -> None:
    """Refuse a socket directory that anybody but its owner may enter (``UnsafeDirectory``)."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        raise UnsafeDirectory(f"{path} has mode {mode:04o}, and its sockets need 0700")


def _socket(ctx: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = ctx.socket(kind)
    # Closing must never wait for a peer that is gone; whoever closes has drained before.
    socket.linger = 0
    socket.sndhwm = HIGH_WATER
    socket.rcvhwm = HIGH_WATER
    # Without it a PUSH queues messages for a connection that is still being made, and loses them with it.
    socket.setsockopt(zmq.IMMEDIATE, 1)
    return socket


def bind_push(ctx: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """The supervisor's end of a worker's work or control channel."""
    socket = _socket(ctx, zmq.PUSH)
    try:
        socket.bind(address)
    except zmq.ZMQError:
        socket.close(linger=0)
        raise
    return socket


def bind_pull(ctx: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """The supervisor's end of the answer channel, shared by all workers."""
    socket = _socket(ctx, zmq.PULL)
    socket.bind(address)
    return socket


def connect_pull(ctx: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """A worker's end of its work or control channel."""
    socket = _socket(ctx, zmq.PULL)
    socket.connect(address)
    return socket


def connect_push(ctx: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """A worker's end of the answer channel."""
    socket = _socket(ctx, zmq.PUSH)
    socket.connect(address)
    return socket


def send(socket: zmq.Socket[bytes], pairs: Sequence[tuple[bytes, bytes]]) -> bool:
    """Send messages without ever blocking, all or none. False: the socket takes none (no peer, or at its mark).

    Several (up to 255) go as one ZeroMQ message, with their number in a frame of one byte before them: its thread and
    the peer are then woken once for all of them.
    """
    header, body = pairs[0]
    try:
        if len(pairs) > 1:
            _send(socket, bytes((len(pairs),)), _NOBLOCK_MORE)
        else:
            _send(socket, header, _NOBLOCK_MORE)
    except zmq.Again:
        return False
    last = False
    try:
        if len(pairs) > 1:
            _send(socket, header, _NOBLOCK_MORE)
            for next_header, next_body in pairs[1:]:
                _send_body(socket, body, _NOBLOCK_MORE)
                _send(socket, next_header, _NOBLOCK_MORE)
                body = next_body
        last = True
        _send_body(socket, body, _NOBLOCK)
    except zmq.Again:
        # Once the first frame is taken the rest is, too, unless the peer goes in between. Then ZeroMQ drops what it
        # has, and all that follows up to a last frame.
        if not last:
            _send(socket, b"", _NOBLOCK)
        return False
    return True


def _send_body(socket: zmq.Socket[bytes], body: bytes, flags: int) -> None:
    if len(body) < ZERO_COPY:
        _send(socket, body, flags)
    else:
        _send(socket, body, flags, copy=False)


class Inbox:
    """Hands a socket's messages to a function, woken by the event loop.

    ZeroMQ's descriptor is edge-triggered: it says once that something came, so a wake-up has to read until the socket
    is empty. It stops after ``BATCH`` messages and comes back in the next turn, so that a flood does not keep
    everything else from running. The socket being empty is learnt from the exception; asking for ``EVENTS`` before each
    message costs more.
    """

    __slots__ = ("_again", "_closed", "_loop", "_receive", "_socket")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: zmq.Socket[bytes],
        receive: Callable[[bytes, bytes], None],
    ) -> None:
        """``receive`` gets the header and the body frame (perhaps empty) of each message."""
        self._loop = loop
        self._socket = socket
        self._receive = receive
        self._closed = False
        self._again = False

    def open(self) -> None:
        """Start reading. What came before the descriptor was watched is found by a first read."""
        self._loop.add_reader(self._socket.fileno(), self.read)
        self._schedule()

    def _schedule(self) -> None:
        if not self._again:
            self._again = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._again = False
        self.read()

    def read(self) -> bool:
        """Take what is there, at most ``BATCH`` messages. Whether there may be more."""
        socket = self._socket
        receive = self._receive
        again = True
        try:
            for _ in range(BATCH):
                if self._closed:
                    break
                try:
                    header = _recv(socket, _NOBLOCK)
                except zmq.Again:
                    again = False
                    break
                if len(header) != 1:
                    receive(header, _recv(socket, _NOBLOCK))
                    continue
                for _ in range(header[0]):
                    receive(_recv(socket, _NOBLOCK), _recv(socket, _NOBLOCK))
        finally:
            # Whatever was raised: what is left would wait for the next message to come, maybe forever.
            again = again and not self._closed
            if again:
                self._schedule()
        return again

    def close(self) -> None:
        """Stop reading and close the socket. May be called twice."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()


class Outbox:
    """Sends what is handed to it in one turn of the loop as one message, in order.

    What the socket does not take stays and is tried again, unless ``refused`` is given: then it is handed back at once,
    for the owner to decide.
    """

    __slots__ = ("_closed", "_loop", "_refused", "_retry", "_scheduled", "_socket", "_waiting")

    RETRY: Final = 0.005
    """Seconds until a socket that took nothing is tried again."""
    MOST: Final = 100
    """Messages sent as one."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: zmq.Socket[bytes],
        refused: Callable[[int], None] | None = None,
    ) -> None:
        """``refused`` gets the number of messages that were not taken: the last ones handed over."""
        self._loop = loop
        self._socket = socket
        self._refused = refused
        self._waiting: list[tuple[bytes, bytes]] = []
        self._scheduled = False
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False

    def send(self, header: bytes, body: bytes = b"") -> None:
        """Send at the end of this turn of the loop, or as soon as the socket takes messages again."""
        self._waiting.append((header, body))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what waits, now."""
        self._scheduled = False
        while self._waiting and not self._closed:
            some = self._waiting[: self.MOST]
            if not send(self._socket, some):
                self._stuck()
                return
            del self._waiting[: self.MOST]

    def _stuck(self) -> None:
        if self._refused is not None:
            count = len(self._waiting)
            self._waiting.clear()
            self._refused(count)
        else:
            self._scheduled = True
            self._retry = self._loop.call_later(self.RETRY, self.flush)

    @property
    def waiting(self) -> int:
        """Messages that the socket has not taken yet."""
        return len(self._waiting)

    def close(self, linger: int = 0) -> None:
        """Close the socket; what waits here is dropped, what ZeroMQ has may still go within ``linger`` milliseconds."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._waiting.clear()
        self._socket.close(linger)
