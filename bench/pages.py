"""What open dashboards cost the supervisor: its CPU time with five readers of the event stream, and without.

Twice: on a daemon with nothing else to do, and on one that serves a few calls, where the events have more to tell; few,
since what the calls cost wanders by more than what is looked for. Both states of a pair are measured in turn. The
kernel's scheduler statistics are read, for CPU times in ``/proc/PID/stat`` are whole hundredths of a second.
"""

from __future__ import annotations

import contextlib
import http.client
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.measuring import Check, Result, command, load
from bench.spec import Kind, Population
from bench.targets import Target, penstock

PAGES: Final = 5
MOST: Final = 1.0
"""Percent of one core."""
ROUNDS: Final = 3
RATE: Final = 100.0


def measure(scale: float) -> Result:
    """CPU of the supervisor in percent of one core."""
    rows: list[list[Any]] = [["", "without, %", f"with {PAGES} pages, %", "difference, %", "(min-max)", "KiB an event"]]
    result = Result("pages", {f"{PAGES} open dashboards, CPU of the supervisor in percent of a core": rows})
    seconds = 10.0 * scale
    with penstock() as target:
        for what, rate in (("idle", 0.0), (f"{RATE:g} echo/s", RATE)):
            pairs = [_pair(target, rate, seconds) for _ in range(ROUNDS)]
            differences = [open_ - closed for closed, open_, _ in pairs]
            closed, open_, size = (statistics.median(column) for column in zip(*pairs, strict=True))
            span = f"{min(differences):.2f}-{max(differences):.2f}"
            rows.append([what, closed, open_, statistics.median(differences), span, size / 1024])
            result.checks.append(Check(f"{PAGES} pages, {what}, % of a core", statistics.median(differences), MOST))
    return result


def _pair(target: Target, rate: float, seconds: float) -> tuple[float, float, float]:
    """Percent without pages and with them, and the mean size of an event in bytes."""
    closed = _cpu(target, rate, seconds)
    with _pages(target.port) as sizes:
        open_ = _cpu(target, rate, seconds)
    return closed, open_, statistics.mean(sizes)


def _cpu(target: Target, rate: float, seconds: float) -> float:
    before = _ran(target.process.pid)
    begun = time.monotonic()
    if rate:
        load(target, [Population("calls", [Kind("echo")], rate=rate, even=True)], seconds)
    else:
        time.sleep(seconds)
    return (_ran(target.process.pid) - before) / (time.monotonic() - begun) * 100


def _ran(pid: int) -> float:
    """Seconds for which the threads of a process have run, those left out that have ended."""
    return sum(int(each.read_text().split()[0]) for each in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


@contextlib.contextmanager
def _pages(port: int) -> Iterator[list[int]]:
    """Readers that take every event; the sizes of what came after each one's first."""
    sizes: list[int] = []
    over = threading.Event()
    threads = [threading.Thread(target=follow, args=(port, sizes, over)) for _ in range(PAGES)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1.5)
        yield sizes
    finally:
        over.set()
        for thread in threads:
            thread.join()


def follow(port: int, sizes: list[int], over: threading.Event) -> None:
    """Take every event until it is over; the size of each but the first is noted."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/v1/events")
    response = connection.getresponse()
    events = 0
    while not over.is_set():
        line = response.readline()
        if line.startswith(b"data: "):
            events += 1
            if events > 1:
                sizes.append(len(line))
    connection.close()


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
