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

from penstock.ipc.messages import EVENTS, WINDOW, Head

from ..core.flow import Window

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


class StreamedAnswer:
    """Of one call."""

    __slots__ = (
        "_allow",
        "_claimed",
        "_closed",
        "_ended",
        "_heard_at",
        "_last",
        "_loop",
        "_parts",
        "_room",
        "_taken",
        "_timer",
        "_waiter",
        "_window",
        "begun",
        "events",
        "head",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, media_type: str, room: Room, allow: Callable[[int], None]
    ) -> None:
        """``allow`` tells the worker how many bytes more it may send."""
        self._loop = loop
        self._room = room
        self._allow = allow
        self.events = media_type == EVENTS
        self.begun: asyncio.Future[None] = loop.create_future()
        """Done when the head has to go, or when the call has ended before."""
        self.head: Head | None = None
        """Of a stream of bytes."""
        self._parts: deque[bytes] = deque()
        self._window = Window(WINDOW, loop.time())
        self._claimed = 0
        self._taken = 0
        """Bytes of the piece that the connection writes now."""
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._closed = False
        self._last = b""
        """The item that tells of a failure."""
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
        self._go_on()

    def end(self, problem: bytes = b"") -> None:
        """The call has ended. ``problem``: as JSON, if it failed after it had begun."""
        if problem and self.head is None:
            self._last = b"event: error\ndata: %b\n\n" % problem if self.events else problem + b"\n"
        elif problem:
            self._last = problem
        self._ended = True
        self._timer.cancel()
        self._go_on()

    def _go_on(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _silence(self) -> None:
        quiet = self._loop.time() - self._heard_at
        if quiet >= SILENCE:
            quiet = 0.0
            self._heard_at = self._loop.time()
            if self.events:
                self._parts.append(COMMENT)
            self._go_on()
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
                return self._final()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        piece = self._parts.popleft()
        self._taken = 0 if piece is COMMENT else len(piece)
        return piece

    def _final(self) -> bytes:
        last, self._last = self._last, b""
        if not last:
            raise StopAsyncIteration
        if self.head is not None:
            raise BrokenOff
        return last

    def _give_back(self, size: int) -> None:
        before = self._window.size
        credit = self._window.take(size, self._loop.time(), may_grow=self._room.has_plenty(before))
        grown = self._window.size - before
        if grown:
            self._room.claim(grown)
            self._claimed += grown
        if credit and not self._ended:
            self._allow(credit)

    async def aclose(self) -> None:
        """Nothing is written any more."""
        self._closed = True
        self._timer.cancel()
        self._parts.clear()
        if self._claimed:
            self._room.release(self._claimed)
            self._claimed = 0
