"""What is read of processes and of the host, on this process and on some that are gone."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from penstock.daemon.telemetry.monitor import Sampler, open_files


def test_a_process_is_measured_and_one_that_is_gone_is_left_out() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    sampler = Sampler()
    first, _ = sampler.sample([os.getpid(), gone.pid])
    assert set(first) == {os.getpid()}
    one = first[os.getpid()]
    assert (one.cpu, one.voluntary, one.involuntary) == (None, None, None), "there is no interval yet"
    before = psutil.Process().cpu_times()
    while psutil.Process().cpu_times().user < before.user + 0.05:
        pass
    second, host = sampler.sample([os.getpid()])
    two = second[os.getpid()]
    assert two.cpu is not None
    assert 0.0 < two.cpu < 50.0
    assert two.voluntary is not None
    assert two.uss is not None
    assert 0 < two.uss <= two.rss < host.memory["total"]
    assert two.threads >= 1
    assert two.fds >= 3
    assert 0.0 <= host.cpu <= 1.0
    assert host.cpus == psutil.cpu_count()


COUNTED = """
import os
from types import SimpleNamespace

import psutil

from penstock.daemon.telemetry import monitor

process = psutil.Process()
before = monitor.open_files(process)
# psutil's own reading of the directory may be one more.
assert process.num_fds() - before in (0, 1), (process.num_fds(), before)
with open(os.devnull), open(os.devnull):
    assert monitor.open_files(process) == before + 2
# Before Linux 6.2 the size of the directory was zero.
monitor.os = SimpleNamespace(stat=lambda path: SimpleNamespace(st_size=0))
assert monitor.open_files(process) == process.num_fds()
"""


def test_open_files_are_counted_on_old_kernels_too() -> None:
    """In a process of its own: in this one, what other tests have left is closed at any moment."""
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_files_of_a_process_that_is_gone_are_not_counted() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(gone.pid)
    gone.wait()
    with pytest.raises(psutil.NoSuchProcess):
        open_files(process)
