"""``/v1/status`` and ``/v1/workers`` of a real daemon: what is measured, and that it is so."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil
import pytest

from tests.fix_daemon import Daemon, DaemonFactory, eventually


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons("basic", "heavy", settings={"supervision.start_seconds": 0.1})
    made.wait_workers(2)
    return made


def measured(daemon: Daemon) -> list[dict[str, Any]]:
    """The workers once each has been looked at twice."""

    def complete() -> list[dict[str, Any]]:
        workers = daemon.workers()
        return workers if all(worker["cpu"] is not None for worker in workers) else []

    return eventually(complete, "all workers are measured")


def agent(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in status["agents"] if each["name"] == name)


def test_workers_show_what_they_use(daemon: Daemon) -> None:
    for worker in measured(daemon):
        process = psutil.Process(worker["pid"])
        real = process.memory_info().rss
        assert 0.5 * real < worker["rss"] < 2 * real
        assert 0 < worker["uss"] < worker["rss"]
        assert worker["threads"] >= 1
        assert abs(worker["fds"] - process.num_fds()) < 20
        assert worker["switches"]["voluntary"] > 0, "its loop beats ten times a second"
        assert 0 <= worker["turned"] < 5
        assert worker["loop_lag"] >= 0
        assert worker["oldest"] == 0
        assert worker["database"] == {}
        one = daemon.worker(worker["name"])
        assert set(one) == set(worker)
        assert one["pid"] == worker["pid"]


def test_a_worker_that_computes_shows_it_and_the_age_of_its_call(daemon: Daemon) -> None:
    call = daemon.begin("spin", 3.0)

    def busy() -> dict[str, Any] | None:
        return next((each for each in daemon.workers() if (each["cpu"] or 0) > 0.2 and each["oldest"] > 0.5), None)

    worker = eventually(busy, "one worker computes")
    assert worker["in_flight"] == 1
    assert worker["cpu"] < 2.0
    status = daemon.status()
    assert agent(status, "spin")["in_flight"] == 1
    assert call.result().status == 200


def test_a_loop_that_is_held_up_is_seen(daemon: Daemon) -> None:
    call = daemon.begin("block", 1.5)
    late = eventually(lambda: [w for w in daemon.workers() if w["turned"] > 0.6], "a loop does not turn")
    assert late[0]["loop_lag"] > 0.4
    assert call.result().status == 200


def test_rates_and_latencies_by_agent_and_worker(daemon: Daemon) -> None:
    daemon.calls("wait_again", [0.05] * 40, at_once=4)

    def seen() -> dict[str, Any] | None:
        status = daemon.status()
        return status if agent(status, "wait_again")["rate"] * 10 > 30 else None

    status = eventually(seen, "the calls are in the window")
    found = agent(status, "wait_again")
    assert 0.05 <= found["p50"] <= found["p95"] <= found["p99"] < 5
    assert found["kind"] == "async"
    assert found["pool"] == "default"
    assert 0.045 < found["wall"] < 1
    assert found["cpu"] < found["wall"]
    assert status["traffic"]["rate"] > 1
    assert status["traffic"]["p50"] > 0.0
    by_worker = [worker["agents"].get("wait_again") for worker in status["workers"]]
    assert sum(each["rate"] for each in by_worker if each) > 1
    assert all(each["p95"] > 0.04 for each in by_worker if each)
    assert agent(status, "about")["p50"] is None, "it was never called"
    assert agent(status, "about")["wall"] is None


def test_failures_are_seen_by_agent(daemon: Daemon) -> None:
    daemon.calls("fail", list(range(10)))
    status = eventually(
        lambda: status if agent(status := daemon.status(), "fail")["errors"] > 0 else None, "failures are seen"
    )
    assert status["traffic"]["failed"] > 0
    assert agent(status, "fail")["rate"] == 0


def test_workers_give_way_to_the_supervisor_on_the_processors(daemon: Daemon) -> None:
    own = psutil.Process(daemon.pid).nice()
    workers = daemon.wait_workers(2)
    assert {psutil.Process(worker["pid"]).nice() for worker in workers} == {min(19, own + 5)}


def test_the_host_and_the_supervisor_are_measured(daemon: Daemon) -> None:

    def looked_at() -> dict[str, Any] | None:
        status = daemon.status()
        looked = [(status[part] or {}).get(key) for part, key in (("host", "cpu"), ("supervisor", "cpu"))]
        return None if None in looked else status

    status = eventually(looked_at, "the host was looked at twice")
    host, supervisor = status["host"], status["supervisor"]
    assert host["cpus"] == psutil.cpu_count()
    assert 0 <= host["cpu"] <= 1
    assert 0 < host["memory"]["available"] <= host["memory"]["total"]
    assert len(host["load"]) == 3
    if os.path.exists("/proc/pressure/cpu"):
        assert host["pressure"]["memory"]["full"] >= 0
        assert host["pressure"]["cpu"]["some"] >= 0
    assert supervisor["pid"] == status["pid"] == daemon.pid
    assert 0 < supervisor["uss"] < supervisor["rss"]
    assert supervisor["threads"] >= 2
    assert supervisor["cpu"] >= 0
    assert 0 <= supervisor["loop_lag"] < 10
    assert abs(status["at"] - time.time()) < 10


def test_the_history_grows_a_step_a_second(daemon: Daemon) -> None:
    def steps() -> dict[str, Any] | None:
        history: dict[str, Any] = daemon.status()["history"]
        return history if len(history["at"]) > 4 else None

    history = eventually(steps, "some seconds have passed")
    gaps = [after - before for before, after in zip(history["at"], history["at"][1:], strict=False)]
    assert 0.8 < sum(gaps) / len(gaps) < 3
    columns = {"rate", "refused", "failed", "p50", "p95", "p99", "queue", "in_flight", "limit", "cpu"}
    assert set(history) == {"step", "at", *columns}
    assert {len(history[name]) for name in columns} == {len(history["at"])}


def test_events_tell_of_deaths_restarts_timeouts_and_reloads(daemon: Daemon) -> None:
    def kinds(worker: str = "") -> list[str]:
        return [event["kind"] for event in daemon.status()["events"] if worker in ("", event["worker"])]

    assert kinds().count("started") == 2
    os.kill(daemon.worker("default:0")["pid"], signal.SIGKILL)
    eventually(lambda: "death" in kinds("default:0"), "the death is told")
    daemon.wait_workers(2)
    daemon.request("POST", "/v1/workers/default:1/restart")
    eventually(lambda: "restart" in kinds("default:1"), "the restart is told")
    assert daemon.request("POST", "/v1/reload").status == 202
    eventually(lambda: "reload" in kinds(), "the reload is told")
    daemon.begin("stubborn", 10, {"Request-Timeout": "0.2"})
    eventually(lambda: "timeout" in kinds(), "the timeout is told")
    events = daemon.status()["events"]
    timeout = next(event for event in events if event["kind"] == "timeout")
    assert timeout["agent"] == "stubborn"
    assert timeout["worker"].startswith("default:")
    death = next(event for event in events if event["kind"] == "death")
    assert "killed by SIGKILL" in death["text"]
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
