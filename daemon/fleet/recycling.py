"""Replaces workers that are over ``pools.X.max_requests`` or ``max_rss``: one at a time in each pool, the new one ready
before the old one drains. ``core.recycling`` says which.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import groupby

from ..core.lifecycle import Phase, SeatState
from ..core.recycling import Limits, Usage, exceeded
from .seat import Seat
from .seats import Seats

log = logging.getLogger("penstock.fleet")


class Recycler:
    """Checks all workers whenever it is told to."""

    def __init__(self, seats: Seats, rss: Callable[[int], int | None]) -> None:
        """``rss``: a process's resident bytes by its pid, None if that is not known."""
        self._seats = seats
        self._rss = rss
        self._tried: dict[str, tuple[int, float]] = {}
        """By seat: the generation whose replacement was started last, and when (monotonic seconds)."""

    def check(self, now: float) -> None:
        """Replace the workers that are over a limit. ``now``: monotonic seconds."""
        for pool, group in groupby(self._seats.in_order(), key=lambda seat: seat.pool):
            seats = list(group)
            if any(_limited(seat) for seat in seats) and not self._seats.unsettled(pool):
                self._check_pool(seats, now)

    def _check_pool(self, seats: list[Seat], now: float) -> None:
        for seat in seats:
            incarnation = seat.current
            if incarnation is None or incarnation.worker is None or incarnation.phase is not Phase.SERVING:
                continue
            if seat.state is not SeatState.RUNNING:
                continue
            generation, settings = incarnation.identity.generation, incarnation.config.pools[seat.pool]
            tried = self._tried.get(seat.name)
            since = now - tried[1] if tried is not None and tried[0] == generation else math.inf
            age, rss = now - incarnation.ready_at, self._rss(incarnation.pid)
            usage = Usage(seat.index, incarnation.worker.answered, age, rss, since)
            cause = exceeded(Limits(settings.max_requests, settings.max_rss), settings.workers, usage)
            if cause:
                self._tried[seat.name] = generation, now
                log.info("%s is recycled: %s", seat.name, _why(cause, usage), extra={"worker": seat.name})
                seat.replace(cause)
                return


def _limited(seat: Seat) -> bool:
    if seat.current is None:
        return False
    settings = seat.current.config.pools[seat.pool]
    return bool(settings.max_requests or settings.max_rss)


def _why(cause: str, usage: Usage) -> str:
    if cause == "max_requests":
        return f"it has answered {usage.answered} calls (max_requests)"
    return f"it has {usage.rss} bytes of resident memory (max_rss)"
