"""Running measures: what an agent costs, and how long its requests take, learnt from every answer.

Latencies are counted in buckets whose bounds are Renard's preferred numbers R20: twenty for each power of ten, each
about 12 % above the one before. A count is all that a request leaves behind, so that memory and the cost of reading do
not grow with traffic or uptime. A quantile is off by no more than its bucket is wide. And since 1, 2.5 and 5 are among
these numbers, the same counts are the histograms that Prometheus reads, exactly.

A ``Window`` keeps the counts of the last turns apart, so that the oldest can be dropped. What a turn is (about a
second) its owner says; a window that nothing falls into costs nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Final

MEMORY: Final = 0.05
"""Weight of one observation once the average has settled: about the last twenty calls count."""

WAITING_WEIGHT: Final = 0.01
"""What a second of waiting counts beside a second of CPU time, when work is compared."""

LONG: Final = 0.05
"""CPU seconds: calls that take as much are long ..."""

COMPUTING: Final = 0.5
"""... if they also want as much of a processor while they run."""

UNKNOWN: Final = 0.001
"""Expected seconds of an agent that was never called."""

R20: Final = (
    *("1", "1.12", "1.25", "1.4", "1.6", "1.8", "2", "2.24", "2.5", "2.8"),
    *("3.15", "3.55", "4", "4.5", "5", "5.6", "6.3", "7.1", "8", "9"),
)
BOUNDS: Final = (*(float(f"{mantissa}e{power}") for power in range(-4, 3) for mantissa in R20), 1000.0)
"""Upper bounds of the buckets in seconds, from 0.1 ms up; what is over the last one is in one bucket more."""

SPAN: Final = 10
"""Turns that a window covers."""


class Cost:
    """Exponentially weighted averages of a call's wall, CPU, database and own waiting time, in seconds.

    The first observations weigh 1, 1/2, 1/3, …, so that a lone early outlier does not stick.

    *Own waiting* is what a call would wait if it had the machine for itself; wall time less CPU time is that and the
    waiting for a processor. Only the first may tell how much of a processor a call wants: otherwise calls that crowd
    each other would look like calls that wait, more of them would be let in, and they would crowd each other more.
    What is measured while processors are short is an upper bound of it, so it lowers the average and never raises it.
    The first call of all has to be believed, and is taken for stretched by all that ran beside it: a crowd that comes
    before anything is known would otherwise make calls that compute look like calls that wait, and stay a crowd.
    """

    __slots__ = ("calls", "cpu", "db", "waiting", "wall")

    def __init__(self) -> None:
        self.calls = 0
        self.wall = UNKNOWN
        self.cpu = UNKNOWN
        self.db = 0.0
        self.waiting = 0.0

    def observe(self, wall: float, cpu: float, db: float, pressed: bool = False, crowd: float = 1.0) -> None:
        """Learn from a call that has ended. ``pressed``: processors were short while it ran; ``crowd``: calls that
        there were for each processor.
        """
        self.calls += 1
        weight = max(MEMORY, 1.0 / self.calls)
        self.wall += (wall - self.wall) * weight
        self.cpu += (cpu - self.cpu) * weight
        self.db += (db - self.db) * weight
        computed = cpu * max(1.0, crowd) if pressed and self.calls == 1 else cpu
        waited = wall - computed if wall > computed else 0.0
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

    @property
    def is_long(self) -> bool:
        """Calls compute, and for long."""
        return self.cpu >= LONG and self.cpu_share >= COMPUTING


def bucket(seconds: float) -> int:
    """The index of the bucket that this falls into."""
    return bisect_left(BOUNDS, seconds)


class Histogram:
    """Counts since the beginning, and their sum in seconds. ``counts`` has one entry more than ``BOUNDS``."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> int:
        """Count one; the index of its bucket."""
        at = bucket(seconds)
        self.counts[at] += 1
        self.seconds += seconds
        return at

    def add(self, counts: Mapping[int, int], seconds: float) -> None:
        """Count many: how many there are by bucket, and their sum in seconds."""
        for at, count in counts.items():
            self.counts[at] += count
        self.seconds += seconds

    def cumulative(self, bounds: Iterable[float]) -> list[int]:
        """How many were at most each of these bounds, which are of ``BOUNDS`` and rise; and at last all."""
        found: list[int] = []
        total = at = 0
        for bound in bounds:
            end = bucket(bound) + 1
            total += sum(self.counts[at:end])
            at = end
            found.append(total)
        found.append(total + sum(self.counts[at:]))
        return found


class Window:
    """Counts by bucket of the last ``SPAN`` turns, and of the one that goes on."""

    __slots__ = ("_slot", "_slots", "_turn")

    def __init__(self) -> None:
        self._turn = -1
        self._slot: defaultdict[int, int] = defaultdict(int)
        self._slots: deque[tuple[int, dict[int, int]]] = deque(maxlen=SPAN + 1)

    def observe(self, at: int, turn: int) -> None:
        """Count one in the bucket of this index."""
        self.add({at: 1}, turn)

    def add(self, counts: Mapping[int, int], turn: int) -> None:
        """Count many: how many there are by bucket."""
        if turn != self._turn:
            self._turn, self._slot = turn, defaultdict(int)
            self._slots.append((turn, self._slot))
        for at, count in counts.items():
            self._slot[at] += count

    def counts(self, turn: int, span: int = SPAN) -> dict[int, int]:
        """Of the last ``span`` turns before ``turn``, which goes on and is not complete."""
        return merged(slot for number, slot in self._slots if turn - span <= number < turn)


def tally(values: list[float]) -> dict[int, int]:
    """How many fall into which bucket. Puts the list in order: that, and to look only where a bucket ends, takes a
    third of the time of looking for the bucket of each.
    """
    values.sort()
    counts: dict[int, int] = {}
    begin, total = 0, len(values)
    while begin < total:
        at = bucket(values[begin])
        end = bisect_right(values, BOUNDS[at], begin) if at < len(BOUNDS) else total
        counts[at] = end - begin
        begin = end
    return counts


def merged(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """The sum of counts by bucket."""
    total: dict[int, int] = {}
    for part in parts:
        for at, count in part.items():
            total[at] = total.get(at, 0) + count
    return total


def quantile(counts: Mapping[int, int], part: float) -> float | None:
    """The value that ``part`` (0 to 1) of all do not exceed, taken evenly spread over its bucket; None of none."""
    total = sum(counts.values())
    rank = max(1, math.ceil(part * total - 1e-9))
    below = 0
    for at in sorted(counts):
        count = counts[at]
        if below + count >= rank:
            if at == len(BOUNDS):
                return BOUNDS[-1]
            low = BOUNDS[at - 1] if at else 0.0
            return low + (BOUNDS[at] - low) * (rank - below - 0.5) / count
        below += count
    return None
