"""What each constant of the throttle is for: the policy with one of them switched off at a time, where it shows.

A constant that makes no difference anywhere has no business in the policy. ``policies.py --without`` prints this table.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final

from bench.policies import START, Gathering, Treatment, after, either, figures, refused_by_rank, scenarios, spin, treat
from bench.simulated import Crowd, Machine
from bench.simulator import Simulation
from penstock.daemon.core import backlog, comebacks, scheduler, shares, throttle

Figure = Callable[[], float]


@dataclass(frozen=True)
class Constant:
    """A constant, and a figure of a run that it changes."""

    module: ModuleType
    name: str
    off: float
    what: str
    figure: Figure


def _scenario(name: str, what: str, *steps: tuple[float, float]) -> Figure:
    def figure() -> float:
        found = {each.name: each for each in scenarios()}[name]
        chosen = (
            replace(found, steps=[(seconds, factor * found.capacity) for seconds, factor in steps]) if steps else found
        )
        return float(figures(chosen, True, 7)[what])

    return figure


def _crowd(gathering: Gathering, what: Callable[[Treatment], float]) -> Figure:
    return lambda: what(treat(gathering))


def _steady(size: int, **more: Any) -> Gathering:
    return Gathering(str(size), (Crowd(size, spin, START, START + 6, **more),), START + 2, START + 6)


def _refused(urgency: int) -> Figure:
    """Of one of three urgencies at twice the capacity together, %."""
    return lambda: 100.0 * refused_by_rank()[urgency]


def _drawing() -> float:
    crowd = Gathering("either", (Crowd(64, either, START, START + 6),), START + 2, START + 6)
    return 100.0 * treat(crowd).refused


def _slow() -> float:
    """Refused of a few more clients than there are slots, of an agent that takes twice the objective by itself."""

    def slow(rng: random.Random) -> tuple[str, float, float]:
        return "slow", 0.001, 1.0

    crowd = Gathering("slow", (Crowd(80, slow, START, START + 8),), START + 2, START + 8)
    return 100.0 * treat(crowd, sync=False).refused


def _few() -> float:
    """Refused of ten clients of an agent that waits for 190 ms, on four slots: the last is answered after half a second."""

    def middling(rng: random.Random) -> tuple[str, float, float]:
        return "middling", 0.001, 0.19

    simulation = Simulation(Machine(workers=1, slots=4), seed=1)
    simulation.join(Crowd(10, middling, START, START + 8))
    endings = [each for each in simulation.run(()) if each.arrival.at > START + 2]
    return 100.0 * sum(bool(each.problem) for each in endings) / len(endings)


def _throttled() -> float:
    """Of equal clients in an overload: told that it is they who ask for too much."""
    simulation = Simulation(sync=True, seed=1)
    simulation.join(Crowd(256, spin, START, START + 6, names=256))
    kinds = Counter(each.problem for each in simulation.run(()) if each.problem)
    return 100.0 * kinds["throttled"] / kinds.total()


def _late(name: str, *steps: tuple[float, float]) -> Figure:
    return _scenario(name, "late", *steps)


OVER: Final = ((1.0, 0.5), (1.5, 2.0), (1.5, 10.0), (1.5, 0.5))


def constants() -> list[Constant]:
    """All that can be switched off. Those that only bound memory, or say how often something is done, are not here."""
    hundred = 100.0
    return [
        Constant(throttle, "FITS", 0.1, "refused of a crowd of 64, %", _crowd(_steady(64), lambda t: hundred * t.refused)),
        Constant(throttle, "EXPIRED", 1e9, "late of 50 ms calls under overload, %", _late("heavy", *OVER)),
        Constant(throttle, "WAITS", -1.0, "goodput of computing and waiting calls at 2x", _scenario("mixed", "good 1", *OVER)),
        Constant(scheduler, "PASSING", 1e9, "refused of 64 who draw 1 or 20 ms anew, %", _drawing),
        Constant(throttle, "LONG", 1e9, "refused of 80 with calls of 1 s for 64 slots, %", _slow),
        Constant(throttle, "FEW", 0, "refused of ten with calls of 190 ms for 4 slots, %", _few),
        Constant(throttle, "SLOW", 1e9, "p99 of what waits in a brownout, ms", _scenario("15x slower for 4 s", "age99")),
        Constant(throttle, "IN_TIME", 1e9, "late of clumps under capacity, %", _late("clumps", (6.0, 0.6))),
        Constant(scheduler, "FLOOR", 0.0, "refused of the last of three ranks, %", _refused(6)),
        Constant(throttle, "REST", 1e-9, "refused of the last of three ranks, %", _refused(6)),
        Constant(throttle, "OVERTAKEN", 1.0, "refused of the middle one of three ranks, %", _refused(3)),
        Constant(throttle, "INSIDE", 1.0, "Jain between 512 addresses", _crowd(_steady(512, names=512), lambda t: t.jain)),
        Constant(throttle, "PACE_MEMORY", 0.05, "refused of normal urgency in clumps, %", _scenario("clumps", "refN", (6.0, 0.6))),
        Constant(throttle, "CROWDED", 1e9, "obedient clients let in at the next try, %", _scenario("burst, obeyed", "obeyed")),
        Constant(comebacks, "STEADY", 1, "obedient clients let in at the next try, %", _scenario("burst, obeyed", "obeyed")),
        Constant(comebacks, "AT_ONCE", 1e9, "p99 of a burst whose refused obey, ms", _scenario("burst, obeyed", "p99")),
        Constant(comebacks, "PACED", 1e9, "refusing to 256, % of a processor", _crowd(_steady(256), lambda t: hundred * t.refusing)),
        Constant(comebacks, "LONGEST", 1e9, "seconds to the last refusal, 64 after 2000", _crowd(after(64, 2000), lambda t: t.last)),
        Constant(comebacks, "TURNS", 1, "p50 under overload of many, ms", _scenario("computing", "p50", *OVER)),
        Constant(comebacks, "LEFT", 10, "seconds to the last refusal, 64 after 2000", _crowd(after(64, 2000), lambda t: t.last)),
        Constant(shares, "SLACK", 1.0, "refused of the first urgency, cold at 5x, %", _scenario("cold at 5x, computing", "refH", (3.0, 5.0))),
        Constant(shares, "GREEDY", 0.0, "equal clients told that it is they, %", _throttled),
        Constant(shares, "MEMORY", 0.1, "refused of the first of three ranks, %", _refused(1)),
    ]  # fmt: skip


def rows(progress: Callable[[], None]) -> list[list[Any]]:
    """The table."""
    found: list[list[Any]] = [["constant", "is", "off", "figure", "with it", "without"]]
    for each in constants():
        kept = getattr(each.module, each.name)
        with_it = each.figure()
        setattr(each.module, each.name, each.off)
        # A constant that is taken over from another module has to be set there as well.
        copies = [
            module
            for module in (backlog, throttle, scheduler)
            if module is not each.module and hasattr(module, each.name)
        ]
        for module in copies:
            setattr(module, each.name, each.off)
        try:
            without = each.figure()
        finally:
            for module in (each.module, *copies):
                setattr(module, each.name, kept)
        found.append([each.name, kept, each.off, each.what, round(with_it, 3), round(without, 3)])
        progress()
    return found
