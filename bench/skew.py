"""99 % of calls take 1 ms of CPU and 1 % take 200 ms, at half of what the processors can do: what the quick ones suffer.

Arrivals are random (Poisson), and latencies count from the moment that a request was due. The rate is worked out from
the rounds that the calls are made of, measured just before.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from load import Kind, Population, milliseconds, others
from measuring import Check, Result, closed, load, parser, present
from targets import penstock
from work import CORES, rounds_for

QUICK: Final = 1.0
SLOW: Final = 200.0
SLOW_PART: Final = 0.01
USE: Final = 0.5
"""The part of capacity that is asked for."""
MOST: Final = 20.0
"""Milliseconds that the 99th percentile of the quick ones may take."""


def measure(scale: float, workers: tuple[int, ...] = (0,)) -> Result:
    """``workers``: the numbers to try; 0 is the default."""
    rows: list[list[Any]] = [["workers", "calls", "sent", "2xx", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "other"]]
    rate = USE * CORES / ((1 - SLOW_PART) * QUICK + SLOW_PART * SLOW) * 1e3
    title = (
        f"99 % of {QUICK:g} ms and 1 % of {SLOW:g} ms of CPU, {rate:.0f} requests/s: {USE * 100:g} % of {CORES} CPUs"
    )
    result = Result("skew", {title: rows})
    for number in workers:
        _one(result, rows, number, rate, 15.0 * scale)
    return result


def _one(result: Result, rows: list[list[Any]], workers: int, rate: float, seconds: float) -> None:
    kinds = [
        Kind("spin", str(rounds_for(QUICK)), 1 - SLOW_PART, label="1 quick"),
        Kind("spin_long", str(rounds_for(SLOW)), SLOW_PART, label="2 slow"),
    ]
    with penstock(pools__default__workers=workers) as target:
        number = len(target.workers())
        closed(target, "spin", kinds[0].body, 4 * number, 0.5)
        report = load(target, [Population("skew", kinds, rate=rate)], seconds)
    for name, series in sorted(report.series.items()):
        times = milliseconds(series, "p50", "p99", "p99.9", "max")
        label = name.rpartition(" ")[2]
        rows.append([number, label, len(series), len(series.latencies()), *times, others(series)])
        if label == "quick" and workers == 0:
            result.checks.append(Check("p99 of the quick calls, ms", times[1], MOST))
    late = report.late
    result.notes.append(
        f"{number} workers: the generator was late by {late['p99'] * 1e3:.2f} ms at its 99th percentile"
    )


def main() -> int:
    """The command."""
    options = parser(__doc__)
    options.add_argument("--workers", type=int, nargs="+", default=[0], help="numbers to try (0: the daemon's default)")
    chosen = options.parse_args()
    present(lambda scale: measure(scale, tuple(chosen.workers)), chosen.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
