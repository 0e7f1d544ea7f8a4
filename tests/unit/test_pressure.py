"""What is seen of the host's processors: by real processes that compute."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from penstock.daemon.pressure import LEAST, Pressure, idle_ticks, processors
from tests.fix_daemon import eventually


@pytest.fixture
def busy() -> Iterator[int]:
    """The pid of a process that computes, as do children of it, one on each processor that is ours."""
    program = f"import os\nfor _ in range({processors() - 1}):\n    if not os.fork(): break\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_what_others_use_is_not_left(busy: int) -> None:
    pressure = Pressure()

    def left() -> float:
        pressure.sample([], time.monotonic())
        return pressure.left(processors())

    eventually(lambda: left() <= 0.5 * processors(), "most is used by others")
    assert left() >= LEAST * processors(), "a part is always counted on"


def test_what_workers_use_is_not_taken_for_the_use_of_others(busy: int) -> None:
    """The same use is that of others in one look, and in the other partly that of a worker."""
    strangers, workers = Pressure(), Pressure()

    def looked() -> bool:
        strangers.sample([], time.monotonic())
        workers.sample([busy], time.monotonic())
        return workers.rate(busy) > 0.0 and workers._others < strangers._others - 0.05

    eventually(looked, "the worker's part is taken off")


def test_only_the_processors_that_are_ours_count() -> None:
    everyone = set(range(os.cpu_count() or 1))
    total, count = idle_ticks(everyone)
    assert count == len(everyone)
    one, single = idle_ticks({min(os.sched_getaffinity(0))})
    assert single == 1
    assert one <= total + 1 or count == 1
    assert idle_ticks({10**6})[1] == len(everyone), "what the kernel does not know is not counted"
