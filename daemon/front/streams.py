"""A streamed answer: from the parts that a worker sends to the pieces that the connection writes.

It is the sink of a call whose agent streams. The head of the answer goes with the first part, so that whatever fails
before it is an ordinary problem with its status; after ``SILENCE`` without any it goes anyway. The parts are framed by
the worker and only handed on here. What the connection has taken is given back to the worker as credit
(``core.flow``), so that a client that reads slowly makes the generator wait, and nothing is kept here but what the
window allows.

The end: items end with the final chunk, and those of a stream that failed with its problem before that. A stream of
bytes that failed is broken off without the final chunk (``BrokenOff``), since nothing in it could say so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from penstock.ipc.messages import WINDOW, Head

from ..core.flow import Window
from ..engine.tickets import Ticket

SILENCE: Final = 15.0
"""Seconds without an item after which the head goes, and after which an event stream gets a comment."""

COMMENT: Final = b":\n\n"


class BrokenOff(ConnectionError):
    """The stream ends before its end: the connection closes without the final chunk."""


class Room(Protocol):
    """Where bytes that are on their way are counted (``core.backlog.Backlog``)."""

    def claim(self, size: int) -> None:
        """Count them, whether there is room or not."""

    def release(self, size: int) -> None:
        """They are gone."""

    def has_plenty(self, size: int) -> bool:
        """Whether so many more leave room for others."""


class Account(Protocol):
    """Whom a stream has to do with."""

    def count(self, streams: int) -> None:
        """So many streams more are being sent."""

    def allow(self, ticket: Ticket, credit: int) -> None:
        """Tell the worker how many bytes more it may send."""

    def failure(self, ticket: Ticket) -> bytes:
        """The problem of a call that has ended, as JSON; empty if it ended well."""

    def withdraw(self, ticket: Ticket) -> None:
        """The client is gone."""


class StreamedAnswer:
    """Of one call."""

    __slots__ = (
        "_account",
        "_begins",
        "_claimed",
        "_closed",
        "_ended",
        "_heard_at",
        "_loop",
        "_parts",
        "_room",
        "_taken",
        "_timer",
        "_told",
        "_waiter",
        "_window",
        "begun",
        "head",
        "ticket",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ticket: Ticket,
        account: Account,
        room: Room,
        begins: Callable[[], None],
    ) -> None:
        """``begins`` is told, once, that the head has to go."""
        self._loop = loop
        self._begins = begins
        self._account = account
        self._room = room
        self.ticket = ticket
        self.begun = False
        """The head goes, or has gone."""
        self.head: Head | None = None
        """Of a stream of bytes."""
        self._parts: deque[bytes] = deque()
        self._window = Window(WINDOW, loop.time())
        self._claimed = 0
        self._taken = 0
        """Bytes of the piece that the connection writes now."""
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._closed = self._told = False
        self._heard_at = loop.time()
        self._timer = loop.call_later(SILENCE, self._silence)

    # From the worker

    def part(self, body: bytes, head: Head | None) -> None:
        """Some items, or some bytes, framed."""
        if self._closed:
            return
        if not self._claimed:
            self._room.claim(WINDOW)
            self._claimed = WINDOW
            self._window = Window(WINDOW, self._loop.time())
        self.head = self.head or head
        self._parts.append(body)
        self._heard_at = self._loop.time()
        self._begin()

    def end(self) -> None:
        """The call has ended; its ticket says how."""
        self._ended = True
        self._timer.cancel()
        self._wake()

    def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            self._account.count(1)
            self._begins()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _silence(self) -> None:
        quiet = self._loop.time() - self._heard_at
        if quiet >= SILENCE:
            quiet = 0.0
            self._heard_at = self._loop.time()
            if self.ticket.events and self.head is None:
                self._parts.append(COMMENT)
            self._begin()
        self._timer = self._loop.call_later(SILENCE - quiet, self._silence)

    # To the connection

    def __aiter__(self) -> StreamedAnswer:
        return self

    async def __anext__(self) -> bytes:
        """The next piece to write. By asking for it the connection says that it has taken the one before."""
        if self._taken:
            self._give_back(self._taken)
        while not self._parts:
            self._taken = 0
            if self._ended:
                return self._last()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        piece = self._parts.popleft()
        self._taken = 0 if piece is COMMENT else len(piece)
        return piece

    def _last(self) -> bytes:
        """What a stream that failed ends with (``StopAsyncIteration`` at the end of all)."""
        problem = b"" if self._told else self._account.failure(self.ticket)
        if not problem:
            raise StopAsyncIteration
        if self.head is not None:
            raise BrokenOff
        self._told = True
        return b"event: error\ndata: %b\n\n" % problem if self.ticket.events else problem + b"\n"

    def _give_back(self, size: int) -> None:
        before = self._window.size
        credit = self._window.take(size, self._loop.time(), may_grow=self._room.has_plenty(before))
        grown = self._window.size - before
        if grown:
            self._room.claim(grown)
            self._claimed += grown
        if credit and not self._ended:
            self._account.allow(self.ticket, credit)

    async def aclose(self) -> None:
        """Nothing is written any more: what is not complete has no reader."""
        self.close()
        if not self._ended:
            self._account.withdraw(self.ticket)

    def close(self) -> None:
        """Keep nothing for it any more."""
        if self.begun and not self._closed:
            self._account.count(-1)
        self._closed = True
        self._timer.cancel()
        self._parts.clear()
        if self._claimed:
            self._room.release(self._claimed)
            self._claimed = 0
