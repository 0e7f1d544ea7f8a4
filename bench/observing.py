"""What counting and monitoring cost at full load.

No setting switches that off, so this program switches them on and off in turn: the observer, the monitor and the
event stream run for a twentieth of a second, and do not for the next one. Both halves of such a pair are the very
same processes, and next to each other in time. That is needed: two daemons of the same program differ by up to ten
percent, by where things come to lie in memory, and the same daemon from one second to the next by as much; what is
looked for is less than three. Which half comes first is drawn at random, so that nothing else that happens regularly
meets one kind only. The load is the smallest request there is, as fast as it goes: nothing else is done for it that the
counting could hide behind.

What happens once a second happens once in twenty halves with observation. The monitor looks, a dashboard that is open
gets its event, and somebody reads the metrics and the status.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from bench.measuring import Check, Result, closed, command
from bench.pages import follow
from bench.targets import Target, penstock
from penstock.daemon import __main__, run
from penstock.daemon.cli import serve as command_line
from penstock.daemon.core.model import Worker
from penstock.daemon.engine.ports import Unobserved
from penstock.daemon.engine.tickets import Ticket
from penstock.daemon.telemetry.traffic import Traffic

CLIENTS: Final = 64
DAEMONS: Final = 3
"""Started one after another: what it costs may depend on where things lie, too."""
SECONDS: Final = 30.0
"""Of load on each of them."""
HALF: Final = 0.05
"""Seconds of half a pair."""
A_SECOND: Final = round(1.0 / HALF)
"""Halves."""
MOST: Final = 0.03
"""The promise: the part of the throughput, and of a request's CPU time, that it may cost."""


def sees(number: int) -> bool:
    """Whether the eye is open in the half of this number (of all since the machine's clock began)."""
    pair, second = divmod(number, 2)
    return (random.Random(pair).random() < 0.5) == bool(second)


# In the daemon


class Uncounted(Unobserved):
    """Nobody counts responses either."""

    def responded(self, agent: str, status: int) -> None:
        pass


class Eye:
    """An observer that opens and shuts. ``moments`` has when it did, whether it was open after that, and the CPU
    seconds before. Open, it is as the daemon's own: what it passes on are that one's methods.
    """

    responded: Callable[[str, int], None]
    answered: Callable[[Ticket, Worker, float], None]
    ended: Callable[[Ticket], None]
    expired: Callable[[str, str], None]
    waited: Callable[[float], None]
    streamed: Callable[[str, int], None]
    waited_for_reader: Callable[[str, float], None]
    nested: Callable[[str], None]
    batched: Callable[[str, int, float], None]

    def __init__(self, daemon: run.Supervisor, traffic: Traffic) -> None:
        self._loop = asyncio.get_running_loop()
        self._daemon = daemon
        self._open, self._shut = traffic, Uncounted()
        self._seen = 0
        self.moments: list[tuple[float, bool, float]] = []
        self._pass_to(traffic)
        self._loop.call_soon(self.blink)

    def _pass_to(self, observer: run.Counter) -> None:
        self.responded, self.answered, self.ended = observer.responded, observer.answered, observer.ended
        self.expired, self.waited = observer.expired, observer.waited
        self.streamed, self.waited_for_reader = observer.streamed, observer.waited_for_reader
        self.nested = observer.nested
        self.batched = observer.batched

    def blink(self) -> None:
        """At the end of each half."""
        cpu, now = time.process_time(), time.monotonic()
        number = round(now / HALF)
        self._loop.call_later((number + 1) * HALF - now, self.blink)
        for timer in (self._daemon._monitor._beat, self._daemon._front._events._timer):
            if timer is not None:
                timer.cancel()
        is_open = sees(number)
        self.moments.append((now, is_open, cpu))
        self._pass_to(self._open if is_open else self._shut)
        if is_open and self._daemon._reconfiguration.open:
            self._see(now)

    def _see(self, now: float) -> None:
        """What happens a few times a second, or once, of the time that it is open."""
        monitor, events = self._daemon._monitor, self._daemon._front._events
        self._seen += 1
        whole = self._seen % A_SECOND == 0
        if self._seen % 2 == 0:
            monitor._stepped = -math.inf if whole else now
            monitor._turn(now)
            if monitor._beat is not None:
                monitor._beat.cancel()
        if whole and events.readers:
            events._tick()
            if events._timer is not None:
                events._timer.cancel()

    def report(self) -> dict[str, Any]:
        """The moments, and how many requests and events it has seen."""
        counts = self._open.agents["echo"].responses.counts
        events = self._daemon._front._events._number
        return {"moments": self.moments, "requests": sum(counts), "events": events}


def serve(path: str, arguments: list[str]) -> int:
    """A daemon with such an eye; what it has seen is written to this file at its end."""
    eyes: list[Eye] = []

    def observe(daemon: run.Supervisor, traffic: Traffic) -> Eye:
        eyes.append(Eye(daemon, traffic))
        return eyes[0]

    status = command_line.run(__main__.parse(arguments), observe)
    Path(path).write_text(json.dumps(eyes[0].report()))
    return status


# Beside it


def measure(scale: float) -> Result:
    """Some daemons, one after another."""
    halves: list[list[Half]] = []
    cpu: list[float] = []
    for _ in range(DAEMONS):
        pairs, total = _run(SECONDS * scale)
        halves += pairs
        cpu.append(total)
    return _result(halves, statistics.mean(cpu))


class Half:
    """The answers of half a pair, and the CPU seconds that the supervisor took for them."""

    def __init__(self, answers: int, seconds: float, cpu: float) -> None:
        self.answers = answers
        self.rate = answers / seconds
        self.own = cpu / answers * 1e6
        """Microseconds of the supervisor's CPU time for one answer."""


def _run(seconds: float) -> tuple[list[list[Half]], float]:
    """Pairs (seeing, blind), and the microseconds of CPU time of all processes that a request takes."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as directory:
        path = Path(directory, "moments")
        program = (
            "-c",
            f"import sys; from bench import observing; sys.exit(observing.serve({str(path)!r}, sys.argv[1:]))",
        )
        with penstock(program=program) as target:
            warmth = len(closed(target, "echo", "{}", CLIENTS, 1.0).all())
            before = target.cpu()
            with _reader(target):
                report = closed(target, "echo", "{}", CLIENTS, seconds)
            cpu = target.cpu() - before
        seen = json.loads(path.read_text())
    series = report.all()
    if len(series.latencies()) != len(series):
        raise RuntimeError(f"not all were answered: {series.outcomes()}")
    if not 0.3 < seen["requests"] / (warmth + len(series)) < 0.7 or not seen["events"]:
        raise RuntimeError(f"counted were {seen['requests']} of {len(series)} requests, {seen['events']} events")
    ends = sorted(due + took + report.started for due, took in zip(series.due, series.took, strict=True))
    begin, end = report.started + HALF, report.started + seconds - HALF
    return list(_pairs(seen["moments"], ends, begin, end)), cpu / len(ends) * 1e6


def _pairs(moments: list[Any], ends: list[float], begin: float, end: float) -> Iterator[list[Half]]:
    found: dict[int, dict[bool, Half]] = {}
    for (at, is_open, cpu), (until, _, cpu_then) in pairwise(moments):
        if begin <= at and until <= end:
            answers = bisect.bisect(ends, until) - bisect.bisect(ends, at)
            half = Half(max(1, answers), until - at, cpu_then - cpu)
            found.setdefault(round(at / HALF) // 2, {})[is_open] = half
    return ([pair[True], pair[False]] for pair in found.values() if len(pair) == 2)


@contextlib.contextmanager
def _reader(target: Target) -> Iterator[None]:
    """Somebody with a dashboard, who also reads metrics and status once a second, while the eye is open."""
    over = threading.Event()
    failures: list[Exception] = []

    def read() -> None:
        seen = 0
        while not over.wait((math.floor(time.monotonic() / HALF) + 1) * HALF - time.monotonic()):
            seen += sees(math.floor(time.monotonic() / HALF))
            if seen == A_SECOND:
                seen = 0
                for path in ("/metrics", "/v1/status"):
                    target.read(path)

    def kept(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=kept, args=(work,)) for work in (partial(follow, target.port, [], over), read)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _result(pairs: list[list[Half]], total: float) -> Result:
    """``total``: microseconds of CPU time that a request takes of all processes."""
    rows: list[list[Any]] = [["", "observed", "plain", "ratio", "+-"]]
    result = Result("observing", {f"echo, {CLIENTS} clients, {len(pairs)} pairs of {HALF * 1e3:g} ms": rows})
    ratios = [math.log(one.rate / other.rate) for one, other in pairs]
    rate = math.exp(statistics.mean(ratios))
    error = statistics.stdev(ratios) / math.sqrt(len(ratios))
    rates = [round(statistics.mean(half.rate for half in column)) for column in zip(*pairs, strict=True)]
    rows.append(["answers /s", *rates, f"{rate:.4f}", f"{error:.4f}"])
    own = [
        sum(half.own * half.answers for half in column) / sum(half.answers for half in column)
        for column in zip(*pairs, strict=True)
    ]
    rows.append(["supervisor's µs a request", *(f"{each:.2f}" for each in own), f"{own[0] / own[1]:.4f}", ""])
    result.notes = [f"all processes together take {total:.1f} µs of CPU time for a request"]
    result.checks = [
        Check("throughput that it costs", 1.0 - rate, MOST),
        Check("CPU of a request that it costs", (own[0] - own[1]) / total, MOST),
    ]
    return result


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
