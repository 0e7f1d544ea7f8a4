"""What the workers tell of their database pools, kept beyond the workers' lives, and how long requests waited for
connections before that, in the queue.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from penstock.ipc.messages import WAIT_BOUNDS, PoolStatistics, Statistics


@dataclass(slots=True)
class Pool:
    """One seat's pool of one kind: how it is, and what it did since the seat is there."""

    generation: int
    now: PoolStatistics
    wait_seconds: float = 0.0
    requests: int = 0
    errors: int = 0

    def view(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "size": self.now.size,
            "available": self.now.available,
            "waiting": self.now.waiting,
            "max": self.now.granted,
            "wait_seconds": round(self.wait_seconds, 6),
            "requests": self.requests,
            "errors": self.errors,
        }


class DatabasePools:
    """All pools of all workers."""

    def __init__(self) -> None:
        self._pools: dict[str, dict[str, Pool]] = {}
        self.waits = [0] * (len(WAIT_BOUNDS) + 1)
        """How long connections were waited for, by bucket; of all workers that there ever were, and in the queue."""
        self.wait_seconds = 0.0

    def received(self, message: Statistics) -> None:
        """A worker tells of its pools."""
        seat = self._pools.setdefault(message.worker, {})
        for told in message.pools:
            pool = seat.get(told.kind)
            if pool is None:
                pool = seat[told.kind] = Pool(message.generation, told)
            pool.wait_seconds += told.wait_seconds
            pool.requests += sum(told.waits)
            pool.errors += told.errors
            if message.generation >= pool.generation:
                pool.generation, pool.now = message.generation, told
            self.waits = [before + more for before, more in zip(self.waits, told.waits, strict=True)]
            self.wait_seconds += told.wait_seconds

    def waited(self, seconds: float) -> None:
        """A request has waited in the queue for a connection, before a worker got to see it."""
        self.waits[bisect_left(WAIT_BOUNDS, seconds)] += 1
        self.wait_seconds += seconds

    def of(self, worker: str, generation: int) -> dict[str, Pool]:
        """The pools of a worker by kind, as far as this incarnation has told of them."""
        return {kind: each for kind, each in self._pools.get(worker, {}).items() if each.generation == generation}
