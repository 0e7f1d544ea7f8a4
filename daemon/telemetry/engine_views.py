"""What people see of the engine: its throttle and its queue, as they are at the moment that somebody asks."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..core.backlog import LOW_BYTES
from ..core.scheduler import Scheduler
from ..engine.engine import Engine


@dataclass(frozen=True, slots=True)
class ThrottleView:
    """The throttle, all pools together. Times are seconds, counts are totals since the start."""

    enabled: bool
    objective: float
    target: float
    delay: float
    """The longest wait that is predicted for any pool."""
    limit: float
    """Calls that may run at once now."""
    pace: dict[str, float]
    """Of each pool."""
    overloaded: bool
    refused: dict[str, int]
    """By reason."""
    held: int
    """Refusals that are being held back now."""
    paced: int
    """Refusals that were held back."""


@dataclass(frozen=True, slots=True)
class QueueView:
    """The queue of all pools, with the marks at which it refuses and takes again. ``oldest``: seconds."""

    requests: int
    bytes: int
    high_water: int
    low_water: int
    max_bytes: int
    low_bytes: int
    refusing: bool
    oldest: float
    by_agent: dict[str, int]
    streams: int
    """Streamed answers that are being sent."""


def call_limit(scheduler: Scheduler[Any]) -> float:
    """Calls that may run at once now, in all pools."""
    return sum(throttle.limit for throttle in scheduler.throttles.values())


def throttle_view(engine: Engine) -> ThrottleView:
    """The throttle as it is now. This predicts the wait of every pool: for one number there are quicker ways."""
    scheduler = engine.scheduler
    throttles = scheduler.throttles
    policy = scheduler.policy
    now = time.monotonic()
    refused: Counter[str] = Counter()
    for (reason, _), count in engine.refused.items():
        refused[reason] += count
    return ThrottleView(
        enabled=policy.enabled,
        objective=policy.objective,
        target=policy.target,
        delay=max((scheduler.predicted_wait(pool) for pool in scheduler.pools), default=0.0),
        limit=call_limit(scheduler),
        pace={pool: throttle.pace for pool, throttle in throttles.items()},
        overloaded=any(throttle.overloaded(now) for throttle in throttles.values()),
        refused=dict(refused),
        held=sum(throttle.comebacks.holding for throttle in throttles.values()),
        paced=engine.screening.paced,
    )


def queue_view(engine: Engine) -> QueueView:
    """The queue as it is now. This reads everything that waits."""
    backlog = engine.scheduler.backlog
    marks = backlog.marks
    waiting = [request for queue in backlog.queues.values() for request in queue]
    now = time.monotonic()
    return QueueView(
        requests=backlog.requests,
        bytes=backlog.bytes,
        high_water=marks.high_water,
        low_water=marks.low_water,
        max_bytes=marks.max_bytes,
        low_bytes=int(marks.max_bytes * LOW_BYTES),
        refusing=backlog.refusing,
        oldest=now - min((request.arrived_at for request in waiting), default=now),
        by_agent=dict(Counter(request.agent.name for request in waiting)),
        streams=engine.streams,
    )
