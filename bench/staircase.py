"""A staircase of load: 0.5, 1, 2, 5 and 10 times the measured capacity and back, with the throttle on and off.

For agents that wait, compute, use the database, or do very unequal things. An answer is good when it comes within 500 ms
of the moment that its request was due.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from load import Kind, Population, Report, Series, percentile
from measuring import RESULTS, Check, Result, load
from targets import Target, penstock
from work import rounds_for

LIMIT: Final = 0.5
"""Seconds within which an answer is good."""
FACTORS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 0.5)
WINDOW: Final = 0.1
"""Seconds of a window when the time of recovery is looked for."""


@dataclass(frozen=True)
class Mix:
    """What is asked for, of which daemon."""

    name: str
    kinds: list[Kind]
    settings: dict[str, Any]
    must: tuple[float, float, float]
    """The goodput that is promised at 2, 5 and 10 times the capacity."""


def mixes() -> list[Mix]:
    """All of them; computing ones are sized to this machine."""
    slots = {"pools__default__workers": 2, "pools__default__concurrency": 16, "queue__high_water": 100_000}
    more = {"queue__high_water": 100_000}
    return [
        Mix("waiting", [Kind("wait", "0.06")], slots, (0.95, 0.93, 0.90)),
        Mix("computing", [Kind("spin", str(rounds_for(5.0)))], more, (0.90, 0.85, 0.80)),
        Mix("database", [Kind("rest", "0.02")], {**more, "database__dsn": ""}, (0.90, 0.85, 0.80)),
        Mix(
            "skewed",
            [Kind("spin", str(rounds_for(1.0)), 0.99), Kind("spin_long", str(rounds_for(200.0)), 0.01)],
            more,
            (0.90, 0.85, 0.80),
        ),
    ]


def capacity(target: Target, mix: Mix, seconds: float) -> float:
    """Requests a second that are answered when just enough clients keep every slot busy."""
    clients = 34 if mix.name == "waiting" else 12
    load(target, [Population("warm", mix.kinds, clients=clients)], 1.0)
    report = load(target, [Population("full", mix.kinds, clients=clients)], seconds)
    return report.all().throughput(0.5, seconds)


def stepped(target: Target, mix: Mix, top: float, seconds: float) -> Report:
    """The whole staircase as one run."""
    steps = [(seconds, factor * top) for factor in FACTORS]
    return load(target, [Population("steps", mix.kinds, steps=steps, patience=5.0)], seconds * len(FACTORS))


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
    seconds = 6.0 * scale
    rows: list[list[Any]] = [
        ["throttle", "x", "sent", "good/C", "p50 ms", "p99 ms", "late %", "refusal p50", "p99 ms", "outcomes"]
    ]
    curves: dict[str, list[tuple[float, float]]] = {}
    for enabled in (True, False):
        with penstock(throttle__enabled=enabled, **mix.settings) as target:
            top = capacity(target, mix, 4.0 * scale)
            series = stepped(target, mix, top, seconds).all()
        title = "on" if enabled else "off"
        for number, factor in enumerate(FACTORS):
            part = series.between(number * seconds, (number + 1) * seconds)
            good = part.good(LIMIT) / seconds / top
            latencies = part.latencies()
            late = 100.0 * sum(took > LIMIT for took in latencies) / max(1, len(latencies))
            times = [percentile(latencies, level) * 1e3 for level in (0.5, 0.99)]
            ages = [percentile(part.ages(), level) * 1e3 for level in (0.5, 0.99)]
            rows.append([title, factor, len(part), good, *times, late, *ages, outcomes(part)])
            if enabled:
                _check(result, mix, factor, good, times[1], late, ages)
        over = recovery(series, 5 * seconds, 6 * seconds)
        result.notes.append(f"{mix.name}, throttle {title}: {top:.0f}/s; recovered {over:.1f} s after 10x")
        if enabled:
            result.checks.append(Check(f"A9 {mix.name}: seconds to recover after 10x", over, 1.0))
        curves[title] = _curve(series, seconds, top)
    result.tables[f"{mix.name}: steps of {seconds:g} s, C is the capacity"] = rows
    _plot(RESULTS / f"overload-{mix.name}.svg", mix.name, curves, seconds)


def _check(result: Result, mix: Mix, factor: float, good: float, p99: float, late: float, ages: list[float]) -> None:
    promised = dict(zip((2.0, 5.0, 10.0), mix.must, strict=True))
    row = "A14" if mix.name == "skewed" else "A1"
    if factor in promised:
        result.checks.append(Check(f"{row} {mix.name}: goodput at {factor:g}x", good, promised[factor], at_least=True))
        result.checks.append(Check(f"A2 {mix.name}: p99 of the accepted at {factor:g}x, ms", p99, LIMIT * 1e3))
    if factor == 10.0:
        result.checks.append(Check(f"A3 {mix.name}: late answers at 10x, %", late, 1.0))
        result.checks.append(Check(f"A8 {mix.name}: p50 of a refusal's age at 10x, ms", ages[0], 0.02 * LIMIT * 1e3))
        result.checks.append(Check(f"A8 {mix.name}: p99 of a refusal's age at 10x, ms", ages[1], 0.6 * LIMIT * 1e3))


def outcomes(series: Series) -> str:
    """What was not answered 2xx, the most frequent first."""
    return ", ".join(f"{count} {name}" for name, count in series.outcomes().most_common() if name[0] != "2") or "-"


def _curve(series: Series, seconds: float, top: float) -> list[tuple[float, float]]:
    """Goodput over capacity, every quarter of a second."""
    step = 0.25
    counts: Counter[int] = Counter()
    fine = {code for code, name in enumerate(series.names) if name[0] == "2"}
    for due, took, outcome in zip(series.due, series.took, series.outcome, strict=True):
        counts[int(due / step)] += outcome in fine and took <= LIMIT
    return [(slot * step, counts[slot] / step / top) for slot in range(int(seconds * len(FACTORS) / step))]


def _plot(path: Path, name: str, curves: dict[str, list[tuple[float, float]]], seconds: float) -> None:
    """An SVG of goodput over time; the steps are marked."""
    width, height, left, bottom = 720, 300, 50, 40
    span, most = seconds * len(FACTORS), 1.3

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
    for number, factor in enumerate(FACTORS):
        x, _ = point(number * seconds, 0.0).split(",")
        parts.append(f'<line x1="{x}" y1="25" x2="{x}" y2="{height - bottom}" stroke="#eee"/>')
        parts.append(f'<text x="{float(x) + 4:.1f}" y="{height - bottom + 18}">{factor:g}x</text>')
    for title, style in (("on", 'stroke="#0a6"'), ("off", 'stroke="#c30" stroke-dasharray="4 3"')):
        points = " ".join(point(at, value) for at, value in curves.get(title, []))
        parts.append(f'<polyline fill="none" stroke-width="2" {style} points="{points}"/>')
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>\n"]))
