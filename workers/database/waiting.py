"""Waiting for a connection: for how long, how long it took, and what is raised in the end."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left

import psycopg_pool

from penstock.ipc.messages import WAIT_BOUNDS

from ..concurrency import remaining
from .metering import meter


class Unavailable(Exception):
    """No connection could be had. ``problem`` is ``database-unavailable`` or ``deadline-exceeded``."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail


class PoolTimeout(Unavailable, psycopg_pool.PoolTimeout):
    """The same from a pool that an agent was handed, where psycopg_pool's users expect its own exception."""


def pool_timeout(seconds: float) -> PoolTimeout:
    """What is raised after so many seconds without a connection, or at the deadline."""
    if remaining() <= 0.001:
        return PoolTimeout("deadline-exceeded", "the deadline was over before there was a database connection")
    return PoolTimeout("database-unavailable", f"there was no database connection within {seconds:.3g} s")


def patience(begun: float, timeout: float | None, usual: float) -> tuple[float, float]:
    """Until when (monotonic seconds) a permit is waited for, and how many seconds then for the connection.

    ``timeout``: as somebody gave it to a pool, ``usual``: the pool's own.
    """
    left = remaining()
    call = meter.get()
    if timeout is None and call is not None and not call.holds and left < math.inf:
        return begun + left, usual
    seconds = min(usual if timeout is None else timeout, left)
    return begun + seconds, seconds


class Waits:
    """How long connections of one kind were waited for since the last look. For coroutines and threads alike."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(WAIT_BOUNDS) + 1)
        self._seconds = 0.0
        self._errors = 0

    def observe(self, since: float, failed: bool = False) -> None:
        """A wait that began at ``since`` (monotonic seconds) has ended."""
        seconds = time.monotonic() - since
        with self._lock:
            self._counts[bisect_left(WAIT_BOUNDS, seconds)] += 1
            self._seconds += seconds
            self._errors += failed

    def take(self) -> tuple[list[int], float, int]:
        """Counts by ``WAIT_BOUNDS``, seconds and errors; from now on they are counted anew."""
        with self._lock:
            taken = self._counts, self._seconds, self._errors
            self._counts, self._seconds, self._errors = [0] * (len(WAIT_BOUNDS) + 1), 0.0, 0
        return taken
