"""How the throttle copes with faults: workers that die, a backend that slows down, a cold start, clumps, a flood.

All with agents that wait, so that the load generator does not take the processors from what is measured.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import psutil

from bench.measuring import Check, Result, load
from bench.series import Series
from bench.spec import Kind, Population
from bench.staircase import LIMIT, WINDOW, Mix, capacity, mixes, outcomes, recovery
from bench.targets import Target, penstock

SLOWER: Final = 3.0
BROWNOUT: Final = 15.0
FLOOD: Final = 25_000.0
"""Requests a second: more than can be refused."""
CLUMP: Final = 0.01
"""Seconds in which a clump arrives."""


def deaths(result: Result, scale: float) -> None:
    """Half of the workers are killed at 0.8 of capacity."""
    mix = mixes()[0]
    settings = {**mix.settings, "pools__default__workers": 4, "pools__default__concurrency": 8}
    seconds, begin = 8.0 * scale, 2.0 * scale
    with penstock(**settings) as target:
        top = capacity(target, mix, 3.0 * scale)
        killer = threading.Timer(begin, _kill_half, [target])
        killer.start()
        series = load(target, [Population("p", mix.kinds, rate=0.8 * top, patience=5.0)], seconds).all()
        killer.join()
    after = series.between(begin, begin + 2.0)
    # The two come back within the two seconds, so what is left lies between a half of the capacity and what was asked for.
    # Against what was asked for is the strictest reading.
    share = after.good(LIMIT) / max(1, len(after))
    result.notes.append(f"half of the workers killed at 0.8x: of what was due in the 2 s after, {_told(after)}")
    result.checks.append(Check("A10 deaths: goodput in the 2 s after / asked for", share, 0.93, at_least=True))
    lost = sum(count for name, count in series.outcomes().items() if name in ("reset", "no answer", "502 worker-died"))
    result.checks.append(Check("A10 deaths: requests without an answer of their own", lost, 0))


def _kill_half(target: Target) -> None:
    for worker in target.workers()[::2]:
        os.kill(worker["pid"], signal.SIGKILL)


def _told(series: Series) -> str:
    return f"{100.0 * series.good(LIMIT) / max(1, len(series)):.1f} % answered in time; {outcomes(series)}"


def slowdown(result: Result, scale: float) -> None:
    """The backend becomes three times slower at 0.8 of capacity, which is 2.4 times the capacity then."""
    slow, seconds = 3.0 * scale, 10.0 * scale
    top, series = _with_backend(0.8, (slow, SLOWER), seconds, scale)
    after = series.between(slow)
    share = after.good(LIMIT) / (seconds - slow) / (top / SLOWER)
    result.notes.append(f"{SLOWER:g} times slower at 0.8x: {_told(after)}")
    result.checks.append(Check("A11 slowdown: goodput / slowed capacity", share, 0.93, at_least=True))


def brownout(result: Result, scale: float) -> None:
    """The backend becomes fifteen times slower for four seconds, at half of capacity."""
    begin, end, seconds = 3.0, 7.0, 14.0
    _, series = _with_backend(0.5, (begin, BROWNOUT, end, 1.0), seconds, scale)
    over = recovery(series, end, seconds)
    result.notes.append(f"{BROWNOUT:g} times slower for {end - begin:g} s at 0.5x: {_told(series.between(begin, end))}")
    result.checks.append(Check("A12 brownout: seconds to recover", over, 4.0))


def _with_backend(part: float, changes: tuple[float, ...], seconds: float, scale: float) -> tuple[float, Series]:
    """A load of ``part`` of the capacity on a backend that is ``changes[1]`` times slower from ``changes[0]`` seconds on,
    and so on: the capacity, and what became of the requests.
    """
    mix = mixes()[0]
    asking = dataclasses.replace(mix, kinds=[Kind("ask_backend", mix.kinds[0].body)])
    with tempfile.NamedTemporaryFile("w", prefix="penstock-bench-") as file:
        os.environ["PENSTOCK_BENCH_SLOWNESS"] = file.name
        with penstock(**mix.settings) as target:
            top = capacity(target, asking, 3.0 * scale)
            asks = Population("asking", asking.kinds, rate=part * top, patience=5.0)
            begin, factor, *later = changes
            # The first change is a request, so that it comes by the generator's clock. Later ones could be refused.
            switch = [Kind("slow_backend", str(factor))]
            slows = Population("switch", switch, rate=1.0, begin=begin, end=begin + 0.5, even=True)
            changer = threading.Thread(target=_change, args=(Path(file.name), begin, later), daemon=True)
            changer.start()
            return top, load(target, [asks, slows], seconds).only("asking/")


def _change(path: Path, begin: float, later: list[float]) -> None:
    """Once the backend has been slowed down, which was to be at ``begin``, make the later changes at their times."""
    while not path.read_text():
        time.sleep(0.01)
    begun = time.monotonic()
    for at, factor in zip(later[::2], later[1::2], strict=True):
        time.sleep(max(0.0, begun + at - begin - time.monotonic()))
        path.write_text(str(factor))


def calm(result: Result, scale: float) -> None:
    """Below capacity nobody is refused: at random at 0.5, and in clumps of 75 ms of work at 0.6 of it."""
    mix = mixes()[0]
    with penstock(**mix.settings) as target:
        top = capacity(target, mix, 3.0 * scale)
        even = load(target, [Population("p", mix.kinds, rate=0.5 * top)], 10.0 * scale).all()
        clump, gap = (CLUMP, 0.075 * top / CLUMP), (0.125 - CLUMP, 0.0)
        rounds = max(1, round(10.0 * scale / 0.125))
        clumps = load(target, [Population("p", mix.kinds, steps=[clump, gap] * rounds)], rounds * 0.125).all()
    for name, series, limit in (("at random at 0.5x", even, 0.01), ("in clumps at 0.6x", clumps, 15.0)):
        refused = 100.0 * len(series.ages()) / max(1, len(series))
        result.checks.append(Check(f"A13 calm: refused {name}, %", refused, limit))


def cold(result: Result, scale: float) -> None:
    """A daemon that has measured nothing yet gets five times its capacity."""
    mix = mixes()[0]
    seconds = 5.0 * scale
    with penstock(**mix.settings) as target:
        top = capacity(target, mix, 3.0 * scale)
    with penstock(**mix.settings) as target:
        series = load(target, [Population("p", mix.kinds, rate=5.0 * top, patience=5.0)], seconds).all()
    until = seconds
    for window in range(int(seconds / WINDOW) - 5):
        part = series.between(window * WINDOW, window * WINDOW + 0.5)
        if part.good(LIMIT) / 0.5 >= 0.95 * top:
            until = window * WINDOW
            break
    last = series.between(seconds - 1.0).good(LIMIT) / top
    result.notes.append(f"cold start at 5x: {_told(series)}")
    result.checks.append(Check("A18 cold start: seconds until 0.95 of capacity is good", until, 2.0))
    result.checks.append(Check("A18 cold start: goodput / capacity in the last second", last, 0.95, at_least=True))


def refusals(result: Result, scale: float) -> None:
    """What refusing costs the supervisor beside serving, what happens beyond what it can refuse, and what that needs."""
    mix = mixes()[0]
    seconds = 6.0 * scale
    with penstock(**mix.settings) as target:
        top = capacity(target, mix, 3.0 * scale)
        served_cost = _cost_of_serving(target, mix, 0.8 * top, seconds)
        begun = target.own_cpu()
        series = load(target, [Population("p", mix.kinds, rate=5.0 * top, patience=5.0)], seconds).all()
        spent = target.own_cpu() - begun
        served = len(series.latencies())
        refused_cost = (spent - served * served_cost) / max(1, len(series) - served)
        result.notes.append(
            f"supervisor: {served_cost * 1e6:.0f} us of CPU time for an answer, {refused_cost * 1e6:.0f} us for a refusal"
        )
        result.checks.append(Check("A15 refusals: CPU of a refusal / of an answer", refused_cost / served_cost, 0.6))

        ceiling = _ceiling(target, mix, 3.0 * scale)
        rss = psutil.Process(target.process.pid).memory_info().rss
        calm_rate = 0.5 * top
        steps = [(seconds, 1.2 * ceiling), (3.0, calm_rate)]
        beyond = load(target, [Population("p", mix.kinds, steps=steps, patience=5.0)], seconds + 3.0).all()
        grown = psutil.Process(target.process.pid).memory_info().rss / rss
    good = beyond.between(1.0, seconds).good(LIMIT) / (seconds - 1.0) / top
    over = recovery(beyond, seconds, seconds + 3.0)
    result.notes.append(f"it can answer {ceiling:.0f}/s at {top:.0f}/s of capacity; at 1.2 times that: {_told(beyond)}")
    result.notes.append(f"its memory grew to {grown:.2f} of before, its goodput was back {over:.1f} s after")
    result.checks.append(Check("A17 beyond the ceiling: goodput / capacity", good, 0.5, at_least=True))
    result.checks.append(Check("A17 beyond the ceiling: memory / before", grown, 2.0))


def _cost_of_serving(target: Target, mix: Mix, rate: float, seconds: float) -> float:
    begun = target.own_cpu()
    series = load(target, [Population("p", mix.kinds, rate=rate, patience=5.0)], seconds).all()
    return (target.own_cpu() - begun) / max(1, len(series.latencies()))


def _ceiling(target: Target, mix: Mix, seconds: float) -> float:
    """Answers of any kind a second, when far more is asked for than can be answered. (In a closed loop refusals are
    paced, so that nobody gets there.)
    """
    series = load(target, [Population("p", mix.kinds, rate=FLOOD, patience=5.0)], seconds).all()
    return sum(name[0] in "2345" for name in series.outcomes().elements()) / seconds


def memory(result: Result, scale: float) -> None:
    """Ten times the capacity for a minute: what the supervisor holds after five seconds, and at the end."""
    mix = mixes()[0]
    seconds = 60.0 * scale
    with penstock(**mix.settings) as target:
        top = capacity(target, mix, 3.0 * scale)
        process = psutil.Process(target.process.pid)
        early: list[int] = []
        look = threading.Timer(5.0, lambda: early.append(process.memory_info().rss))
        look.start()
        load(target, [Population("p", mix.kinds, rate=10.0 * top, patience=5.0)], seconds)
        look.join()
        grown = 100.0 * (process.memory_info().rss / early[0] - 1.0)
    result.checks.append(Check(f"A19 memory: growth over {seconds:g} s at 10x after the first 5 s, %", grown, 10.0))


def price(result: Result, scale: float) -> None:
    """What the throttle costs below capacity, and what a refusal costs beside an answer."""
    mix = mixes()[1]
    rates: dict[bool, list[float]] = {True: [], False: []}
    top = 0.0
    for _ in range(3):
        for enabled in (True, False):
            with penstock(throttle__enabled=enabled, **mix.settings) as target:
                top = top or capacity(target, mix, 2.0 * scale)
                seconds = 4.0 * scale
                report = load(target, [Population("p", mix.kinds, rate=0.9 * top, even=True)], seconds)
                rates[enabled].append(report.all().good(LIMIT) / seconds)
    ratio = sum(rates[True]) / sum(rates[False])
    result.notes.append(f"at 0.9x with the throttle on {ratio:.3f} of the throughput without it")
    result.checks.append(Check("price: throughput at 0.9x, on / off", ratio, 0.98, at_least=True))
