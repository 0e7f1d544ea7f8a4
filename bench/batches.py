"""Batches: what an agent that is vectorised gains by them, and what a request costs in a batch.

The same function is called by 64 clients once for each request and once for up to 32 of them. ``score`` has a large
part that it does once, whatever it gets, and a little for each body, as models and queries have; ``echo`` has nothing,
so that what is left is Penstock's own.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any, Final

from bench.measuring import Check, Result, closed, command
from bench.tables import milliseconds
from bench.targets import Target, penstock

CLIENTS: Final = 128
GAIN: Final = 5.0
"""Times the throughput of single calls."""
COST: Final = 1 / 3
"""Of what a request costs by itself, all processes together."""
PAIRS: Final = (("score", "score_batch", True), ("plain_echo", "echo_batch", False))


def measure(scale: float) -> Result:
    """All of it: single calls and batches in turn."""
    result = Result("batches")
    head = ["round", "single /s", "batched /s", "gain", "single us", "batched us", "cost", "size", "p50 ms", "batched"]
    with penstock() as target:
        for single, batched, must in PAIRS:
            rows: list[list[Any]] = [head]
            result.tables[f"{single} by {CLIENTS} clients, each alone and in batches; CPU of all processes"] = rows
            rounds = max(3, round(5 * scale))
            rows += [[number + 1, *_compared(target, single, batched, 2.0 * scale)] for number in range(rounds)]
            gains, costs = ([row[at] for row in rows[1:]] for at in (3, 6))
            if must:
                gain = statistics.median(gains)
                result.checks.append(Check("throughput of batches over single calls", gain, GAIN, at_least=True))
                result.checks.append(Check("CPU of a request in a batch over alone", statistics.median(costs), COST))
    return result


def _compared(target: Target, single: str, batched: str, seconds: float) -> list[float]:
    rates, costs, times, sizes = [], [], [], []
    for agent in (single, batched):
        before, count = target.cpu(), _batches(target, agent)
        answers = closed(target, agent, "7", CLIENTS, seconds).all()
        rates.append(len(answers) / seconds)
        costs.append((target.cpu() - before) / len(answers) * 1e6)
        times.append(milliseconds(answers, "p50")[0])
        sizes.append(len(answers) / max(1.0, _batches(target, agent) - count))
    return [*rates, rates[1] / rates[0], *costs, costs[1] / costs[0], sizes[1], *times]


def _batches(target: Target, agent: str) -> float:
    """Batches of this agent so far."""
    name = f'penstock_batch_size_count{{agent="{agent}"}} '
    lines = target.read("/metrics").decode().splitlines()
    return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), 0.0)


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
