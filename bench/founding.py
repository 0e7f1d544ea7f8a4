"""The founding requirement: ten clients at once on the demonstration's mixed agent, every response under half a second.

The agent ``answer`` searches in PostgreSQL and ranks sentences in Python. What ten clients have to wait for is arithmetic:
so many processors, so much CPU time an answer (measured with one client alone), ten answers always under way. The same
agent with 50 and 200 clients shows that nothing is lost and what is refused as what.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from load import Kind, Population, Series, milliseconds, others
from measuring import Check, Result, command, load
from targets import Target, penstock
from work import CORES

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
        cost = _alone(target, 3.0 * scale, rows)
        ten = _at_once(target, 10, 10.0 * scale, rows)
        crowds = {clients: _at_once(target, clients, 6.0 * scale, rows) for clients in (50, 200)}
    _arithmetic(result, cost, ten)
    late = len(ten) - ten.good(LIMIT)
    result.checks.insert(0, Check("answers of 10 clients that were not 2xx within 500 ms", late, 0))
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


def _alone(target: Target, seconds: float, rows: list[list[Any]]) -> float:
    """CPU seconds of one answer, PostgreSQL's included, with nothing beside it."""
    before = target.cpu()
    series = _at_once(target, 1, seconds, rows)
    return (target.cpu() - before) / len(series.latencies())


def _arithmetic(result: Result, cost: float, ten: Series) -> None:
    """What ten at once must take: ten answers are always under way (Little), and the processors share them."""
    mean = 10 * cost / CORES
    p95 = milliseconds(ten, "p95")[0]
    result.notes.append(
        f"One answer alone costs {cost * 1e3:.1f} ms of CPU in all processes, PostgreSQL's included. With ten always under way "
        f"on {CORES} CPUs an answer takes 10 x {cost * 1e3:.1f} / {CORES} = {mean * 1e3:.0f} ms on average at full use; "
        f"twice that, {2 * mean * 1e3:.0f} ms, where it waits for the turns of all others before and after each of its own."
    )
    result.checks.append(
        Check("p95 of 10 clients, ms, against twice the mean that capacity explains", p95, 2 * mean * 1e3)
    )


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
