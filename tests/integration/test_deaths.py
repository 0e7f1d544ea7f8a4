"""Workers die; requests fare as promised."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.fix_daemon import Daemon, DaemonFactory, eventually
from tests.fix_processes import family, gone


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    return daemons(
        "basic", settings={"supervision.start_seconds": 0.1, "pools.default.concurrency": 4, "pools.default.threads": 2}
    )


@pytest.fixture(autouse=True)
def all_there(daemon: Daemon) -> None:
    daemon.wait_workers(2)


def test_a_call_that_had_begun_and_is_not_idempotent_is_502(daemon: Daemon, tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    future = daemon.begin("mark_and_wait", {"path": str(mark), "seconds": 20})
    eventually(mark.exists, "the call has begun")
    victim = next(worker for worker in daemon.workers() if worker["in_flight"])
    os.kill(victim["pid"], signal.SIGKILL)
    reply = future.result()
    assert (reply.status, reply.problem) == (502, "worker-died")
    assert reply.json["worker"] == victim["name"]
    assert reply.json["agent"] == "mark_and_wait"
    eventually(lambda: daemon.worker(victim["name"])["pid"] not in (victim["pid"], None, 0), "there is a new worker")


def test_an_idempotent_call_is_tried_again(daemon: Daemon) -> None:
    future = daemon.begin("wait_again", {"seconds": 1.0})
    eventually(lambda: daemon.in_flight() == 1, "the call runs")
    victim = next(worker for worker in daemon.workers() if worker["in_flight"])
    os.kill(victim["pid"], signal.SIGKILL)
    reply = future.result()
    assert reply.status == 200
    assert reply.json["pid"] != victim["pid"]


def test_calls_that_had_not_begun_go_to_another_worker(daemon: Daemon) -> None:
    """Sync calls beyond the threads wait in the supervisor; none of them is lost with the worker."""
    futures = [daemon.begin("spin", {"seconds": 0.5}) for _ in range(4)]
    eventually(lambda: daemon.in_flight() == 4, "all threads compute")
    more = [daemon.begin("spin", {"seconds": 0.01}) for _ in range(6)]
    victim = daemon.workers()[0]
    os.kill(victim["pid"], signal.SIGKILL)
    assert [future.result().status for future in [*futures, *more]] == [200] * 10


def test_an_agent_that_ends_its_process_is_502_and_others_are_served(daemon: Daemon) -> None:
    reply = daemon.call("die")
    assert (reply.status, reply.problem) == (502, "worker-died")
    assert reply.json["worker"] in {worker["name"] for worker in daemon.workers()}
    assert daemon.call("echo", 1).json == 1


def test_a_request_that_kills_two_workers_is_poison(daemon: Daemon) -> None:
    reply = daemon.call("die_again")
    assert (reply.status, reply.problem) == (422, "poison-request")
    assert reply.json["worker"] in {worker["name"] for worker in daemon.workers()}
    daemon.wait_workers(2)


def test_no_worker_outlives_its_supervisor(fresh: DaemonFactory) -> None:
    daemon = fresh("basic")
    daemon.wait_workers(2)
    everything = family(daemon.pid)
    assert len(everything) >= 3
    os.kill(daemon.pid, signal.SIGKILL)
    eventually(lambda: gone(everything), "all are gone")


def test_workers_that_cannot_start_end_fatal_and_calls_are_unavailable(fresh: DaemonFactory) -> None:
    daemon = fresh.prepare("broken_module", settings={"supervision.start_retries": 1})
    daemon.start()

    def fatal() -> bool:
        try:
            return {worker["state"] for worker in daemon.workers()} == {"FATAL"}
        except OSError:
            return False

    eventually(fatal, "all workers are FATAL")
    assert daemon.get("/readyz").status == 503
    assert daemon.get("/livez").status == 200
    assert daemon.call("echo", 1).problem == "unavailable"
    assert "broken_module" in daemon.log
    assert daemon.stop() == 0


def test_a_broken_module_beside_a_sound_one_takes_nothing_down(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", "broken_module")
    assert daemon.call("echo", 1).status == 200
    assert "broken_module" in daemon.log
