"""One timer for all batches that wait for more requests while a worker is free. How long they do so is decided by
``core.batching``.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

from ..core.scheduler import Scheduler


class Gathering:
    """Pumps a pool when something there has waited for others for long enough."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, scheduler: Scheduler[Any], pump: Callable[[str], object]
    ) -> None:
        """``pump``: send what waits in a pool and can run now."""
        self._loop = loop
        self._scheduler = scheduler
        self._pump = pump
        self._timer: asyncio.TimerHandle | None = None
        self._armed = math.inf

    def arm(self) -> None:
        """Set the timer for the first moment at which something waits no longer."""
        until = min(self._scheduler.gathering.values(), default=math.inf)
        if until >= self._armed:
            return  # by then it is set again
        if self._timer is not None:
            self._timer.cancel()
        self._armed = until
        self._timer = self._loop.call_later(max(0.0, until - time.monotonic()), self._due)

    def _due(self) -> None:
        self._timer, self._armed = None, math.inf
        # What is due within the millisecond goes, too: the loop's timers know no less.
        for pool in self._scheduler.gathered(time.monotonic() + 0.001):
            self._pump(pool)
        self.arm()
