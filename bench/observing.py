"""What it costs that everything is counted and looked at: a daemon as it is beside one that does neither.

No setting switches that off, so the other daemon is started by a program of this benchmark that takes the observer and
the monitor out. Two of each kind run at the same time, and are started anew several times, since two processes of the
very same program already differ by some percent, by where things come to lie in memory. They are loaded in turns: one
kind, the other twice, the first again, so that what the machine does meanwhile meets both alike. A ratio is taken within such a round, and the medians of
the rounds are shown. While an observed one is loaded somebody reads its metrics and its status once a second. The load
is the smallest request there is, as fast as it goes: nothing else is done for it that the counting could hide behind.
"""

from __future__ import annotations

import statistics
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from measuring import Check, Result, closed, command
from targets import Target, penstock

CLIENTS: Final = 64
DRAWS: Final = 6
"""Times that all four are started anew."""
ROUNDS: Final = 2
"""With each four."""
MOST: Final = 0.03
"""The promise: the part of the throughput, and of a request's CPU time, that it may cost."""

UNOBSERVED: Final = """
import sys
from penstock.daemon import __main__, run

def observe(self, fleet):
    self._snapshot.fleet = fleet

run.Daemon._observe = observe
sys.exit(__main__.main())
"""


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    rate: float
    cpu: float
    """Microseconds a request, of all processes."""
    own: float
    """Of these, the supervisor's."""


def measure(scale: float) -> Result:
    """Rounds of four runs."""
    bare = ("-c", UNOBSERVED)
    rounds = []
    for _ in range(DRAWS):
        with penstock() as one, penstock(program=bare) as two, penstock(program=bare) as three, penstock() as four:
            for target in (one, two, three, four):
                closed(target, "echo", "{}", CLIENTS, 1.0)
            for number in range(ROUNDS):
                observed, plain = ((one, four), (two, three)) if number % 2 else ((four, one), (three, two))
                rounds.append(_round(observed, plain, 1.0 * scale))
            _prove(one, two)
            _prove(four, three)
    return _result(rounds)


def _round(observed: tuple[Target, Target], plain: tuple[Target, Target], seconds: float) -> tuple[Cost, Cost]:
    with _reader(observed[0]):
        first = _run(observed[0], seconds)
    other = _mean(_run(plain[0], seconds), _run(plain[1], seconds))
    with _reader(observed[1]):
        return _mean(first, _run(observed[1], seconds)), other


def _mean(one: Cost, other: Cost) -> Cost:
    return Cost((one.rate + other.rate) / 2, (one.cpu + other.cpu) / 2, (one.own + other.own) / 2)


def _run(target: Target, seconds: float) -> Cost:
    before, own = target.cpu(), target.own_cpu()
    series = closed(target, "echo", "{}", CLIENTS, seconds).all()
    answers = len(series.latencies())
    if answers != len(series):
        raise RuntimeError(f"{target.name} did not answer all: {series.outcomes()}")
    return Cost(answers / seconds, (target.cpu() - before) / answers * 1e6, (target.own_cpu() - own) / answers * 1e6)


@contextmanager
def _reader(target: Target) -> Iterator[None]:
    """Somebody who looks once a second."""
    done = threading.Event()

    def read() -> None:
        while True:
            target.get("/v1/status")
            with urllib.request.urlopen(f"http://127.0.0.1:{target.port}/metrics", timeout=10) as response:
                response.read()
            if done.wait(1.0):
                return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _prove(observed: Target, plain: Target) -> None:
    """That the one has counted what it was asked, and the other nothing."""
    for target, expected in ((observed, True), (plain, False)):
        if bool(target.get("/v1/status")["history"]["at"]) is not expected:
            raise RuntimeError(f"{target.port} does not do what it was started for")


def _result(rounds: list[tuple[Cost, Cost]]) -> Result:
    rows: list[list[Any]] = [["", "observed", "plain", "ratio", "(min-max)"]]
    result = Result("observing", {f"echo, {CLIENTS} clients, {len(rounds)} rounds": rows})
    medians: dict[str, float] = {}
    for name, field in (("answers /s", "rate"), ("CPU µs a request", "cpu"), ("supervisor's µs", "own")):
        values = [(getattr(one, field), getattr(other, field)) for one, other in rounds]
        ratios = [one / other for one, other in values]
        medians[field] = statistics.median(ratios)
        columns = [round(statistics.median(column), 1) for column in zip(*values, strict=True)]
        rows.append([name, *columns, f"{medians[field]:.3f}", f"{min(ratios):.3f}-{max(ratios):.3f}"])
    result.checks = [
        Check("throughput that it costs", 1.0 - medians["rate"], MOST),
        Check("CPU of a request that it costs", medians["cpu"] - 1.0, MOST),
    ]
    return result


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
