"""Replaces workers that are over ``pools.X.max_requests`` or ``max_rss``: one at a time in each pool, the new one ready
before the old one drains. ``core.recycling`` says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby

from ..core.lifecycle import Phase, Seat
from ..core.recycling import Limits, Wear, due
from .fleet import Fleet, Incarnation, Place


class Recycler:
    """Looks at all workers whenever it is told to."""

    def __init__(self, fleet: Fleet, rss: Callable[[Incarnation], int | None]) -> None:
        """``rss``: a worker's resident bytes, None if that is not known."""
        self._fleet = fleet
        self._rss = rss
        self._tried: dict[str, tuple[int, float]] = {}
        """By seat: the generation whose replacement was started last, and when (monotonic seconds)."""

    def look(self, now: float) -> None:
        """Replace what is due. ``now``: monotonic seconds."""
        for pool, group in groupby(self._fleet.places(), key=lambda place: place.pool):
            places = list(group)
            if any(_limited(place) for place in places) and not self._fleet.unsettled(pool):
                self._look_at(places, now)

    def _look_at(self, places: list[Place], now: float) -> None:
        for place in places:
            one = place.current
            if one is None or one.worker is None or one.phase is not Phase.SERVING or place.state is not Seat.RUNNING:
                continue
            settings = one.config.pools[place.pool]
            tried = self._tried.get(place.name)
            since = now - tried[1] if tried is not None and tried[0] == one.generation else math.inf
            wear = Wear(place.index, one.worker.answered, now - one.ready_at, self._rss(one), since)
            cause = due(Limits(settings.max_requests, settings.max_rss), settings.workers, wear)
            if cause:
                self._tried[place.name] = one.generation, now
                self._fleet.recycle(place, cause, _why(cause, wear))
                return


def _limited(place: Place) -> bool:
    if place.current is None:
        return False
    settings = place.current.config.pools[place.pool]
    return bool(settings.max_requests or settings.max_rss)


def _why(cause: str, wear: Wear) -> str:
    if cause == "max_requests":
        return f"it has answered {wear.answered} calls (max_requests)"
    return f"it has {wear.rss} bytes of resident memory (max_rss)"
