"""What there is: the pools with their workers and throttles, what waits, the deadlines, and the settings of all.

The lowest layer of ``scheduler``, whose header tells how they fit together. Nothing here decides about a request.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from .backlog import Backlog, Watermarks
from .deadlines import Wheel
from .dispatch import Balance, Pool
from .model import FULL, OVERLAP, Request, Worker
from .processing import QUANTUM, Processors
from .throttle import Policy, Throttle

if TYPE_CHECKING:
    from random import Random

R = TypeVar("R", bound=Request)
"""What the shell makes of a request."""


class Books(Generic[R]):
    """Pools, throttles, backlog and wheel, and the settings that they share."""

    __slots__ = (
        "_left",
        "_policy",
        "_processors",
        "_rng",
        "backlog",
        "grace",
        "host",
        "pools",
        "throttles",
        "wheel",
    )

    def __init__(self, marks: Watermarks, grace: float, policy: Policy, processors: float, rng: Random) -> None:
        """``grace``: seconds past its deadline until a call that does not yield costs its worker's life.
        ``processors``: of the host, as many as the daemon may use; a part of one where it has a quota.
        """
        self.backlog: Backlog[R] = Backlog(marks)
        self.grace = grace
        self.pools: dict[str, Pool] = {}
        self.throttles: dict[str, Throttle] = {}
        self.wheel: Wheel[R] = Wheel()
        self.host = Processors(quantum=QUANTUM * processors)
        self._policy = policy
        self._processors = processors
        self._left = processors
        self._rng = rng
        self._limit()

    def configure(self, balances: dict[str, Balance], marks: Watermarks, grace: float, policy: Policy) -> None:
        """Take the settings of a configuration. A pool that is gone stays as long as it has workers."""
        for name, balance in balances.items():
            self.pools.setdefault(name, Pool(name)).balance = balance
        for name in [name for name, pool in self.pools.items() if name not in balances and not pool.workers]:
            del self.pools[name]
            self.throttles.pop(name, None)
        self.backlog.remark(marks)
        self.grace = grace
        self._policy = policy
        for throttle in self.throttles.values():
            throttle.policy = policy
        self._limit()

    def leave_processors(self, left: float) -> None:
        """Set how many of the host's processors the workers may use. Call ``next`` for all pools afterwards."""
        self._left = left
        if self._policy.enabled:
            self.host.limit = OVERLAP * left * FULL

    def _limit(self) -> None:
        """Set what calls may want of processors; without the throttle, slots alone count."""
        limited = self._policy.enabled
        self.host.limit = OVERLAP * self._left * FULL if limited else math.inf
        self.host.long_limit = self._processors if limited else math.inf
        for pool in self.pools.values():
            for worker in pool.workers:
                worker.processors.limit = FULL if limited else math.inf

    def join(self, worker: Worker) -> None:
        """A worker is ready. Call ``next`` for its pool afterwards."""
        worker.host = self.host
        worker.processors.limit = FULL if self._policy.enabled else math.inf
        pool = self.pools.setdefault(worker.pool, Pool(worker.pool))
        pool.join(worker)
        self.throttle(worker.pool).capacity = pool.capacity()

    def throttle(self, pool: str) -> Throttle:
        """The throttle of a pool."""
        throttle = self.throttles.get(pool)
        if throttle is None:
            throttle = self.throttles[pool] = Throttle(self._policy, self._processors, self._rng)
        return throttle

    @property
    def policy(self) -> Policy:
        """Of the throttles."""
        return self._policy

    def predicted_wait(self, pool: str) -> float:
        """Seconds that what waits in a pool will take, as predicted."""
        queue = self.backlog.queues.get(pool)
        return 0.0 if queue is None else self.throttle(pool).backlog_seconds(queue)

    def calls(self, worker: Worker) -> dict[int, R]:
        """The calls in flight of a worker, by id. This scheduler has booked all of them, so they are of its type."""
        return cast("dict[int, R]", worker.calls)

    def crowd(self, worker: Worker) -> float:
        """Calls for each processor: of the host, or of the one that this worker's interpreter can use."""
        running = sum(each.processors.calls for pool in self.pools.values() for each in pool.workers)
        return max(running / self._processors, float(worker.processors.calls))

    @property
    def in_flight(self) -> int:
        """Calls that workers have."""
        return sum(len(worker.calls) for pool in self.pools.values() for worker in pool.workers)
