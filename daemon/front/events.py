"""``GET /v1/events``: what ``GET /v1/status`` says, each second, to everybody who reads it, as server-sent events.

One timer and one JSON text a second serve all readers, and there is neither while nobody reads. A reader has no queue:
it is handed the newest text once its connection has taken the one before, so it holds at most what its transport
buffers. What has passed meanwhile it does not need, for who has missed a second is given the whole once more.

The first event is the whole object. In those that follow ``history`` and ``events`` hold only what is new, so that a
page appends it; a page has to take an entry twice all the same, since a whole may overlap with the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

from .texts import to_json

MEDIA_TYPE: Final = "text/event-stream"
PERIOD: Final = 1.0
"""Seconds between two events."""
MOST: Final = 100
"""Readers at once."""
RETRY: Final = b"retry: 1000\n\n"
"""Milliseconds after which a client comes again by itself."""
COMMENT_EVERY: Final = 15
"""Events between two comment lines, which keep intermediaries from closing an idle connection."""

Source = Callable[[float], dict[str, Any]]
"""The status, its history no older than this (seconds since 1970; 0.0: all there is)."""


class Events:
    """The event stream, of which all readers read the same."""

    def __init__(self, loop: asyncio.AbstractEventLoop, source: Source) -> None:
        self._loop = loop
        self._source = source
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._next = asyncio.Event()
        """Set for a moment whenever there is something new."""
        self._number = 0
        """Of the newest event; each has the next."""
        self._text = b""
        self._whole = b""
        """The whole object as it was when somebody needed it since the newest event; empty: nobody has."""
        self._history_at = 0.0
        self._event_at = 0.0
        """Up to when the readers have been told the history and the events."""
        self._closed = False
        self.readers = 0

    @property
    def full(self) -> bool:
        """There are as many readers as there may be."""
        return self.readers >= MOST

    async def read(self) -> AsyncGenerator[bytes, None]:
        """The texts for one reader, until the daemon stops. It counts as one from the first that it asks for."""
        self.readers += 1
        try:
            if self._timer is None:
                self._begin()
            seen = self._number
            yield RETRY + self._everything()
            while not self._closed:
                if seen == self._number:
                    await self._next.wait()
                    continue
                missed = self._number - seen > 1
                seen = self._number
                yield self._everything() if missed else self._text
        finally:
            self.readers -= 1
            if not self.readers:
                self._pause()

    def close(self) -> None:
        """End all streams. There are no new ones afterwards."""
        self._closed = True
        self._pause()
        self._next.set()

    def _begin(self) -> None:
        """Somebody reads."""
        if not self._closed:
            self._due = self._loop.time() + PERIOD
            self._timer = self._loop.call_at(self._due, self._tick)

    def _pause(self) -> None:
        """Nobody reads any more: make no texts, and keep none."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._text = self._whole = b""

    def _tick(self) -> None:
        now = self._loop.time()
        # A loop that was held up does not make up for the seconds that have passed.
        self._due = self._due + PERIOD if now < self._due + PERIOD else now + PERIOD
        self._timer = self._loop.call_at(self._due, self._tick)
        status = self._source(self._history_at)
        if "events" in status:
            status["events"] = [each for each in status["events"] if each["at"] > self._event_at]
        self._note(status)
        self._number += 1
        self._text = _event(status)
        if self._number % COMMENT_EVERY == 0:
            self._text += b":\n\n"
        self._whole = b""
        self._next.set()
        self._next.clear()

    def _everything(self) -> bytes:
        """The whole object, made at most once between two events, however many come at once."""
        if not self._whole:
            status = self._source(0.0)
            if self.readers == 1:
                self._note(status)
            self._whole = _event(status)
        return self._whole

    def _note(self, status: dict[str, Any]) -> None:
        """Everybody who reads will have been told this."""
        history, events = status.get("history"), status.get("events")
        if history and history["at"]:
            self._history_at = history["at"][-1]
        if events:
            self._event_at = events[-1]["at"]


def _event(status: dict[str, Any]) -> bytes:
    """One event. JSON as it is encoded here has no line breaks, so it is one ``data`` line."""
    return b"event: status\ndata: %b\n\n" % to_json(status)
