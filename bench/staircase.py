"""A staircase of load: 0.5, 1, 2, 5 and 10 times the measured capacity, with the throttle on and off, and the recovery.

For agents that wait, compute, use the database, or do very unequal things. An answer is good when it comes within 500 ms
of the moment that its request was due.

The capacity C is measured anew before each step, since the speed of a machine that is shared with others wanders. Load
generator and supervisor run on the processors that computing agents need, and the more requests there are to be refused,
the less they leave. So for mixes that compute C is what was measured times what they left in the step over what they
left in the measurement, both as CPU time; the table says what they took.

The load of a step comes from one address and comes back at once, so its refusals are paced. Beside it a few clients with
addresses of their own ask once each: how old a refusal is that keeps its time (A8) is told by theirs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.measuring import RESULTS, Check, Result, load
from bench.series import Report, Series, percentile
from bench.spec import Kind, Population
from bench.targets import Target, penstock
from bench.work import CORES, rounds_for

LIMIT: Final = 0.5
"""Seconds within which an answer is good."""
FACTORS: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
TURN: Final = 0.25
"""Seconds of a point of a plot."""
WINDOW: Final = 0.1
"""Seconds of a window when the time of recovery is looked for."""
PUNCTUAL: Final = [f"127.0.1.{number}" for number in range(1, 241)]
"""Addresses of clients that ask once in a step."""
RATE: Final = 20.0
"""Requests a second of these together."""


@dataclass(frozen=True)
class Mix:
    """What is asked for, of which daemon."""

    name: str
    kinds: list[Kind]
    settings: dict[str, Any]
    must: tuple[float, float, float]
    """The goodput that is promised at 2, 5 and 10 times the capacity."""
    computes: bool = False
    clients: int = 12
    """So many keep everything busy."""
    defended: str = ""
    """The label of the kind whose response times can be defended; empty: all can."""


def mixes() -> list[Mix]:
    """All of them; computing ones are sized to this machine."""
    slots = {"pools__default__workers": 2, "pools__default__concurrency": 16, "queue__high_water": 100_000}
    more = {"queue__high_water": 100_000}
    computed = (0.90, 0.85, 0.80)
    quick = rounds_for(1.0)
    long = 200 * quick
    return [
        Mix("waiting", [Kind("wait", "0.06")], slots, (0.95, 0.93, 0.90), clients=34),
        Mix("computing", [Kind("spin", str(rounds_for(5.0)))], more, computed, computes=True),
        Mix("database", [Kind("rest", "0.02")], {**more, "database__dsn": ""}, computed, clients=24),
        Mix(
            "skewed",
            [Kind("spin", str(quick), 0.99, label="quick"), Kind("spin_long", str(long), 0.01)],
            more,
            computed,
            computes=True,
            defended="quick",
        ),
    ]


@dataclass(frozen=True)
class Capacity:
    """What can be done: good answers a second, and the processors that supervisor and generator took meanwhile."""

    rate: float
    others: float

    def beside(self, others: float) -> float:
        """Answers a second while supervisor and generator take so many processors."""
        return self.rate * max(0.1, CORES - others) / max(0.1, CORES - self.others)


def capacity(target: Target, mix: Mix, seconds: float) -> float:
    """Requests a second that are answered when just enough clients keep every slot busy."""
    load(target, [Population("warm", mix.kinds, clients=mix.clients)], 1.0)
    return _capacity(target, mix, seconds).rate


def _capacity(target: Target, mix: Mix, seconds: float) -> Capacity:
    report, others = _watched(target, [Population("full", mix.kinds, clients=mix.clients)], seconds)
    return Capacity(max(1.0, report.all().progress(0.5, seconds)), others)


def _watched(target: Target, populations: list[Population], seconds: float) -> tuple[Report, float]:
    """A run, and the processors that supervisor and generator took."""
    used = target.own_cpu()
    report = load(target, populations, seconds)
    return report, (target.own_cpu() - used + report.cpu) / seconds


def recovery(series: Series, at: float, end: float) -> float:
    """Seconds after ``at`` until 95 % of what was due in a window is good, and stays so for half a second."""
    windows = int((end - at) / WINDOW)
    fine = []
    for number in range(windows):
        part = series.between(at + number * WINDOW, at + (number + 1) * WINDOW)
        fine.append(not len(part) or part.good(LIMIT) >= 0.95 * len(part))
    for number in range(windows):
        if all(fine[number : number + 5]):
            return number * WINDOW
    return end - at


def climb(mix: Mix, result: Result, scale: float) -> None:
    """One mix with the throttle on and off: a table, the checks and a plot."""
    heading = ["throttle", "x", "C", "others' CPUs", "sent", "good/C", "p50 ms", "p99 ms", "late %"]
    rows: list[list[Any]] = [[*heading, "refusal p50", "p99 ms", "paced p99 ms", "outcomes"]]
    curves: dict[str, list[float]] = {}
    for enabled in (True, False):
        title = "on" if enabled else "off"
        with penstock(throttle__enabled=enabled, **mix.settings) as target:
            capacity(target, mix, 1.0)
            steps = [_step(target, mix, factor, 6.0 * scale) for factor in FACTORS]
            curves[title] = [value for step in steps for value in step.curve()]
            rows += [[title, *step.cells()] for step in steps]
            over, curve = _way_back(target, mix, 3.0 * scale, 6.0)
            curves[title] += curve
        result.notes.append(f"{mix.name}, throttle {title}: recovered {over:.1f} s after 10x")
        if enabled:
            for step in steps:
                step.check(result)
            result.checks.append(Check(f"A9 {mix.name}: seconds to recover after 10x", over, 1.0))
    result.tables[f"{mix.name}: steps of {6.0 * scale:g} s"] = rows
    _plot(RESULTS / f"overload-{mix.name}.svg", mix.name, curves, 6.0 * scale)


@dataclass(frozen=True)
class Step:
    """One step of the staircase."""

    mix: Mix
    factor: float
    seconds: float
    possible: float
    """The capacity, in answers a second."""
    others: float
    series: Series
    defended: Series
    """Of it, those of agents whose response times can be defended."""
    punctual: Series
    """Of it, those of clients that asked once."""

    @property
    def good(self) -> float:
        """Goodput over the capacity."""
        return self.series.good(LIMIT) / self.seconds / self.possible

    def _times(self) -> list[float]:
        latencies, ages, paced = self.defended.latencies(), self.punctual.ages(), self.series.ages()
        late = 100.0 * sum(took > LIMIT for took in latencies) / max(1, len(latencies))
        both = [[percentile(times, level) * 1e3 for level in (0.5, 0.99)] for times in (latencies, ages)]
        return [*both[0], late, *both[1], percentile(paced, 0.99) * 1e3]

    def cells(self) -> list[Any]:
        """A row of the table."""
        start = [self.factor, round(self.possible), self.others, len(self.series), self.good]
        return [*start, *self._times(), outcomes(self.series)]

    def check(self, result: Result) -> None:
        """What is promised of it."""
        name, factor = self.mix.name, self.factor
        _, p99, late, age, oldest, paced = self._times()
        promised = dict(zip((2.0, 5.0, 10.0), self.mix.must, strict=True))
        checks = []
        if factor in promised:
            row = "A14" if name == "skewed" else "A1"
            checks.append(Check(f"{row} {name}: goodput at {factor:g}x", self.good, promised[factor], at_least=True))
            checks.append(Check(f"A2 {name}: p99 of the accepted at {factor:g}x, ms", p99, LIMIT * 1e3))
        if factor == 10.0:
            checks.append(Check(f"A3 {name}: late answers at 10x, %", late, 1.0))
            if not self.mix.computes and self.punctual.ages():
                checks.append(Check(f"A8 {name}: p50 of a refusal's age at 10x, ms", age, 0.02 * LIMIT * 1e3))
                checks.append(Check(f"A8 {name}: p99 of a refusal's age at 10x, ms", oldest, 0.6 * LIMIT * 1e3))
            if not self.mix.computes:
                checks.append(Check(f"A8 {name}: p99 of a paced refusal's age at 10x, ms", paced, 1000.0))
        result.checks += checks

    def curve(self) -> list[float]:
        """Goodput over capacity, every quarter of a second."""
        return _curve(self.series, self.seconds, self.possible)


def _step(target: Target, mix: Mix, factor: float, seconds: float) -> Step:
    before = _capacity(target, mix, 3.0)
    arriving = Population("step", mix.kinds, rate=factor * before.rate, patience=5.0)
    punctual = Population("punctual", mix.kinds, rate=RATE, sources=PUNCTUAL, even=True, patience=5.0)
    report, others = _watched(target, [arriving, punctual], seconds)
    possible = before.beside(others) if mix.computes else before.rate
    defended = report.only(f"step/{mix.defended}")
    return Step(mix, factor, seconds, possible, others, report.all(), defended, report.only("punctual/"))


def _way_back(target: Target, mix: Mix, above: float, below: float) -> tuple[float, list[float]]:
    """Ten times the capacity, then half of it: seconds until it is well again, and the curve of the second part."""
    top = _capacity(target, mix, 3.0).rate
    steps = [(above, 10.0 * top), (below, 0.5 * top)]
    series = load(target, [Population("back", mix.kinds, steps=steps, patience=5.0)], above + below).all()
    curve = _curve(series, above + below, top)[round(above / TURN) :]
    return recovery(series, above, above + below), curve


def outcomes(series: Series) -> str:
    """What was not answered 2xx, the most frequent first."""
    return ", ".join(f"{count} {name}" for name, count in series.outcomes().most_common() if name[0] != "2") or "-"


def _curve(series: Series, seconds: float, top: float) -> list[float]:
    """Goodput over capacity in every turn."""
    counts: Counter[int] = Counter()
    fine = {code for code, name in enumerate(series.names) if name[0] == "2"}
    for due, took, outcome in zip(series.due, series.took, series.outcome, strict=True):
        counts[int(due / TURN)] += outcome in fine and took <= LIMIT
    return [counts[turn] / TURN / top for turn in range(round(seconds / TURN))]


def _plot(path: Path, name: str, curves: dict[str, list[float]], seconds: float) -> None:
    """An SVG of goodput over time; the steps are marked, the last is the way back."""
    width, height, left, bottom = 720, 300, 50, 40
    span, most = TURN * max(map(len, curves.values())), 1.3

    def point(at: float, value: float) -> str:
        x = left + at / span * (width - left - 10)
        y = height - bottom - min(value, most) / most * (height - bottom - 30)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18">{name}: goodput as a part of capacity (solid: throttle on, dashed: off)</text>',
    ]
    for value in (0.0, 0.5, 1.0):
        start, end = point(0.0, value), point(span, value)
        (x1, y1), (x2, _) = start.split(","), end.split(",")
        parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y1}" stroke="#ccc"/>')
        parts.append(f'<text x="{left - 30}" y="{float(y1) + 4:.1f}">{value:g}</text>')
    for number, factor in enumerate([*FACTORS, 0.5]):
        x, _ = point(number * seconds, 0.0).split(",")
        parts.append(f'<line x1="{x}" y1="25" x2="{x}" y2="{height - bottom}" stroke="#eee"/>')
        parts.append(f'<text x="{float(x) + 4:.1f}" y="{height - bottom + 18}">{factor:g}x</text>')
    for title, style in (("on", 'stroke="#0a6"'), ("off", 'stroke="#c30" stroke-dasharray="4 3"')):
        points = " ".join(point(turn * TURN, value) for turn, value in enumerate(curves[title]))
        parts.append(f'<polyline fill="none" stroke-width="2" {style} points="{points}"/>')
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>\n"]))
