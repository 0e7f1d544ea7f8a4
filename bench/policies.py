"""The throttle on synthetic traces in virtual time: the daemon's own core on a modelled machine, without any daemon.

Each scenario is played with the throttle on and off (plain slots and marks), on several seeds. An answer is good when it
comes within 500 ms. Then crowds, whose members ask again when they are answered or refused (closed loops). Runs in a
minute or two and prints the same numbers everywhere.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from bench.series import jain, percentile
from bench.simulated import Arrival, Crowd, Ending, Machine
from bench.simulator import Simulation
from bench.tables import table
from penstock.daemon.core.throttle import Policy

LIMIT: Final = 0.5
DEFENDED: Final = 0.4
"""Of the limit: what takes longer by itself cannot be defended; as in daemon/core/throttle.py."""
START: Final = 100.0
Steps = Sequence[tuple[float, float]]
"""Seconds, and requests a second."""


@dataclass(frozen=True)
class Scenario:
    """A trace and the machine that it is played on."""

    name: str
    capacity: float
    """Requests a second that the machine can do."""
    steps: Steps
    trace: Callable[[random.Random, Scenario], Iterator[Arrival]]
    machine: Machine = field(default_factory=Machine)
    sync: bool = False
    slowness: Callable[[float], float] = lambda now: 1.0
    deaths: tuple[tuple[float, int], ...] = ()
    """When, and how many workers die; they come back 5 s later."""


def poisson(rng: random.Random, steps: Steps) -> Iterator[float]:
    """Moments of random arrivals."""
    begin = START
    for seconds, rate in steps:
        at = begin + rng.expovariate(rate)
        while at < begin + seconds:
            yield at
            at += rng.expovariate(rate)
        begin += seconds


def _clients(rng: random.Random) -> str:
    return f"c{rng.randrange(20)}"


def _urgency(rng: random.Random) -> int:
    return rng.choices((1, 3, 6), (0.2, 0.5, 0.3))[0]


def waiting(rng: random.Random, scenario: Scenario) -> Iterator[Arrival]:
    """60 ms of waiting."""
    for at in poisson(rng, scenario.steps):
        yield Arrival(at, "wait", 0.0002, 0.06, _clients(rng), _urgency(rng))


def varied(rng: random.Random, scenario: Scenario) -> Iterator[Arrival]:
    """Exponential waiting of 60 ms in the mean."""
    for at in poisson(rng, scenario.steps):
        yield Arrival(at, "wait", 0.0002, rng.expovariate(1 / 0.06), _clients(rng), _urgency(rng))


def computing(rng: random.Random, scenario: Scenario) -> Iterator[Arrival]:
    """5 ms of Python."""
    for at in poisson(rng, scenario.steps):
        yield Arrival(at, "spin", 0.005, 0.0, _clients(rng), _urgency(rng))


def heavy(rng: random.Random, scenario: Scenario) -> Iterator[Arrival]:
    """50 ms of Python."""
    for at in poisson(rng, scenario.steps):
        yield Arrival(at, "heavy", 0.05, 0.0, _clients(rng), _urgency(rng))


def skewed(rng: random.Random, scenario: Scenario) -> Iterator[Arrival]:
    """99 % of 1 ms and 1 % of 200 ms of Python."""
    for at in poisson(rng, scenario.steps):
        long = rng.random() < 0.01
        yield Arrival(at, "long" if long else "quick", 0.2 if long else 0.001, 0.0, _clients(rng), _urgency(rng))


def mixed(rng: random.Random, scenario: Scenario) -> Iterator[Arrival]:
    """Half of 5 ms of Python, half of 100 ms of waiting."""
    for at in poisson(rng, scenario.steps):
        if rng.random() < 0.5:
            yield Arrival(at, "spin", 0.005, 0.0, _clients(rng), 3)
        else:
            yield Arrival(at, "wait", 0.0002, 0.1, _clients(rng), 3)


def greedy(rng: random.Random, scenario: Scenario) -> Iterator[Arrival]:
    """Twenty polite clients at 0.4 together, one at 9.6."""
    for at in poisson(rng, scenario.steps):
        client = _clients(rng) if rng.random() < 0.04 else "greedy"
        yield Arrival(at, "wait", 0.0002, 0.06, client, 3)


def clumps(rng: random.Random, scenario: Scenario) -> Iterator[Arrival]:
    """0.6 of capacity, in clumps of 75 ms of work."""
    size = round(0.075 * scenario.capacity)
    for at in poisson(rng, [(seconds, rate / size) for seconds, rate in scenario.steps]):
        for _ in range(size):
            yield Arrival(at, "wait", 0.0002, 0.06, _clients(rng), _urgency(rng))


def obedient(rng: random.Random, scenario: Scenario) -> Iterator[Arrival]:
    """Clients that come back as Retry-After says."""
    for at in poisson(rng, scenario.steps):
        yield Arrival(at, "wait", 0.0002, 0.06, _clients(rng), 3, retries=4)


STAIRS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 0.5)


def stairs(capacity: float, seconds: float = 4.0) -> Steps:
    return [(seconds, factor * capacity) for factor in STAIRS]


def scenarios() -> list[Scenario]:
    """All of them."""
    slots = 64 / 0.0607
    half = [(5.0, 0.5 * slots)]
    return [
        Scenario("waiting", slots, stairs(slots), waiting),
        Scenario("varied", slots, stairs(slots), varied),
        Scenario("computing", 400.0, stairs(400.0), computing, sync=True),
        Scenario("heavy", 40.0, stairs(40.0), heavy, sync=True),
        Scenario("skewed", 2.0 / 0.00299, stairs(2.0 / 0.00299), skewed, sync=True),
        Scenario("mixed", 800.0, stairs(800.0), mixed),
        Scenario("greedy", slots, [(6.0, 10.0 * slots)], greedy),
        Scenario("clumps", slots, [(15.0, 0.6 * slots)], clumps),
        Scenario("calm", slots, [(15.0, 0.5 * slots)], waiting),
        Scenario("burst, obeyed", slots, [(3.0, 1.5 * slots), (7.0, 0.5 * slots)], obedient),
        Scenario("half die at 0.8", slots, [(10.0, 0.8 * slots)], waiting, deaths=((START + 3.0, 2),)),
        Scenario(
            "3x slower at 0.8",
            slots,
            [(10.0, 0.8 * slots)],
            waiting,
            slowness=lambda now: 3.0 if START + 3.0 <= now < START + 8.0 else 1.0,
        ),
        Scenario(
            "15x slower for 4 s",
            slots,
            [*half, (10.0, 0.8 * slots)],
            waiting,
            slowness=lambda now: 15.0 if START + 6.0 <= now < START + 10.0 else 1.0,
        ),
        Scenario("cold at 5x", slots, [(5.0, 5.0 * slots)], waiting),
        Scenario("cold at 5x, computing", 400.0, [(5.0, 5 * 400.0)], computing, sync=True),
    ]


def play(scenario: Scenario, enabled: bool, seed: int) -> tuple[list[Ending], Simulation]:
    """One run."""
    simulation = Simulation(
        scenario.machine, Policy(enabled=enabled), sync=scenario.sync, seed=seed, slowness=scenario.slowness
    )
    for at, count in scenario.deaths:
        for index in range(count):
            simulation.at(at, lambda: simulation.kill_worker(simulation.workers[0]))
            simulation.at(at + 5.0, partial(simulation.add_worker, index))
    return simulation.run(scenario.trace(random.Random(seed), scenario)), simulation


def good(endings: Sequence[Ending], begin: float, end: float) -> int:
    """Results within the limit, of what arrived in this time."""
    return sum(not each.problem and each.took <= LIMIT for each in endings if begin <= each.arrival.at < end)


def recovery(endings: Sequence[Ending], at: float, end: float) -> float:
    """Seconds after ``at`` until 95 % of what arrives is good, and stays so for half a second."""
    step = 0.1
    counts: Counter[int] = Counter()
    fine: Counter[int] = Counter()
    for each in endings:
        window = int((each.arrival.at - at) / step)
        counts[window] += 1
        fine[window] += not each.problem and each.took <= LIMIT
    windows = int((end - at) / step)
    for number in range(windows):
        if all(fine[later] >= 0.95 * counts[later] for later in range(number, min(windows, number + 5))):
            return number * step
    return math.inf


def figures(scenario: Scenario, enabled: bool, seed: int) -> dict[str, float]:
    """What is printed of one run."""
    endings, simulation = play(scenario, enabled, seed)
    found: dict[str, float] = {}
    begin = START
    for number, (seconds, rate) in enumerate(scenario.steps):
        possible = min(rate, scenario.capacity) * seconds
        found[f"good {number}"] = good(endings, begin, begin + seconds) / possible
        begin += seconds
    if scenario.steps and len(scenario.steps) == len(STAIRS):
        last = scenario.steps[-1][0]
        found["recovery"] = recovery(endings, begin - last, begin)
    results = [each for each in endings if not each.problem]
    defended = [each for each in results if each.arrival.cpu + each.arrival.waiting < DEFENDED * LIMIT]
    found["p50"] = percentile([each.took for each in defended], 0.5) * 1e3
    found["p99"] = percentile([each.took for each in defended], 0.99) * 1e3
    found["late"] = 100.0 * sum(each.took > LIMIT for each in defended) / max(1, len(defended))
    for name, urgency in (("H", 1), ("N", 3), ("L", 6)):
        of_class = [each for each in endings if each.arrival.priority == urgency]
        found[f"ref{name}"] = (
            100.0 * sum(bool(each.problem) for each in of_class) / len(of_class) if of_class else math.nan
        )
    ages = [each.took for each in endings if each.problem]
    found["age99"] = percentile(ages, 0.99) * 1e3 if ages else math.nan
    polite = Counter(each.arrival.client for each in results if each.took <= LIMIT)
    found["jain"] = jain(polite[f"c{number}"] for number in range(20))
    asked = Counter(each.arrival.client for each in endings)
    small = sum(asked[f"c{number}"] for number in range(20))
    found["polite"] = 100.0 * sum(polite[f"c{number}"] for number in range(20)) / max(1, small)
    came = [each for each in endings if each.attempt == 1]
    found["obeyed"] = 100.0 * sum(not each.problem for each in came) / len(came) if came else math.nan
    found["most"] = float(simulation.most_in_flight)
    return found


COLUMNS: Final = ("recovery", "p50", "p99", "late", "refH", "refN", "refL", "age99", "jain", "polite", "obeyed", "most")


def refused_by_rank() -> dict[int, float]:
    """Of three urgencies at twice the capacity together, how many are refused of each, 0 to 1."""
    rng = random.Random(1)

    def trace() -> Iterator[Arrival]:
        for at in poisson(rng, [(8.0, 2.0 * 32 / 0.06)]):
            yield Arrival(at, "wait", 0.0002, 0.06, f"c{rng.randrange(20)}", rng.choice((1, 3, 6)))

    endings = Simulation(Machine(workers=2, slots=16)).run(trace())
    refused = {}
    for urgency in (1, 3, 6):
        mine = [each for each in endings if each.arrival.priority == urgency and each.arrival.at > START + 2.0]
        refused[urgency] = sum(bool(each.problem) for each in mine) / len(mine)
    return refused


BUSY: Final = Machine(serving=120e-6, refusing=25e-6)
"""A machine on which the supervisor's work counts as well, as it was measured."""
SPIN: Final = 0.0047
"""CPU seconds of a call of the crowds."""


def spin(rng: random.Random) -> tuple[str, float, float]:
    """What the crowds ask for: a little Python."""
    return "spin", SPIN, 0.0


def either(rng: random.Random) -> tuple[str, float, float]:
    """Four times of five 1 ms of Python, else 20 ms: drawn anew for each request."""
    return ("quick", 0.001, 0.0) if rng.random() < 0.8 else ("longer", 0.02, 0.0)


@dataclass(frozen=True)
class Gathering:
    """Crowds, and from when to when it is looked at what they get. Times in seconds."""

    name: str
    crowds: tuple[Crowd, ...]
    begin: float
    end: float
    others: Callable[[float], float] = lambda now: 0.0
    """Processors that other programs take."""


@dataclass(frozen=True)
class Treatment:
    """How a crowd was treated in the time looked at."""

    answered: float
    """A second."""
    refused: float
    """Of all endings, 0 to 1."""
    p50: float
    p99: float
    """Seconds, of what was answered."""
    refusing: float
    """Of a processor, over the whole run: what the supervisor spent on those whom it refused."""
    last: float
    """Seconds from the begin to the last refusal; negative: there was none."""
    jain: float
    """Between the clients that are told apart."""


def treat(gathering: Gathering, enabled: bool = True, seed: int = 1, sync: bool = True) -> Treatment:
    """Play it."""
    simulation = Simulation(BUSY, Policy(enabled=enabled), sync=sync, seed=seed, others=gathering.others)
    for crowd in gathering.crowds:
        simulation.join(crowd)
    simulation.run(())
    begin, end = gathering.begin, gathering.end
    endings = [(each.arrival.at + each.took, each) for each in simulation.endings]
    seen = [each for at, each in endings if begin <= at < end]
    answered = [each for each in seen if not each.problem]
    took = [each.took for each in answered]
    got = Counter(each.arrival.client for each in answered)
    names = max(crowd.names for crowd in gathering.crowds)
    return Treatment(
        len(answered) / (end - begin),
        1.0 - len(answered) / max(1, len(seen)),
        percentile(took, 0.5),
        percentile(took, 0.99),
        simulation.refusing / (simulation.now - START),
        max((at - begin for at, each in endings if each.problem), default=-1.0),
        jain(got[f"c{number}"] for number in range(names)),
    )


def gatherings() -> list[Gathering]:
    """The crowds that are shown: of one size, shrinking, obeying, and beside other programs."""
    sizes = (1, 10, 32, 64, 128, 256, 512, 2000)
    shown = [Gathering(f"{size}", (Crowd(size, spin, START, START + 6),), START + 2, START + 6) for size in sizes]
    shown += [
        Gathering(
            f"{size}, each its own address", (Crowd(size, spin, START, START + 6, names=size),), START + 2, START + 6
        )
        for size in (64, 256, 512)
    ]
    shown += [
        Gathering(
            f"{size} that reconnect", (Crowd(size, spin, START, START + 6, reconnects=True),), START + 2, START + 6
        )
        for size in (64, 256)
    ]
    shown += [
        Gathering(f"{size} that draw anew", (Crowd(size, either, START, START + 6),), START + 2, START + 6)
        for size in (10, 64)
    ]
    shown += [after(fewer, more) for fewer in (10, 64) for more in (256, 2000)]
    shown += [
        Gathering("256 that obey", (Crowd(256, spin, START, START + 12, obeys=True),), START + 4, START + 12),
        Gathering("1000 that obey, once", (Crowd(1000, spin, START, START + 60, obeys=True, once=True),), START, START + 20),
        Gathering("10 beside 1.5 processors of others", (Crowd(10, spin, START, START + 6),), START + 2, START + 6, lambda now: 1.5),
        Gathering("256 beside 1.5 processors of others", (Crowd(256, spin, START, START + 6),), START + 2, START + 6, lambda now: 1.5),
    ]  # fmt: skip
    return shown


def after(fewer: int, more: int) -> Gathering:
    """So many after so many more: looked at from the moment when those go."""
    rest, others = Crowd(fewer, spin, START, START + 7), Crowd(more - fewer, spin, START + 0.5, START + 3)
    return Gathering(f"{fewer} after {more}", (rest, others), START + 3, START + 7)


def treated(gathering: Gathering, enabled: bool) -> list[Any]:
    """A row of the table of crowds."""
    found = treat(gathering, enabled)
    cells = [round(found.answered), 100 * found.refused, 1e3 * found.p50, 1e3 * found.p99, 100 * found.refusing]
    last = "-" if found.last < 0 else round(found.last, 2)
    return [gathering.name, "on" if enabled else "off", *(round(each, 1) for each in cells), last, round(found.jain, 2)]


def row(scenario: Scenario, enabled: bool, seeds: Sequence[int]) -> list[Any]:
    """Medians over the seeds."""
    runs = [figures(scenario, enabled, seed) for seed in seeds]
    steps = " ".join(
        f"{statistics.median(run[f'good {number}'] for run in runs):.2f}" for number in range(len(scenario.steps))
    )
    cells: list[Any] = [scenario.name, "on" if enabled else "off", steps]
    for name in COLUMNS:
        values = [run[name] for run in runs if name in run]
        cells.append(round(statistics.median(values), 3 if name == "jain" else 1) if values else "-")
    return cells


def main() -> int:
    """The command."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("names", nargs="*", help="scenarios, or crowds (default: all)")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--without", action="store_true", help="what each constant of the throttle is for")
    chosen = options.parse_args()

    def progress() -> None:
        print(".", end="", file=sys.stderr, flush=True)

    if chosen.without:
        from bench.ablation import rows as without

        print(f"\n{table(without(progress))}")
        return 0
    rows: list[list[Any]] = [["scenario", "throttle", "good of what is possible, by step", *COLUMNS]]
    for scenario in scenarios():
        if not chosen.names or scenario.name in chosen.names:
            for enabled in (True, False):
                rows.append(row(scenario, enabled, range(1, 1 + chosen.seeds)))
                progress()
    crowds: list[list[Any]] = [
        ["clients", "throttle", "answered/s", "refused %", "p50", "p99", "refusing %", "last refusal", "jain"]
    ]
    for gathering in gatherings() if not chosen.names or "crowds" in chosen.names else ():
        for enabled in (True, False):
            crowds.append(treated(gathering, enabled))
            progress()
    for shown in (rows, crowds):
        if len(shown) > 1:
            print(f"\n{table(shown)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
