"""Every ZeroMQ option that Penstock sets, once, with its reason; and the two ways in which it moves messages.

Why one PUSH for each worker: with one PUSH over several PULLs, ZeroMQ deals messages round robin to whoever is
connected, and the kernel's buffers let a stalled worker swallow many of them before any high-water mark is felt. So
the supervisor counts credits, picks the worker itself, and has a socket for each. The mark below is the safety net
under the credits, never the mechanism.

Why plain sockets and ``add_reader`` instead of ``zmq.asyncio``: that costs a future and a task step for each message,
about a fifth of the supervisor's CPU time on small requests.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import zmq

HIGH_WATER: Final = 4096
"""Messages a socket may hold; above any worker's slots, so that meeting it means a fault, not load."""

ZERO_COPY: Final = 64 * 1024
"""Bytes from which a body is handed to ZeroMQ without a copy; below, the bookkeeping costs more than the copy."""

BATCH: Final = 64
"""Messages handled for one wake-up before the loop gets a turn for everything else."""

Frames = Sequence[bytes]


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
    socket.bind(address)
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


def send(socket: zmq.Socket[bytes], header: bytes, body: bytes | None = None) -> bool:
    """Send one message without ever blocking. False: the socket takes none (no peer, or at its high-water mark)."""
    try:
        if body is None:
            socket.send(header, zmq.NOBLOCK)
            return True
        # Once the first frame is taken the rest is, too: ZeroMQ moves a multipart message as a whole.
        socket.send(header, zmq.NOBLOCK | zmq.SNDMORE)
    except zmq.Again:
        return False
    socket.send(body, zmq.NOBLOCK, copy=len(body) < ZERO_COPY)
    return True


class Inbox:
    """Hands a socket's messages to a function, woken by the event loop.

    ZeroMQ's descriptor is edge-triggered: it says once that something came, so a wake-up has to read until the socket
    is empty. It stops after ``BATCH`` messages and comes back in the next turn, lest a flood keep everything else from
    running. The socket being empty is learnt from the exception; asking for ``EVENTS`` before each message costs more.
    """

    __slots__ = ("_again", "_closed", "_loop", "_receive", "_socket")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: zmq.Socket[bytes],
        receive: Callable[[bytes, bytes], None],
    ) -> None:
        """``receive`` gets the header and the body frame (``b""`` when there is none) of each message."""
        self._loop = loop
        self._socket = socket
        self._receive = receive
        self._closed = False
        self._again = False

    def open(self) -> None:
        """Start reading. What came before the descriptor was watched is found by the first, unasked read."""
        self._loop.add_reader(self._socket.fileno(), self.read)
        self._schedule()

    def _schedule(self) -> None:
        if not self._again:
            self._again = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._again = False
        self.read()

    def read(self) -> None:
        """Take what is there, at most ``BATCH`` messages."""
        socket = self._socket
        receive = self._receive
        for _ in range(BATCH):
            if self._closed:
                return
            try:
                header = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            body = socket.recv(zmq.NOBLOCK) if socket.getsockopt(zmq.RCVMORE) else b""
            receive(header, body)
        self._schedule()

    def close(self) -> None:
        """Stop reading and close the socket. May be called twice."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()


class Outbox:
    """Sends in order and loses nothing: what the socket does not take now goes first when it takes again."""

    __slots__ = ("_loop", "_retry", "_socket", "_waiting")

    RETRY: Final = 0.005

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: zmq.Socket[bytes]) -> None:
        self._loop = loop
        self._socket = socket
        self._waiting: deque[tuple[bytes, bytes | None]] = deque()
        self._retry: asyncio.TimerHandle | None = None

    def send(self, header: bytes, body: bytes | None = None) -> None:
        """Send now, or as soon as the socket takes messages again."""
        if self._waiting or not send(self._socket, header, body):
            self._waiting.append((header, body))
            if self._retry is None:
                self._retry = self._loop.call_later(self.RETRY, self._flush)

    def _flush(self) -> None:
        self._retry = None
        while self._waiting:
            if not send(self._socket, *self._waiting[0]):
                self._retry = self._loop.call_later(self.RETRY, self._flush)
                return
            self._waiting.popleft()

    @property
    def waiting(self) -> int:
        """Messages that the socket has not taken yet."""
        return len(self._waiting)

    def close(self, linger: int = 0) -> None:
        """Close the socket; what waits here is dropped, what ZeroMQ has may still go within ``linger`` milliseconds."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._waiting.clear()
        self._socket.close(linger)
