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
    """Exponentially weighted averages of a call's wall, CPU, database and own waiting time, in seconds.

    The first observations weigh 1, 1/2, 1/3, …, so that a lone early outlier does not stick.

    *Own waiting* is what a call would wait if it had the machine for itself; wall time less CPU time is that and the
    waiting for a processor. Only the first may tell how much of a processor a call wants: otherwise calls that crowd
    each other would look like calls that wait, more of them would be let in, and they would crowd each other more.
    What is measured while processors are short is an upper bound of it, so it lowers the average and never raises it.
    """

    __slots__ = ("calls", "cpu", "db", "waiting", "wall")

    def __init__(self) -> None:
        self.calls = 0
        self.wall = UNKNOWN
        self.cpu = UNKNOWN
        self.db = 0.0
        self.waiting = 0.0

    def observe(self, wall: float, cpu: float, db: float, pressed: bool = False) -> None:
        """Learn from a call that has ended. ``pressed``: processors were short while it ran."""
        self.calls += 1
        weight = max(MEMORY, 1.0 / self.calls)
        self.wall += (wall - self.wall) * weight
        self.cpu += (cpu - self.cpu) * weight
        self.db += (db - self.db) * weight
        waited = wall - cpu if wall > cpu else 0.0
        if not pressed or waited < self.waiting or self.calls == 1:
            self.waiting += (waited - self.waiting) * weight

    @property
    def work(self) -> float:
        """Seconds of work that one more call means to its worker: CPU time in full, waiting only as a tie-break."""
        return self.cpu + self.wall * WAITING_WEIGHT + 1e-6

    @property
    def cpu_share(self) -> float:
        """The part of a processor that a call wants while it runs, 0 to 1; 1 as long as nothing is known."""
        return self.cpu / (self.cpu + self.waiting) if self.cpu > 0.0 else 0.0
