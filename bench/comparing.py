"""Two daemons side by side, the throttle on in one of them, and what a load on both is judged by."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench.crowding import Crowd, Phase, constant, play, quantile
from bench.measuring import Check, Result
from bench.targets import Target, penstock

OBJECTIVE: Final = 0.5
"""Seconds: the default of ``throttle.objective``."""
FITS: Final = 64
"""So many clients fit: 64 x 4.7 ms take two processors 150 ms."""
MOST_UNSERVED: Final = 0.1
LEAST_ANSWERED: Final = 0.95
MOST_REFUSING: Final = 10.0
HEADING: Final = (
    "load",
    "throttle",
    "answered/s",
    "refused/s",
    "not served %",
    "p50 ms",
    "p99 ms",
    "other",
    "supervisor CPU %",
    "us/refusal",
    "asking CPU %",
    "verdict",
)


@dataclass
class Pair:
    """Two daemons that differ in the throttle alone, and for how long each step is measured."""

    on: Target
    off: Target
    seconds: float
    rounds: int
    turn: int = 0

    @property
    def warm(self) -> float:
        """Seconds of a step that are not counted."""
        return min(1.0, self.seconds / 2)

    def measure(self, *crowds: Crowd) -> tuple[Phase, Phase]:
        """The same crowds on both, by turns; who comes first changes from turn to turn."""
        found: dict[bool, list[Phase]] = {True: [], False: []}
        for _ in range(self.rounds):
            self.turn += 1
            for enabled in (True, False) if self.turn % 2 else (False, True):
                found[enabled].append(self.one(enabled, *crowds))
        on, off = (sum(phases[1:], phases[0]) for phases in (found[True], found[False]))
        return on, off

    def one(self, enabled: bool, *crowds: Crowd) -> Phase:
        """One of the daemons alone, once."""
        target = self.on if enabled else self.off
        return play(target, [constant(crowd, 2) for crowd in crowds], [self.warm, self.seconds])[1]


@dataclass(frozen=True)
class Bench:
    """What all parts share: where their findings go, and how long a step takes."""

    result: Result
    seconds: float
    rounds: int

    @contextlib.contextmanager
    def pair(self, *modules: str, **settings: Any) -> Iterator[Pair]:
        """Both daemons, ready."""
        unlimited: dict[str, Any] = {
            "throttle__enabled": False,
            "queue__high_water": 100_000,
            "agents__timeout": 3600.0,
        }
        with penstock(*modules, **settings) as on, penstock(*modules, **settings, **unlimited) as off:
            yield Pair(on, off, self.seconds, self.rounds)

    def promise(self, label: str, checks: Sequence[Check]) -> str:
        """Keep the checks, and say in a word or two how they went."""
        self.result.checks += checks
        missed = [check.what.removesuffix(f": {label}") for check in checks if not check.kept]
        return f"MISSED: {', '.join(missed)}" if missed else "kept"


@dataclass
class Comparison:
    """A load with the throttle on and off, and what it is judged by."""

    label: str
    on: Phase
    off: Phase
    suffix: str = ""
    """What the checks say of it besides."""
    checks: list[Check] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the checks call it."""
        return self.label + self.suffix

    @property
    def refusing(self) -> float:
        """CPU seconds that the supervisor spent on refusing: beyond what as many answers take it without a throttle."""
        return self.on.supervisor - self.on.all.answers * self.off.supervisor / max(1, self.off.all.answers)

    @property
    def p99(self) -> float:
        """Of the accepted, in milliseconds; infinite if there were none."""
        found = quantile(self.on.all.answered, 0.99) * 1e3
        return math.inf if math.isnan(found) else found

    def must_fit(self, costs: Sequence[float] = ()) -> Comparison:
        """A crowd that fits: not refused, answered as without a throttle, in time. ``costs``: of each kind of request, where
        they are unequal, so that many short answers do not stand for a long one.
        """
        ratio = self.on.done(costs) / max(1e-9, self.off.done(costs))
        self.checks += [
            Check(f"C1 not served %: {self.name}", 100.0 * self.on.all.unserved, MOST_UNSERVED),
            Check(f"C1 answered/s over throttle off: {self.name}", ratio, LEAST_ANSWERED, at_least=True),
            Check(f"C1 p99 ms: {self.name}", self.p99, OBJECTIVE * 1e3),
        ]
        return self

    def must_hold(self, reference: float, part: float) -> Comparison:
        """A crowd that does not fit: so large a part of what the reference gets is answered, in time, and refusing is cheap."""
        refusing = 100.0 * self.refusing / self.on.seconds
        self.checks += [
            Check(f"C2 answered/s over those of {FITS}: {self.name}", self.on.rate / reference, part, at_least=True),
            Check(f"C2 p99 ms: {self.name}", self.p99, OBJECTIVE * 1e3),
            Check(f"C2 refusing, % of a core: {self.name}", refusing, MOST_REFUSING),
        ]
        return self

    def rows(self, bench: Bench) -> list[list[Any]]:
        """Two rows of a table; the checks are kept."""
        verdict = bench.promise(self.name, self.checks) if self.checks else "-"
        refusals = self.on.all.refusals
        each = round(1e6 * self.refusing / refusals, 1) if refusals >= 100 else "-"
        return [
            [self.label, "on", *figures(self.on), each, percent(self.on.asking, self.on), verdict],
            ["", "off", *figures(self.off), "-", percent(self.off.asking, self.off), ""],
        ]


def percent(cpu: float, phase: Phase) -> int:
    return round(100.0 * cpu / phase.seconds)


def figures(phase: Phase) -> list[Any]:
    """The cells from answered/s to supervisor %."""
    tally = phase.all
    p50, p99 = (quantile(tally.answered, part) * 1e3 for part in (0.5, 0.99))
    share = round(100.0 * tally.unserved, 2)
    return [round(phase.rate), round(phase.refusals), share, p50, p99, tally.others, percent(phase.supervisor, phase)]
