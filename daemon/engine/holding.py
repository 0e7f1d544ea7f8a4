"""Delayed refusals, sent in the order of their turns. ``core.comebacks`` decides when each has its turn.

One timer for all: it is set for the first turn and sends everything that is due, so that a thousand delayed refusals
cost a future each and no timer. A client that leaves keeps nothing but an entry in the heap until its turn.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time


class Holding:
    """All that are held now."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._turns: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0.0

    async def wait(self, until: float) -> None:
        """Wait for a turn (absolute monotonic seconds), or until ``let_go``."""
        turn = self._loop.create_future()
        heapq.heappush(self._turns, (until, next(self._order), turn))
        if self._timer is None or until < self._armed:
            self._arm()
        await turn

    def let_go(self) -> None:
        """Let go of all."""
        turns, self._turns = self._turns, []
        for _, _, turn in turns:
            _end(turn)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._turns:
            self._armed = self._turns[0][0]
            self._timer = self._loop.call_later(max(0.0, self._armed - time.monotonic()), self._due)

    def _due(self) -> None:
        self._timer = None
        now = time.monotonic()
        # What is due within the millisecond goes, too: the loop's timers know no less.
        while self._turns and self._turns[0][0] <= now + 0.001:
            _end(heapq.heappop(self._turns)[2])
        self._arm()


def _end(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
