"""The founding requirement: ten clients at once on the demonstration's mixed agent, every response under half a second.

The agent ``answer`` searches in PostgreSQL and ranks sentences in Python. What ten clients have to wait for is arithmetic:
so many processors, so much CPU time an answer (measured with one client alone), ten answers always under way. The same
agent with 50 and 200 clients shows that nothing is lost and what is refused as what.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any, Final

from bench.measuring import Check, Result, command, load
from bench.series import Series
from bench.spec import Kind, Population
from bench.tables import milliseconds, others
from bench.targets import Target, penstock
from bench.work import CORES

QUESTIONS: Final = (
    "How do I read a CSV file?",
    "What does asyncio gather do?",
    "How can I make a temporary directory?",
    "How do I parse JSON from a string?",
    "What is a named tuple?",
    "How do I compute a hash of a file?",
    "How do I run a subprocess and read its output?",
    "What does functools.lru_cache do?",
)
TOGETHER: Final = 10
LIMIT: Final = 0.5
LOST: Final = ("reset", "no answer", "no connection", "not HTTP")


def measure(scale: float) -> Result:
    """Alone, then 10, 50 and 200 clients in closed loops."""
    heading = ["clients", "sent", "2xx", "2xx/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "over 500 ms", "other"]
    rows: list[list[Any]] = [heading]
    result = Result("founding", {"answer (PostgreSQL and Python), clients in closed loops": rows})
    with penstock("penstock.workers.demo", database__dsn="") as target:
        for question in QUESTIONS * 5:
            target.call("answer", {"question": question})
        cost, alone = _alone(target, 4.0 * scale, rows)
        ten = _at_once(target, TOGETHER, 10.0 * scale, rows)
        crowds = {clients: _at_once(target, clients, 6.0 * scale, rows) for clients in (50, 200)}
    _arithmetic(result, cost, alone, ten)
    late = len(ten) - ten.good(LIMIT)
    result.checks.insert(0, Check(f"answers of {TOGETHER} clients that were not 2xx within 500 ms", late, 0))
    for clients, series in crowds.items():
        lost = sum(count for what, count in series.outcomes().items() if what in LOST)
        result.checks.append(Check(f"lost of {clients} clients", lost, 0))
    return result


def _kinds() -> list[Kind]:
    return [Kind("answer", json.dumps({"question": question})) for question in QUESTIONS]


def _at_once(target: Target, clients: int, seconds: float, rows: list[list[Any]]) -> Series:
    report = load(target, [Population("all", _kinds(), clients=clients)], seconds)
    series = report.all()
    answers = series.latencies()
    rate = round(series.throughput(0.0, seconds), 1)
    late = sum(latency > LIMIT for latency in answers)
    times = milliseconds(series, "p50", "p95", "p99", "max")
    rows.append([clients, len(series), len(answers), rate, *times, late, others(series)])
    return series


def _alone(target: Target, seconds: float, rows: list[list[Any]]) -> tuple[float, Series]:
    """CPU seconds of one answer, PostgreSQL's included, with nothing beside it; and what became of the calls."""
    before = target.cpu()
    series = _at_once(target, 1, seconds, rows)
    return (target.cpu() - before) / len(series.latencies()), series


def _arithmetic(result: Result, cost: float, alone: Series, ten: Series) -> None:
    """What ten at once must take: ten answers are always under way, and the processors share them."""
    ms = cost * 1e3
    p95_alone, p95 = milliseconds(alone, "p95")[0], milliseconds(ten, "p95")[0]
    explained = p95_alone * TOGETHER / CORES
    result.notes += [
        f"mean: one answer costs {ms:.1f} ms of CPU (all processes, PostgreSQL's included); with {TOGETHER} always under way, "
        f"{CORES} CPUs at full use give {TOGETHER} x {ms:.1f} / {CORES} = {TOGETHER * ms / CORES:.0f} ms (Little's law);",
        f"measured: {statistics.mean(ten.latencies()) * 1e3:.0f} ms",
        f"p95: alone {p95_alone:.1f} ms; {TOGETHER} that share {CORES} CPUs evenly take {TOGETHER}/{CORES} times as long: {explained:.0f} ms",
    ]
    result.checks.append(Check(f"p95 of {TOGETHER} clients, ms, against what the CPUs explain", p95, explained))


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
