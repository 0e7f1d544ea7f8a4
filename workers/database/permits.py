"""Permits to take a database connection: as many as the supervisor grants, for whoever asked first.

Whatever a worker's code takes out of one of its pools costs a permit, be it for an agent that is handed a connection or
by one that was handed the pool. The supervisor sends no more calls of the first kind than there are permits; what those
of the second kind take it does not know, so here is where both wait for each other, in the order they came.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque


class AsyncPermits:
    """Permits for coroutines, in the order they asked."""

    def __init__(self) -> None:
        self.limit = 0
        self.held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def resize(self, limit: int) -> None:
        self.limit = limit
        self._wake()

    @property
    def waiting(self) -> int:
        return sum(not waiter.done() for waiter in self._waiting)

    def _wake(self) -> None:
        while self._waiting and self.held < self.limit:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self.held += 1
                waiter.set_result(None)

    async def acquire(self, timeout: float) -> bool:
        """False: there was none within ``timeout`` seconds."""
        if self.held < self.limit and not self._waiting:
            self.held += 1
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting.append(waiter)
        timer = loop.call_later(max(0.0, timeout), waiter.cancel)
        try:
            await waiter
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if waiter.done() and not waiter.cancelled():
                self.release()
            else:
                waiter.cancel()
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
            if task is not None and task.cancelling():
                raise
            return False
        finally:
            timer.cancel()
        return True

    def release(self) -> None:
        self.held -= 1
        self._wake()


class Turn:
    """A thread's place among those that wait for a permit."""

    __slots__ = ("_settled", "granted")

    def __init__(self) -> None:
        self.granted = False
        self._settled = threading.Event()

    def settle(self, granted: bool) -> None:
        """End the waiting, with a permit or without one."""
        if granted:
            self.granted = True
        self._settled.set()

    def wait(self, timeout: float) -> None:
        self._settled.wait(max(0.0, timeout))


class ThreadPermits:
    """Permits for threads, in the order they asked."""

    def __init__(self) -> None:
        self.limit = 0
        self.held = 0
        self._lock = threading.Lock()
        self._waiting: deque[Turn] = deque()

    def resize(self, limit: int) -> None:
        with self._lock:
            self.limit = limit
            self._wake()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def _wake(self) -> None:
        while self._waiting and self.held < self.limit:
            self.held += 1
            self._waiting.popleft().settle(granted=True)

    def acquire(self, timeout: float, turn: Turn | None = None) -> bool:
        """False: there was none within ``timeout`` seconds, or somebody has settled the ``turn`` without one."""
        turn = turn or Turn()
        with self._lock:
            self._waiting.append(turn)
            self._wake()
        turn.wait(timeout)
        with self._lock:
            if not turn.granted:
                self._waiting.remove(turn)
            return turn.granted

    def release(self) -> None:
        with self._lock:
            self.held -= 1
            self._wake()
