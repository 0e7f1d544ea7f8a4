"""Running measures: what an agent costs, learnt from every answer."""

from __future__ import annotations

from typing import Final

MEMORY: Final = 0.05
"""Weight of one observation once the average has settled: about the last twenty calls count."""

WAITING_WEIGHT: Final = 0.01
"""What a second of waiting counts beside a second of CPU time, when work is compared."""

UNKNOWN: Final = 0.001
"""Expected seconds of an agent that was never called."""


class Cost:
    """Exponentially weighted averages of a call's wall, CPU and database time, in seconds.

    The first observations weigh 1, 1/2, 1/3, …, so that a lone early outlier does not stick.
    """

    __slots__ = ("calls", "cpu", "db", "wall")

    def __init__(self) -> None:
        self.calls = 0
        self.wall = UNKNOWN
        self.cpu = UNKNOWN
        self.db = 0.0

    def observe(self, wall: float, cpu: float, db: float) -> None:
        """Learn from a call that has ended."""
        self.calls += 1
        weight = max(MEMORY, 1.0 / self.calls)
        self.wall += (wall - self.wall) * weight
        self.cpu += (cpu - self.cpu) * weight
        self.db += (db - self.db) * weight

    @property
    def work(self) -> float:
        """Seconds of work that one more call means to its worker: CPU time in full, waiting only as a tie-break."""
        return self.cpu + self.wall * WAITING_WEIGHT + 1e-6

    @property
    def cpu_share(self) -> float:
        """The part of a call's wall time during which it computes, 0 to 1."""
        return min(1.0, self.cpu / self.wall) if self.wall > 0.0 else 1.0
