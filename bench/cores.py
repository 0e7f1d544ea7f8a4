"""CPU-bound agents beside bare processes: what of the processors reaches the agents.

As many bare processes as there are CPUs compute the same rounds with nothing around them. The supervisor and the load
generator need the same CPUs, so what is missing from 1 is mostly their cost, and it shrinks with longer calls.
Bare and daemon take turns, before and after each other, since the machine's speed wanders.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any, Final

from measuring import Check, Result, closed, command
from targets import Target, penstock
from work import CORES, bare, rounds_for

LENGTHS: Final = (5.0, 20.0, 100.0)
"""Milliseconds of a call."""
PROMISED: Final = 20.0
LEAST: Final = 0.95
CLIENTS: Final = 16


def measure(scale: float) -> Result:
    """Three pairs for each length of call."""
    rows: list[list[Any]] = [["call ms", "bare /s", "penstock /s", "ratio", "(min-max)", "CPU lost to others, %"]]
    result = Result("cores", {f"agents that compute, {CLIENTS} clients, beside bare processes": rows})
    seconds = 3.0 * scale
    with penstock(throttle__objective=10.0) as target:  # so that nobody is refused
        for length in LENGTHS:
            rounds = rounds_for(length)
            closed(target, "spin", str(rounds), CLIENTS, 0.5)
            pairs = [_pair(target, rounds, seconds) for _ in range(3)]
            ratios = [ours / alone for alone, ours, _ in pairs]
            alone, ours, overhead = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(ratios)
            rows.append([f"{length:g}", alone, ours, ratio, f"{min(ratios):.3f}-{max(ratios):.3f}", overhead * 100])
            if length == PROMISED:
                result.checks.append(Check(f"throughput of {length:g} ms calls / bare", ratio, LEAST, at_least=True))
    return result


def _pair(target: Target, rounds: int, seconds: float) -> tuple[float, float, float]:
    """Calls a second of bare processes (the mean of before and after) and of the daemon; and the part of the machine that
    the supervisor and the generator took meanwhile."""
    before = bare(rounds, seconds / 2)
    own = target.own_cpu()
    report = closed(target, "spin", str(rounds), CLIENTS, seconds)
    taken = (target.own_cpu() - own + report.cpu) / (seconds * CORES)
    ours = report.all().progress(0.0, seconds)
    return (before + bare(rounds, seconds / 2)) / 2, ours, taken


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
