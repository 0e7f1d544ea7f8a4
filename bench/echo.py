"""What the supervisor costs: CPU time of one echo, all processes together, beside aiohttp that answers it alone.

The three servers run at the same time and are loaded in turn, so that the machine's noise is the same for all; a ratio
is taken within its round, and the table has the medians of the rounds. With ``--profile``, where the supervisor's or a
worker's time goes: py-spy samples it under load, and the samples are turned into microseconds a request.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

from bench.measuring import Check, Result, closed, parser, present
from bench.tables import milliseconds, table
from bench.targets import Target, aiohttp, penstock

BODY: Final = '{"text": "temporary file", "limit": 3, "tags": ["a", "b"]}'
CLIENTS: Final = (1, 10, 64)
MOST: Final = 2.0
"""The promise: so many times the CPU time of aiohttp's Application."""


def measure(scale: float, workers: int = 0, rounds: int = 5) -> Result:
    """``workers``: 0 is the default number."""
    costs: dict[tuple[str, int], list[float]] = {}
    medians: dict[tuple[str, int], list[float]] = {}
    with penstock(pools__default__workers=workers) as ours, aiohttp("app") as app, aiohttp("server") as server:
        number = len(ours.workers())
        targets = (ours, app, server)
        for target in targets:
            closed(target, "echo", BODY, 64, 0.5)
        for _ in range(rounds):
            for clients in CLIENTS:
                for target in targets:
                    cost, p50 = _cost(target, clients, 1.0 * scale)
                    costs.setdefault((target.name, clients), []).append(cost)
                    medians.setdefault((target.name, clients), []).append(p50)
    return _result(costs, medians, tuple(target.name for target in targets), number)


def _cost(target: Target, clients: int, seconds: float) -> tuple[float, float]:
    """Microseconds of CPU an answer, and the median latency in milliseconds."""
    before = target.cpu()
    every = closed(target, "echo", BODY, clients, seconds).all()
    answers = every.latencies()
    if len(answers) != len(every):
        raise RuntimeError(f"{target.name} did not answer all: {every.outcomes()}")
    return (target.cpu() - before) / len(answers) * 1e6, milliseconds(every, "p50")[0]


def _result(
    costs: dict[tuple[str, int], list[float]],
    medians: dict[tuple[str, int], list[float]],
    names: tuple[str, ...],
    workers: int,
) -> Result:
    ours, app, server = names
    rows: list[list[Any]] = [
        [
            "clients",
            "penstock µs",
            "Application µs",
            "ratio",
            "(min-max)",
            "Server µs",
            "ratio",
            *(f"p50 ms {n}" for n in names),
        ]
    ]
    result = Result("echo", {f"echo, CPU µs a request of all processes; {workers} workers": rows})
    for clients in CLIENTS:
        to_app = _ratios(costs[ours, clients], costs[app, clients])
        to_server = _ratios(costs[ours, clients], costs[server, clients])
        ratio = statistics.median(to_app)
        us = [round(statistics.median(costs[name, clients])) for name in names]
        p50s = [statistics.median(medians[name, clients]) for name in names]
        spread = f"{min(to_app):.2f}-{max(to_app):.2f}"
        rows.append([clients, us[0], us[1], ratio, spread, us[2], statistics.median(to_server), *p50s])
        result.checks.append(Check(f"CPU of an echo / Application's, {clients} clients", ratio, MOST))
    return result


def _ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


# Profile


def profile(whom: str, clients: int, seconds: float, workers: int) -> str:
    """Where the time of the ``supervisor`` or of the first ``worker`` goes, in microseconds of its CPU a request."""
    with penstock(pools__default__workers=workers) as target, tempfile.TemporaryDirectory() as directory:
        closed(target, "echo", BODY, clients, 1.0)
        pid = target.process.pid if whom == "supervisor" else int(target.workers()[0]["pid"])
        before = target.own_cpu(), target.cpu()
        answers = len(closed(target, "echo", BODY, clients, seconds).all())
        own, whole = target.own_cpu() - before[0], target.cpu() - before[1]
        samples = Path(directory) / "samples"
        with _py_spy(pid, seconds, samples) as recorder:
            closed(target, "echo", BODY, clients, seconds + 1.0)
            recorder.wait(60)
        stacks = _read(samples)
    costs = {"supervisor": own / answers * 1e6, "worker": (whole - own) / answers * 1e6}
    head = f"{clients} clients, {answers / seconds:.0f}/s; µs of CPU a request: " + ", ".join(
        f"{name} {cost:.1f}" for name, cost in costs.items()
    )
    return f"{head}\n{_by_function(stacks, costs[whom])}"


def _py_spy(pid: int, seconds: float, output: Path) -> subprocess.Popen[bytes]:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise RuntimeError("py-spy is not installed")
    options = [
        "--pid",
        str(pid),
        "--rate",
        "400",
        "--duration",
        f"{max(1, round(seconds))}",
        "--format",
        "raw",
        "--function",
    ]
    return subprocess.Popen(
        [program, "record", *options, "--output", str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _read(samples: Path) -> list[tuple[list[str], int]]:
    """Stacks, outermost frame first, with how often they were seen."""
    stacks = []
    for line in samples.read_text().splitlines():
        frames, _, count = line.rpartition(" ")
        stacks.append((frames.split(";"), int(count)))
    return stacks


def _by_function(stacks: list[tuple[list[str], int]], us: float) -> str:
    """The functions with the most time of their own. ``us``: what a request costs in all."""
    total = sum(count for _, count in stacks)
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for frames, count in stacks:
        own[frames[-1]] += count
        for frame in set(frames):
            within[frame] += count
    rows: list[list[Any]] = [["own µs", "with callees µs", "function"]]
    rows += [[count / total * us, within[name] / total * us, name] for name, count in own.most_common(30)]
    return f"{total} samples\n{table(rows)}"


def main() -> int:
    """The command."""
    options = parser(__doc__)
    options.add_argument("--workers", type=int, default=0, help="number of workers (0: the daemon's default)")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument(
        "--profile", choices=("supervisor", "worker"), help="where the time goes, instead of the table"
    )
    options.add_argument("--clients", type=int, default=64, help="for the profile")
    chosen = options.parse_args()
    if chosen.profile:
        print(profile(chosen.profile, chosen.clients, 6.0 * chosen.scale, chosen.workers))
    else:
        present(lambda scale: measure(scale, chosen.workers, chosen.rounds), chosen.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
