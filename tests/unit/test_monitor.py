"""What is read of the kernel's own text, and what is kept of the past."""

from __future__ import annotations

from pathlib import Path

from penstock.daemon.fleet.journal import KEPT as EVENTS
from penstock.daemon.fleet.journal import Journal
from penstock.daemon.telemetry.monitor import KEPT, Entry, History, pressure
from penstock.daemon.telemetry.traffic import Summary

QUIET = Summary(0.0, 0.0, 0.0, None, None, None)


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
