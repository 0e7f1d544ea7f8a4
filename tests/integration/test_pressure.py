"""What is seen of the host's processors: by real processes that compute."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.daemon.engine import pressure as pressure_module
from penstock.daemon.engine.pressure import _TICKS, LEAST, Pressure, idle_ticks
from penstock.daemon.host.cgroups import Groups, processors
from tests.fix_daemon import eventually


@pytest.fixture
def busy() -> Iterator[int]:
    """The pid of a process that computes, as do children of it, one on each processor that is ours."""
    program = (
        f"import os\nfor _ in range({len(os.sched_getaffinity(0)) - 1}):\n    if not os.fork(): break\nwhile True: pass"
    )
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


class Container:
    """A control group with a quota, on a host that is idle otherwise: what it is told that it used so far, at a rate."""

    def __init__(self, root: Path, quota: float, monkeypatch: pytest.MonkeyPatch) -> None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text("0::/\n")
        (root / "proc/self/mountinfo").write_text("29 23 0:26 / /cgroup rw - cgroup2 cgroup2 rw\n")
        (root / "cgroup").mkdir()
        (root / "cgroup/cpu.max").write_text(f"{int(quota * 100_000)} 100000\n")
        self._statistics = root / "cgroup/cpu.stat"
        self._begun = time.monotonic()
        count = len(os.sched_getaffinity(0))
        monkeypatch.setattr(pressure_module, "idle_ticks", lambda _: (int(time.monotonic() * _TICKS * count), count))
        self.pressure = Pressure(Groups(root))

    def look(self, rate: float) -> Pressure:
        now = time.monotonic()
        self._statistics.write_text(f"usage_usec {int(1e6 * rate * (now - self._begun))}\n")
        self.pressure.sample([], now)
        return self.pressure


def test_what_shares_the_quota_is_taken_off_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor, the database, other programs in the container."""
    quota = 0.9
    container = Container(tmp_path, quota, monkeypatch)
    assert container.look(0.5).left(quota) <= quota
    eventually(lambda: container.look(0.5).left(quota) <= 0.5, "what others in the group use is taken off")
    assert container.pressure.left(quota) >= LEAST * quota


def test_a_group_at_its_quota_is_short_of_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However idle the host is."""
    container = Container(tmp_path, 0.5, monkeypatch)
    ends = time.monotonic() + 0.3
    eventually(lambda: container.look(0.1).host_pressed(time.monotonic()) or time.monotonic() > ends, "some looks")
    assert not container.pressure.host_pressed(time.monotonic())
    eventually(lambda: container.look(0.5).host_pressed(time.monotonic()), "the group uses all of its quota")
