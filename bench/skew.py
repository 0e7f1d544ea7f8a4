"""99 % of calls take 1 ms of CPU and 1 % take 200 ms, at half of what the processors can do: what the quick ones suffer.

Arrivals are random (Poisson), and latencies count from the moment that a request was due. Half of capacity is a rate at
which the workers use half of the processors' time, as measured during the run: on a machine whose speed wanders no
measurement before it says that. So the rate is corrected from run to run, the median of those that came near counts.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from typing import Any, Final

from bench.measuring import Check, Result, load, parser, present
from bench.series import Series
from bench.spec import Kind, Population
from bench.tables import milliseconds, others
from bench.targets import Target, penstock
from bench.work import CORES, bare, rounds_for

QUICK: Final = 1.0
SLOW: Final = 200.0
SLOW_PART: Final = 0.01
USE: Final = 0.5
"""The part of capacity that is asked for."""
NEAR: Final = 0.06
"""By how much a run that counts may have missed it."""
RUNS: Final = 3
MOST_RUNS: Final = 8
MOST: Final = 20.0
"""Milliseconds that the 99th percentile of the quick ones may take."""


@dataclass(frozen=True)
class Run:
    """One run: the part of the processors' time that the workers used, and what became of the calls."""

    rate: float
    use: float
    late: float
    series: dict[str, Series]

    @property
    def quick(self) -> float:
        """The 99th percentile in milliseconds."""
        return milliseconds(self.series["quick"], "p99")[0]

    @property
    def is_near(self) -> bool:
        """It used what it should."""
        return abs(self.use - USE) <= NEAR


def measure(scale: float, workers: tuple[int, ...] = (0,)) -> Result:
    """``workers``: the numbers to try; 0 is the default."""
    heading = ["workers", "requests/s", "use", "calls", "sent", "2xx", "p50 ms", "p99 ms", "max ms", "other"]
    rows: list[list[Any]] = [heading]
    title = f"99 % of {QUICK:g} ms and 1 % of {SLOW:g} ms of CPU at {USE * 100:g} % of what {CORES} CPUs can do"
    result = Result("skew", {title: rows})
    for number in workers:
        runs = _runs(number, 8.0 * scale)
        near = [each for each in runs if each.is_near] or runs
        for run in runs:
            for name, series in sorted(run.series.items()):
                times = milliseconds(series, "p50", "p99", "max")
                sent = [len(series), len(series.latencies())]
                rows.append([number or "default", run.rate, run.use, name, *sent, *times, others(series)])
        late = max(each.late for each in runs)
        result.notes.append(
            f"{len(near)} of {len(runs)} runs count; the generator was late by {late * 1e3:.2f} ms at its 99th percentile"
        )
        if number == 0:
            median = statistics.median_low(each.quick for each in near)
            result.checks.append(Check("p99 of the quick calls, ms, median of the runs that count", median, MOST))
    return result


def _runs(workers: int, seconds: float) -> list[Run]:
    """Until so many came near, within reason."""
    quick = rounds_for(QUICK)
    slow = round(quick * SLOW / QUICK)
    mean = (1 - SLOW_PART) * quick + SLOW_PART * slow
    kinds = [
        Kind("spin", str(quick), 1 - SLOW_PART, label="quick"),
        Kind("spin_long", str(slow), SLOW_PART, label="slow"),
    ]
    rate = USE * bare(slow, 2.0) * slow / mean
    runs: list[Run] = []
    with penstock(pools__default__workers=workers) as target:
        load(target, [Population("warm", kinds, rate=rate)], 2.0)
        while len(runs) < MOST_RUNS and sum(each.is_near for each in runs) < RUNS:
            runs.append(_one(target, kinds, rate, seconds))
            rate *= min(1.5, max(0.5, USE / runs[-1].use))
    return runs


def _one(target: Target, kinds: list[Kind], rate: float, seconds: float) -> Run:
    used = target.cpu() - target.own_cpu()
    report = load(target, [Population("skew", kinds, rate=rate)], seconds)
    used = target.cpu() - target.own_cpu() - used
    series = {name.rpartition("/")[2]: each for name, each in report.series.items()}
    return Run(rate, used / seconds / CORES, report.late["p99"], series)


def main() -> int:
    """The command."""
    options = parser(__doc__)
    options.add_argument("--workers", type=int, nargs="+", default=[0], help="numbers to try (0: the daemon's default)")
    chosen = options.parse_args()
    present(lambda scale: measure(scale, tuple(chosen.workers)), chosen.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
