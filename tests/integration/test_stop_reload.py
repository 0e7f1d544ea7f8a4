"""Stop and reload: nothing accepted fails because of them."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from tests.fix_daemon import DaemonFactory, Reply, eventually

VERSIONED = """
import asyncio
from penstock.workers import agent

@agent
async def version(body=None):
    await asyncio.sleep(0.02)
    return {version}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_drains_what_was_accepted_and_refuses_the_rest(fresh: DaemonFactory, number: signal.Signals) -> None:
    daemon = fresh("basic")
    futures = [daemon.begin("alone", {"seconds": 0.5}) for _ in range(6)]
    eventually(lambda: daemon.status()["queue"]["requests"] == 4, "four wait for two")
    daemon.send(number)
    eventually(lambda: daemon.get("/readyz").status == 503, "the daemon says that it is draining")
    refused = daemon.call("echo", 1)
    assert (refused.status, refused.problem) == (503, "unavailable")
    assert refused.headers["Connection"] == "close"
    assert [future.result().status for future in futures] == [200] * 6
    assert daemon.stop() == 0


def test_what_the_stop_timeout_cuts_off_gets_a_problem(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", settings={"supervision.stop_timeout": 0.5})
    futures = [daemon.begin("alone", {"seconds": 25}) for _ in range(3)]
    eventually(lambda: daemon.in_flight() == 2, "two run")
    assert daemon.stop() == 0
    assert [future.result().problem for future in futures] == ["unavailable"] * 3
    workers = [future.result().json.get("worker") for future in futures]
    assert sorted(filter(None, workers)) == ["default:0", "default:1"], "the third has waited"


def test_a_second_signal_stops_at_once(fresh: DaemonFactory) -> None:
    daemon = fresh("basic")
    future = daemon.begin("wait", {"seconds": 25})
    eventually(lambda: daemon.in_flight() == 1, "it runs")
    daemon.send(signal.SIGTERM)
    eventually(lambda: daemon.get("/readyz").status == 503, "the daemon is draining")
    assert daemon.stop() == 0
    assert future.result().problem == "unavailable"


def test_a_reload_brings_new_code_without_a_failed_request(fresh: DaemonFactory, tmp_path: Path) -> None:
    module = tmp_path / "versioned.py"
    module.write_text(VERSIONED.replace("{version}", "1"))
    daemon = fresh("versioned", environment={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"})
    daemon.wait_workers(2)
    replies: list[Reply] = []
    done = threading.Event()

    def hammer() -> None:
        while not done.is_set():
            replies.append(daemon.call("version"))

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(replies) > 20, "calls are answered")
        module.write_text(VERSIONED.replace("{version}", "22"))
        assert daemon.request("POST", "/v1/reload").status == 202
        eventually(lambda: {reply.body for reply in replies[-20:]} == {b"22"}, "only new code answers")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert {reply.status for reply in replies} == {200}
    daemon.wait_workers(2)


def test_a_reload_with_broken_code_changes_nothing_and_says_why(fresh: DaemonFactory, tmp_path: Path) -> None:
    module = tmp_path / "versioned.py"
    module.write_text(VERSIONED.replace("{version}", "1"))
    daemon = fresh("versioned", environment={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"})
    workers = daemon.wait_workers(2)
    module.write_text("raise RuntimeError('no good')\n")
    reply = daemon.request("POST", "/v1/reload")
    assert (reply.status, reply.problem) == (409, "reload-failed")
    assert "versioned" in reply.json["detail"]
    assert [worker["pid"] for worker in daemon.workers()] == [worker["pid"] for worker in workers]
    assert daemon.call("version").json == 1
    module.write_text(VERSIONED.replace("{version}", "333"))
    daemon.send(signal.SIGHUP)
    eventually(lambda: daemon.call("version").json == 333, "the mended code serves")


def test_restarting_a_worker_replaces_it_without_a_failed_request(fresh: DaemonFactory) -> None:
    daemon = fresh("basic")
    daemon.wait_workers(2)
    before = daemon.worker("default:0")["pid"]
    future = daemon.begin("wait", {"seconds": 1.0})
    assert daemon.request("POST", "/v1/workers/default:0/restart").status == 202
    eventually(lambda: daemon.worker("default:0")["pid"] not in (before, 0), "there is a new process")
    assert daemon.call("echo", 1).status == 200
    assert future.result().status == 200
    assert daemon.request("POST", "/v1/workers/default:7/restart").problem == "unknown-worker"


def test_a_second_daemon_on_the_same_state_names_the_lock(fresh: DaemonFactory) -> None:
    daemon = fresh("basic")
    second = fresh.prepare("basic")
    second.state = daemon.state
    second.log_path.unlink()
    second.start()
    assert second.process is not None
    assert second.process.wait(20) == 1
    assert "penstock.lock" in second.log


def test_a_port_in_use_is_one_line_and_status_1(fresh: DaemonFactory) -> None:
    daemon = fresh("basic")
    second = fresh.prepare("basic", wanted=daemon.port)
    second.start()
    assert second.process is not None
    assert second.process.wait(20) == 1
    assert str(daemon.port) in second.log
    assert "Traceback" not in second.log


def test_a_pool_that_does_not_exist_is_a_configuration_error(fresh: DaemonFactory) -> None:
    daemon = fresh.prepare("lost")
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(20) == 78
    assert "nowhere" in daemon.log


def test_who_goes_on_asking_does_not_change_how_it_ends(fresh: DaemonFactory) -> None:
    daemon = fresh("basic")
    process = daemon.process
    assert process is not None

    def ended() -> bool:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            process.send_signal(number)
        return process.poll() is not None

    eventually(ended, "it has ended")
    assert process.returncode == 0
