"""Who is served when not all can be: clients of unequal demand, urgencies, and clients that come back when told to."""

from __future__ import annotations

from typing import Any, Final

from bench.measuring import Check, Result, load
from bench.series import jain, percentile
from bench.spec import Kind, Population
from bench.staircase import LIMIT, capacity, mixes, outcomes
from bench.targets import penstock

CLASSES: Final = {"high": "u=1", "normal": "u=3", "low": "u=6"}


def fairness(result: Result, scale: float) -> None:
    """Twenty polite clients, with 4 % of capacity each, beside one that asks for 9.6 times the capacity."""
    mix = mixes()[0]
    seconds = 8.0 * scale
    polite = [f"127.0.0.{number}" for number in range(10, 30)]
    rows: list[list[Any]] = [
        ["throttle", "beside", "polite good %", "polite p99 ms", "Jain", "greedy good/C", "greedy"]
    ]
    for enabled in (True, False):
        with penstock(throttle__enabled=enabled, **mix.settings) as target:
            top = capacity(target, mix, 3.0 * scale)
            small = Population("polite", mix.kinds, rate=0.8 * top, sources=polite, patience=5.0)
            greedy = Population("greedy", mix.kinds, rate=9.6 * top, sources=["127.0.0.99"], patience=5.0)
            alone = load(target, [small], seconds).only("polite/").between(1.0)
            beside = load(target, [small, greedy], seconds)
        title = "on" if enabled else "off"
        both = beside.only("polite/").between(1.0)
        other = beside.only("greedy/").between(1.0)
        share = 100.0 * both.good(LIMIT) / max(1, len(both))
        # Of what each asked for, at most its fair share counts: the greedy one is entitled to a 21st, and to what is left.
        goods = list(both.good_by_source(LIMIT).values())
        index = jain([*goods, min(other.good(LIMIT), max(goods, default=0))])
        p99s = [percentile(each.latencies(), 0.99) * 1e3 for each in (alone, both)]
        rows.append([title, "nobody", 100.0 * alone.good(LIMIT) / len(alone), p99s[0], "-", "-", "-"])
        greedy_share = other.good(LIMIT) / (seconds - 1.0) / top
        rows.append([title, "greedy", share, p99s[1], index, greedy_share, outcomes(other)])
        if enabled:
            result.checks.append(Check("A7 fairness: Jain's index", index, 0.95, at_least=True))
            result.checks.append(Check("A7 fairness: polite answered in time, %", share, 98.0, at_least=True))
            result.checks.append(Check("fairness: polite p99 beside greedy / alone", p99s[1] / p99s[0], 2.0))
    result.tables["20 polite clients beside a greedy one at 9.6x"] = rows


def priorities(result: Result, scale: float) -> None:
    """Three classes of equal size at twice the capacity together: who is refused, and how long the first class takes."""
    mix = mixes()[0]
    seconds = 8.0 * scale
    rows: list[list[Any]] = [["class", "sent", "refused %", "strict %", "p99 ms", "outcomes"]]
    with penstock(**mix.settings) as target:
        top = capacity(target, mix, 3.0 * scale)
        quiet = load(target, [Population("alone", mix.kinds, rate=0.3 * top)], 3.0 * scale).all()
        populations = [
            Population(name, [Kind("wait", "0.06", headers={"Priority": text})], rate=2.0 * top / 3.0, patience=5.0)
            for name, text in CLASSES.items()
        ]
        report = load(target, populations, seconds)
    left, worst = 1.0, 0.0
    for name in CLASSES:
        part = report.only(f"{name}/").between(1.0)
        served = min(left, 2.0 / 3.0)
        left -= served
        strict = 100.0 * (1.0 - served / (2.0 / 3.0))
        refused = 100.0 * (1.0 - len(part.latencies()) / max(1, len(part)))
        worst = max(worst, abs(refused - strict))
        p99 = percentile(part.latencies(), 0.99)
        rows.append([name, len(part), refused, strict, p99 * 1e3, outcomes(part)])
        if name == "high":
            alone = percentile(quiet.latencies(), 0.99)
            result.checks.append(Check("A4 priorities: p99 of the high class at 2x / alone", p99 / alone, 3.0))
            result.checks.append(Check("A5 priorities: refused of the high class at 2x, %", refused, 1.0))
    result.checks.append(Check("A6 priorities: points off strict priority, worst class", worst, 5.0))
    result.tables["three classes at 2x"] = rows


def obedience(result: Result, scale: float) -> None:
    """Clients that come back when Retry-After says, beside 1.5 times the capacity for a while."""
    mix = mixes()[0]
    seconds = 10.0 * scale
    with penstock(**mix.settings) as target:
        top = capacity(target, mix, 3.0 * scale)
        burst = [(3.0 * scale, 1.5 * top), (7.0 * scale, 0.5 * top)]
        report = load(target, [Population("obedient", mix.kinds, steps=burst, retries=3, patience=20.0)], seconds)
    series = report.all()
    back, admitted = series.comebacks()
    part = 100.0 * admitted / max(1, back)
    result.notes.append(f"obedient clients: {back} came back as Retry-After said, {admitted} ({part:.1f} %) got in")
    result.checks.append(Check("obedience: admitted at the next try, %", part, 95.0, at_least=True))
