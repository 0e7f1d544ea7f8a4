"""``make bench``: a short set of measurements, printed as tables. ``python bench/run.py NAME...`` runs some of them."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from load import Kind, Population, Report, Spec, percentile, run_apart, table
from targets import Target, aiohttp, penstock

RESULTS = Path(__file__).parent / "results"
CORES = len(os.sched_getaffinity(0))


def closed(target: Target, agent: str, body: str, clients: int, seconds: float, limit: float = 0.5) -> Report:
    """A closed loop on one agent."""
    population = Population("closed", [Kind(agent, body)], clients=clients, limit=limit)
    return run_apart(Spec("127.0.0.1", target.port, [population], seconds))


def echo(rounds: int = 3, seconds: float = 2.0) -> str:
    """CPU time of one echo, all processes together, beside aiohttp doing the same alone; interleaved, medians."""
    costs: dict[tuple[str, int], list[float]] = {}
    with penstock(pools__default__workers=CORES) as ours, aiohttp("app") as app, aiohttp("server") as server:
        for target in (ours, app, server):
            closed(target, "echo", '{"a": 1}', 64, 1.0)
        for _ in range(rounds):
            for clients in (1, 10, 64):
                for target in (ours, app, server):
                    before = target.cpu()
                    report = closed(target, "echo", '{"a": 1}', clients, seconds)
                    answers = len(report.all().latencies)
                    costs.setdefault((target.name, clients), []).append((target.cpu() - before) / answers * 1e6)
    rows: list[list[Any]] = [["clients", "penstock µs", "Application µs", "ratio", "Server µs", "ratio"]]
    for clients in (1, 10, 64):
        ours_us, app_us, server_us = (
            statistics.median(costs[name, clients]) for name in ("penstock", "aiohttp app", "aiohttp server")
        )
        rows.append([clients, round(ours_us), round(app_us), ours_us / app_us, round(server_us), ours_us / server_us])
    return table(rows)


def founding(seconds: float = 8.0) -> str:
    """The founding requirement: ten at once on the mixed agent ``answer``, every response under 500 ms."""
    questions = [
        "How do I read a CSV file?",
        "What does asyncio gather do?",
        "How can I make a temporary directory?",
        "How do I parse JSON from a string?",
        "What is a named tuple?",
    ]
    kinds = [Kind("answer", json.dumps({"question": question})) for question in questions]
    rows: list[list[Any]] = [["at once", "sent", "2xx", "2xx/s", "p50 ms", "p95 ms", "max ms", "over 500 ms", "other"]]
    with penstock("penstock.workers.demo", database__dsn="") as target:
        for question in questions * 4:
            target.call("answer", {"question": question})
        before = target.cpu()
        alone = run_apart(Spec("127.0.0.1", target.port, [Population("alone", kinds, clients=1)], 3.0)).all()
        cost = (target.cpu() - before) / len(alone.latencies)
        for clients in (10, 50, 200):
            report = run_apart(Spec("127.0.0.1", target.port, [Population("all", kinds, clients=clients)], seconds))
            every = report.all()
            times = [percentile(every.latencies, part) * 1e3 for part in (0.5, 0.95, 1.0)]
            other = ", ".join(f"{count} {what}" for what, count in every.outcomes.items() if what != "2xx") or "-"
            late = sum(latency > 0.5 for latency in every.latencies)
            rows.append(
                [clients, every.sent, len(every.latencies), len(every.latencies) / seconds, *times, late, other]
            )
    mean = 10 * cost / CORES * 1e3
    arithmetic = (
        f"one answer costs {cost * 1e3:.1f} ms of CPU (all processes, PostgreSQL included); ten at once on {CORES} cores"
        f" take turns: 10 x {cost * 1e3:.1f} / {CORES} = {mean:.0f} ms each on average"
    )
    return f"{table(rows)}\n{arithmetic}"


def cores(seconds: float = 5.0) -> str:
    """CPU-bound agents beside bare processes that compute the same on every core."""
    bare_command = (
        "import sys, time\nfrom agents import burn\nuntil = time.monotonic() + float(sys.argv[1])\ncount = 0\n"
        "while time.monotonic() < until:\n    burn(5.0)\n    count += 1\nprint(count)"
    )
    ratios: list[list[Any]] = [["round", "bare /s", "penstock /s", "ratio"]]
    with penstock() as target:
        closed(target, "spin", "5", 16, 1.0)
        for number in range(1, 4):
            bare = [
                subprocess.Popen(
                    [sys.executable, "-c", bare_command, str(seconds)],
                    stdout=subprocess.PIPE,
                    cwd=Path(__file__).parent,
                )
                for _ in range(CORES)
            ]
            rate = sum(int(process.communicate()[0]) for process in bare) / seconds
            report = closed(target, "spin", "5", 16, seconds)
            ours = len(report.all().latencies) / seconds
            ratios.append([number, rate, ours, ours / rate])
    return table(ratios)


def skew(seconds: float = 10.0) -> str:
    """99 % calls of 1 ms and 1 % of 200 ms at half of capacity: what the quick ones suffer from the slow."""
    rate = 0.5 * CORES / (0.99 * 0.001 + 0.01 * 0.2)
    kinds = [Kind("spin", "1", 0.99), Kind("spin_long", "200", 0.01)]
    rows: list[list[Any]] = [["class", "sent", "2xx", "p50 ms", "p99 ms", "p99.9 ms", "max ms"]]
    with penstock() as target:
        closed(target, "spin", "1", 4, 1.0)
        report = run_apart(Spec("127.0.0.1", target.port, [Population("skew", kinds, rate=rate)], seconds))
    for name, each in sorted(report.series.items()):
        times = [percentile(each.latencies, part) * 1e3 for part in (0.5, 0.99, 0.999, 1.0)]
        rows.append([name.rpartition("/")[2], each.sent, len(each.latencies), *times])
    return f"{rate:.0f} requests/s\n{table(rows)}"


def respawn(times: int = 15) -> str:
    """From the death of a worker to its successor being ready, and the private memory of idle workers."""
    spans: list[float] = []
    with penstock(supervision__start_seconds=0.0) as target:
        private = [
            psutil.Process(each["pid"]).memory_full_info().uss / 2**20 for each in target.get("/v1/workers")["workers"]
        ]
        for number in range(times):
            # Restarts at once are limited in number; a pause between them keeps what is measured the same.
            time.sleep(2.2)
            worker = target.get("/v1/workers/default:0")
            psutil.Process(worker["pid"]).kill()
            begun = time.monotonic()
            while True:
                now = target.get("/v1/workers/default:0")
                if now["state"] == "RUNNING" and now["pid"] not in (worker["pid"], 0):
                    break
                time.sleep(0.001)
            spans.append((time.monotonic() - begun) * 1e3)
            del number
    rows: list[list[Any]] = [
        ["", "median", "max"],
        ["death to ready, ms", statistics.median(spans), max(spans)],
        ["private memory of an idle worker, MiB", statistics.median(private), max(private)],
    ]
    return table(rows)


def database(seconds: float = 3.0) -> str:
    """One row through psycopg, by async and by sync agents."""
    rows: list[list[Any]] = [["agent", "clients", "2xx/s", "p50 ms", "p99 ms", "CPU µs"]]
    with penstock(database__dsn="") as target:
        for agent in ("row", "row_sync"):
            for clients in (1, 10, 64):
                before = target.cpu()
                every = closed(target, agent, "{}", clients, seconds).all()
                cost = (target.cpu() - before) / max(1, len(every.latencies)) * 1e6
                times = [percentile(every.latencies, part) * 1e3 for part in (0.5, 0.99)]
                rows.append([agent, clients, round(len(every.latencies) / seconds), *times, round(cost)])
    return table(rows)


ALL: dict[str, Callable[[], str]] = {
    "echo": echo,
    "founding": founding,
    "cores": cores,
    "skew": skew,
    "respawn": respawn,
    "database": database,
}


def main() -> int:
    """Run what is asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)} (default: all)")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in ALL]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(ALL)}")
    RESULTS.mkdir(exist_ok=True)
    for name in options.names or ALL:
        measure = ALL[name]
        print(f"\n{name}: {(measure.__doc__ or '').strip()}\n", flush=True)
        text = measure()
        print(text, flush=True)
        (RESULTS / f"{name}.txt").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
