"""Sends a stream's items: in order, coalesced, and no faster than the client takes them.

*Coalescing, without waiting.* An item is sent at once if nothing of its stream was sent in this turn of the loop. What
comes after it in the same turn is put together, and sent when that is ``FULL``, when ``SOON`` has passed, or when the
turn ends. So no item waits for the next one, and many small ones cost one message. (The usual timer that collects for
some milliseconds shows in the first item of every stream: Ray Serve's issue 59681.)

*Credit.* Bytes are sent while there is credit (``ipc.messages.WINDOW`` and what ``More`` brings); only the last item
may go beyond it. Without credit what is made waits here, and whoever makes it waits once that is ``FULL``: a coroutine
in ``room``, a thread in ``wait``.

*Threads.* A plain generator runs on a thread, which may be interrupted at any of its steps, so that it must hold no
lock there. It only appends to a deque and counts what it has put, the loop only takes from it and counts what it has
sent; each is atomic by itself. The loop is woken once for all that is put until its next turn.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from penstock.ipc.messages import WINDOW

FULL: Final = 16 * 1024
"""Bytes that are sent together, and how much may wait for credit before its maker does."""

SOON: Final = 0.0005
"""Seconds after which what was put together is sent, though the turn goes on."""

TURN: Final = 0.005
"""Seconds after which a generator that awaits nothing lets the loop turn."""

Send = Callable[[bytes, int], None]


class Closed(Exception):
    """Nobody takes the stream any more."""


class Outflow:
    """Of one stream."""

    __slots__ = (
        "_chunks",
        "_credit",
        "_drained",
        "_in_turn",
        "_loop",
        "_put",
        "_room",
        "_scheduled",
        "_send",
        "_sent",
        "_sent_at",
        "_turned_at",
        "_waiter",
        "closed",
        "stalled",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send, credit: int = WINDOW) -> None:
        """``send`` gets the bytes that go together, and how many items these are."""
        self._loop = loop
        self._send = send
        self._credit = credit
        self._chunks: deque[bytes] = deque()
        self._put = 0
        """Bytes put, of which ``_sent`` were sent. Only who makes the items writes the one, only the loop the other."""
        self._sent = 0
        self._in_turn = False
        self._sent_at = self._turned_at = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._scheduled = False
        self._room: threading.Event | None = None
        self._drained: Callable[[], None] | None = None
        self.closed = False
        """Nobody takes it any more."""
        self.stalled = 0.0
        """Seconds in which it waited for credit."""

    # On the loop

    def put(self, chunk: bytes) -> bool:
        """Take an item, framed. True: call ``room`` before the next one. On the loop's thread."""
        self._chunks.append(chunk)
        self._put += len(chunk)
        if not self._in_turn:
            self._in_turn = True
            self._loop.call_soon(self._turned)
            self._turned_at = time.monotonic()
            self._flush()
            return self._credit <= 0
        waiting = self._put - self._sent
        if waiting >= FULL or time.monotonic() - self._sent_at >= SOON:
            self._flush()
            return self._put - self._sent >= FULL or time.monotonic() - self._turned_at >= TURN
        return False

    async def room(self) -> None:
        """Wait until more can be put, and let the loop turn in any case (``Closed``)."""
        if self._put - self._sent < FULL and self._credit > 0:
            await asyncio.sleep(0)
        began = time.monotonic()
        while not self.closed and (self._put - self._sent >= FULL or self._credit <= 0):
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
                self.stalled += time.monotonic() - began
                began = time.monotonic()
        if self.closed:
            raise Closed

    def more(self, credit: int) -> None:
        """Add credit, in bytes."""
        self._credit += credit
        self._flush()

    def close(self) -> None:
        """The stream has no reader any more: drop what waits, and wake who waits for room or for the end."""
        self.closed = True
        self._chunks.clear()
        self._sent = self._put
        self._let_go()

    @property
    def is_untouched(self) -> bool:
        """Nothing was ever put."""
        return not self._put and not self._chunks

    @property
    def empty(self) -> bool:
        """All that was put is sent."""
        return not self._chunks

    def when_drained(self, drained: Callable[[], None]) -> None:
        """Call this once all that was put is sent, or nobody takes it any more: at once, or later."""
        self._flush()
        if not self._chunks:
            drained()
        else:
            self._drained = drained

    def _turned(self) -> None:
        self._in_turn = False
        if self._chunks:
            self._flush()

    def _flush(self) -> None:
        """Send what there is credit for."""
        self._scheduled = False
        chunks = self._chunks
        if self.closed:
            # A thread may have put some since.
            chunks.clear()
        while chunks and self._credit > 0:
            # As many as fill one message, or the credit.
            together: list[bytes] = []
            size = 0
            most = min(FULL, self._credit)
            while chunks and size < most:
                chunk = chunks.popleft()
                together.append(chunk)
                size += len(chunk)
            self._credit -= size
            self._sent += size
            self._send(together[0] if len(together) == 1 else b"".join(together), len(together))
            self._sent_at = time.monotonic()
        if self._credit > 0 or not chunks:
            self._let_go()

    def _let_go(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._room is not None:
            self._room.set()
        if self._drained is not None and not self._chunks:
            drained, self._drained = self._drained, None
            drained()

    # On a thread

    def put_in_thread(self, chunk: bytes) -> bool:
        """Take an item, framed. True: call ``wait`` before the next one. On the thread that makes the items."""
        self._chunks.append(chunk)
        self._put += len(chunk)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._flush)
        return self._put - self._sent >= FULL

    def wait(self) -> None:
        """Wait until more can be put (``Closed``). Not to be interrupted: ``close`` ends it."""
        began = time.monotonic()
        if self._room is None:
            self._room = threading.Event()
        while not self.closed:
            self._room.clear()
            if self._put - self._sent < FULL or self.closed:
                break
            self._room.wait()
        self.stalled += time.monotonic() - began
        if self.closed:
            raise Closed
