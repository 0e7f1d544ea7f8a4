"""When a worker that died is started again: at once, after a pause, or not any more.

A worker that had lived for ``start_seconds`` started well, and its restart is at once: something else killed it. One
that dies sooner has failed to start; each such failure in a row doubles the pause, and after ``start_retries`` of them
the seat is given up (FATAL), as supervisord does. The pauses carry jitter, so that workers which fail for a common
reason do not come back in step.

That alone would let a worker that dies a little after ``start_seconds`` be restarted for ever at full speed. So
restarts at once are counted, too: more than ``INTENSITY`` within ``PERIOD`` seconds and the next has to wait its
turn. Intensity and period are the terms of Erlang's supervisors, whose ``add_restart`` this follows; theirs gives up
where this slows down, since a pool that limps along serves more than none.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

FIRST: Final = 0.25
LONGEST: Final = 10.0
JITTER: Final = 0.2
INTENSITY: Final = 5
PERIOD: Final = 10.0


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings: seconds and a count."""

    start_seconds: float = 1.0
    start_retries: int = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """``pause`` in seconds; ``give_up`` goes before it."""

    pause: float = 0.0
    give_up: bool = False


class History:
    """The deaths of one seat, as far as they matter for the next start."""

    __slots__ = ("_recent", "_rng", "failures")

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._recent: deque[float] = deque()
        self.failures = 0
        """Failed starts in a row."""

    def died(self, policy: Policy, now: float, served: float) -> Verdict:
        """The verdict on a death at ``now`` after ``served`` seconds of service (negative: it never was ready)."""
        if served >= policy.start_seconds:
            self.failures = 0
            return Verdict(self._pause(self._excess(now)))
        self.failures += 1
        if self.failures > policy.start_retries:
            return Verdict(give_up=True)
        return Verdict(self._pause(self.failures))

    def _excess(self, now: float) -> int:
        recent = self._recent
        recent.append(now)
        while recent[0] <= now - PERIOD:
            recent.popleft()
        return max(0, len(recent) - INTENSITY)

    def _pause(self, step: int) -> float:
        if step == 0:
            return 0.0
        # 2 ** 10 * FIRST is far beyond LONGEST already; the limit keeps a large count from overflowing.
        pause = min(LONGEST, FIRST * 2.0 ** min(step - 1, 10))
        return float(pause * self._rng.uniform(1.0 - JITTER, 1.0 + JITTER))

    def reset(self) -> None:
        """Begin anew: somebody asked for a start by hand, or new code came."""
        self.failures = 0
        self._recent.clear()
