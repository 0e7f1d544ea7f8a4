"""What is read of processes and of the host, on this process and on files with the kernel's own text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from penstock.daemon.fleet.journal import KEPT as EVENTS
from penstock.daemon.fleet.journal import Journal
from penstock.daemon.telemetry.monitor import KEPT, Entry, History, Sampler, open_files, pressure
from penstock.daemon.telemetry.traffic import Summary

QUIET = Summary(0.0, 0.0, 0.0, None, None, None)


def test_a_process_is_measured_and_one_that_is_gone_is_left_out() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    sampler = Sampler()
    first, _ = sampler.look([os.getpid(), gone.pid])
    assert set(first) == {os.getpid()}
    one = first[os.getpid()]
    assert (one.cpu, one.voluntary, one.involuntary) == (None, None, None), "there is no interval yet"
    before = psutil.Process().cpu_times()
    while psutil.Process().cpu_times().user < before.user + 0.05:
        pass
    second, host = sampler.look([os.getpid()])
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


def test_open_files_are_counted_on_old_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    process = psutil.Process()
    before = open_files(process)
    assert process.num_fds() - before in (0, 1), "psutil's own look at the directory may be one more"
    with open(os.devnull), open(os.devnull):
        assert open_files(process) == before + 2
    # Before Linux 6.2 the size of the directory was zero.
    monkeypatch.setattr("penstock.daemon.telemetry.monitor.os.stat", lambda path: SimpleNamespace(st_size=0))
    assert open_files(process) == process.num_fds()


def test_the_files_of_a_process_that_is_gone_are_not_counted() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(gone.pid)
    gone.wait()
    with pytest.raises(psutil.NoSuchProcess):
        open_files(process)


def test_the_kernels_pressure_is_read_and_its_lack_is_not_zero(tmp_path: Path) -> None:
    line = "{} avg10={} avg60=0.22 avg300=0.05 total=123456\n"
    (tmp_path / "cpu").write_text(line.format("some", "1.25"))
    for name in ("memory", "io"):
        (tmp_path / name).write_text(line.format("some", "2.50") + line.format("full", "0.75"))
    both = {"some": 2.5, "full": 0.75}
    assert pressure(tmp_path) == {"cpu": {"some": 1.25, "full": None}, "memory": both, "io": both}
    (tmp_path / "io").unlink()
    assert pressure(tmp_path) is None
    assert pressure(tmp_path / "nowhere") is None


def test_the_history_is_bounded_and_can_be_read_from_a_time_on() -> None:
    history = History()
    for at in range(KEPT + 50):
        history.add(Entry(float(at), QUIET, at, 0, None, 0.5))
    whole = history.since(0.0)
    assert len(whole["at"]) == KEPT
    assert {len(column) for name, column in whole.items() if name != "step"} == {KEPT}
    cut = history.since(float(KEPT + 47))
    assert cut["at"] == [KEPT + 48.0, KEPT + 49.0]
    assert cut["queue"] == [KEPT + 48, KEPT + 49]
    assert history.since(1e9)["at"] == []


def test_events_are_bounded_and_each_can_be_read_once() -> None:
    journal = Journal()
    for number in range(EVENTS + 20):
        journal.add("reload", f"{number}")
    events = journal.since(0.0)
    assert len(events) == EVENTS
    assert events[-1]["text"] == f"{EVENTS + 19}"
    times = [event["at"] for event in events]
    assert times == sorted(set(times)), "no two have the same time"
    assert [event["text"] for event in journal.since(times[-2])] == [f"{EVENTS + 19}"]


def test_restarts_are_counted_by_reason_and_those_of_a_reload_fill_no_journal() -> None:
    journal = Journal()
    for reason in ("died", "died", "reload", "max_rss", "deadline"):
        journal.restarted("default:0", reason, reason)
    assert journal.restarts == {
        ("default:0", "died"): 2,
        ("default:0", "reload"): 1,
        ("default:0", "max_rss"): 1,
        ("default:0", "deadline"): 1,
    }
    assert [event["kind"] for event in journal.since(0.0)] == ["death", "death", "recycle"]
