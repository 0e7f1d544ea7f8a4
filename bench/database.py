"""Agents that wait: one row from PostgreSQL through the worker's pool, fewer and more connections, and waiting beside computing."""

from __future__ import annotations

import sys
from typing import Any, Final

from bench.measuring import Result, closed, command, load
from bench.spec import Kind, Population
from bench.tables import milliseconds, others
from bench.targets import penstock
from bench.work import rounds_for

CLIENTS: Final = (1, 10, 64)
POOLS: Final = (6, 20)
"""Values of ``database.max_connections``."""
WAIT: Final = 0.02
"""Seconds that the waiting calls wait."""


def measure(scale: float) -> Result:
    """Rows by agent, pool and clients; then the waits."""
    result = Result("database")
    result.tables["one row from the embedded PostgreSQL"] = _rows(1.5 * scale)
    result.tables[f"calls that wait {WAIT * 1e3:g} ms, alone and beside calls of 5 ms of CPU"] = _waits(3.0 * scale)
    return result


def _rows(seconds: float) -> list[list[Any]]:
    heading = ["connections", "agent", "clients", "2xx/s", "p50 ms", "p99 ms", "CPU µs", "other"]
    rows: list[list[Any]] = [heading]
    for connections in POOLS:
        with penstock(database__dsn="", database__max_connections=connections) as target:
            for agent in ("row", "row_sync"):
                closed(target, agent, "{}", 32, 0.5)
                for clients in CLIENTS:
                    before = target.cpu()
                    series = closed(target, agent, "{}", clients, seconds).all()
                    answers = len(series.latencies())
                    cost = (target.cpu() - before) / max(1, answers) * 1e6
                    rate = round(series.throughput(0.0, seconds))
                    times = milliseconds(series, "p50", "p99")
                    rows.append([connections, agent, clients, rate, *times, round(cost), others(series)])
    return rows


def _waits(seconds: float) -> list[list[Any]]:
    rows: list[list[Any]] = [["load", "calls", "2xx/s", "p50 ms", "p99 ms", "max ms", "other"]]
    waiting = Population("waiting", [Kind("wait", str(WAIT))], clients=32)
    computing = Population("computing", [Kind("spin", str(rounds_for(5.0)))], clients=4)
    with penstock() as target:
        closed(target, "spin", computing.kinds[0].body, 4, 0.5)
        for name, populations in (("alone", [waiting]), ("together", [waiting, computing])):
            report = load(target, populations, seconds)
            for label, series in report.series.items():
                rate = round(series.throughput(0.0, seconds))
                times = milliseconds(series, "p50", "p99", "max")
                rows.append([name, label.partition("/")[0], rate, *times, others(series)])
    return rows


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
