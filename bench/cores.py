"""CPU-bound agents beside bare processes: what of the processors reaches the agents.

As many bare processes as there are CPUs compute the same rounds with nothing around them. The load generator needs the
same CPUs, and what it takes of them (0.4 % at 20 ms a call) neither side can have. What is missing from 1 is mostly the
supervisor's cost, and it shrinks with longer calls.
Bare and daemon take turns, before and after each other, since the machine's speed wanders. Each turn has processes of
its own, since the same work takes a little longer in one process than in another (see ``work``).
"""

from __future__ import annotations

import statistics
import sys
from typing import Any, Final

from bench.measuring import Check, Result, closed, command
from bench.targets import Target, penstock
from bench.work import CORES, bare, rounds_for

LENGTHS: Final = (5.0, 20.0, 100.0)
"""Milliseconds of a call."""
PROMISED: Final = 20.0
LEAST: Final = 0.95
CLIENTS: Final = 8
"""Enough to keep the processors busy, and too few to be refused: whoever asks again at once takes processors, too."""
DAEMONS: Final = 7


def measure(scale: float) -> Result:
    """A pair for each length of call, with each of several daemons."""
    rows: list[list[Any]] = [["call ms", "bare /s", "penstock /s", "ratio", "(min-max)", "supervisor, %"]]
    result = Result("cores", {f"agents that compute, {CLIENTS} clients, beside bare processes": rows})
    seconds = 2.0 * scale
    pairs: dict[float, list[tuple[float, float, float]]] = {length: [] for length in LENGTHS}
    for _ in range(DAEMONS):
        with penstock(throttle__objective=10.0) as target:
            for length in LENGTHS:
                rounds = rounds_for(length)
                closed(target, "spin", str(rounds), CLIENTS, 0.5)
                pairs[length].append(_pair(target, rounds, seconds))
    for length in LENGTHS:
        ratios = [ours / alone for alone, ours, _ in pairs[length]]
        alone, ours, overhead = (statistics.median(column) for column in zip(*pairs[length], strict=True))
        ratio = statistics.median(ratios)
        rows.append([f"{length:g}", alone, ours, ratio, f"{min(ratios):.3f}-{max(ratios):.3f}", overhead * 100])
        if length == PROMISED:
            result.checks.append(Check(f"throughput of {length:g} ms calls / bare", ratio, LEAST, at_least=True))
    return result


def _pair(target: Target, rounds: int, seconds: float) -> tuple[float, float, float]:
    """Calls a second of bare processes (the mean of before and after, of what the generator leaves) and of the daemon; and
    the part of the machine that the supervisor took meanwhile."""
    before = bare(rounds, seconds / 2)
    own = target.own_cpu()
    report = closed(target, "spin", str(rounds), CLIENTS, seconds)
    supervisor = (target.own_cpu() - own) / (seconds * CORES)
    generator = report.cpu / (seconds * CORES)
    ours = report.all().progress(0.0, seconds)
    alone = (before + bare(rounds, seconds / 2)) / 2
    return alone * (1.0 - generator), ours, supervisor


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
