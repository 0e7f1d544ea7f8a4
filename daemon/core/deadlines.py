"""One timer structure for all deadlines: a hashed wheel, and the ladder that a late call climbs.

A loop timer for every request costs about a microsecond to set and cancel, ``asyncio.timeout`` three times that. Here
a deadline is one set insertion and one removal; the shell keeps a single timer for the earliest tick that has entries.
The idea is Varghese and Lauck's (Hashed and Hierarchical Timing Wheels, 1987); the dictionary takes the place of the
circular array, so that the span has no limit.

The ladder for a request whose deadline has come:

1. It waits in the queue: it ends, its client gets ``deadline-exceeded``; no worker ever sees it.
2. It runs: its client gets ``deadline-exceeded`` and the worker is told to cancel the call.
3. Half of ``grace`` later the worker has not given the slot back: its stack is captured.
4. ``grace`` seconds after the deadline it still has not: the worker is killed.
"""

from __future__ import annotations

import heapq
from typing import Final, Generic, TypeVar

from .model import Request

R = TypeVar("R", bound=Request)

TICK: Final = 0.005
"""Seconds that one slot of the wheel covers: a deadline is noticed at most this late."""


class Wheel(Generic[R]):
    """Requests by the time at which something has to happen to them."""

    __slots__ = ("_slots", "_ticks")

    def __init__(self) -> None:
        self._slots: dict[int, set[R]] = {}
        self._ticks: list[int] = []

    def add(self, request: R, at: float) -> None:
        """Hold the request until ``at`` (absolute seconds). One that is held already is moved."""
        slots = self._slots
        if request.tick >= 0:
            slots[request.tick].discard(request)
        tick = int(at / TICK) + 1
        slot = slots.get(tick)
        if slot is None:
            slots[tick] = {request}
            heapq.heappush(self._ticks, tick)
        else:
            slot.add(request)
        request.tick = tick

    def remove(self, request: R) -> None:
        """Forget the request; nothing happens if the wheel does not hold it."""
        slot = self._slots.get(request.tick)
        if slot is not None:
            slot.discard(request)
        request.tick = -1

    def due(self, now: float) -> list[R]:
        """Take out every request whose time has come, in the order of their arrival within a tick."""
        expired: list[R] = []
        # With an epsilon: asked at the very moment that ``next_at`` gave, it must find what is due.
        last = int(now / TICK + 1e-6)
        while self._ticks and self._ticks[0] <= last:
            slot = self._slots.pop(heapq.heappop(self._ticks))
            expired.extend(sorted(slot, key=lambda request: request.order))
        for request in expired:
            request.tick = -1
        return expired

    def next_at(self) -> float | None:
        """When the wheel wants to be asked next (absolute seconds); None while it is empty."""
        while self._ticks and not self._slots[self._ticks[0]]:
            del self._slots[heapq.heappop(self._ticks)]
        return self._ticks[0] * TICK if self._ticks else None

    @staticmethod
    def tick(at: float) -> int:
        """The number of the tick that begins at ``at``, as ``next_at`` gave it."""
        return round(at / TICK)

    def __len__(self) -> int:
        return sum(len(slot) for slot in self._slots.values())
