"""What a worker started ends with it, whoever dies; what made a session of its own lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from penstock.daemon.host.guard import NAME
from tests.fix_daemon import Daemon, DaemonFactory, eventually
from tests.fix_processes import alive, family

SETTINGS = {"pools.default.workers": 1, "agents.hard_timeout_grace": 0.2, "supervision.stop_timeout": 1.0}


def forkserver(daemon: Daemon) -> psutil.Process:
    """The process that the workers are forked from."""
    return next(each for each in family(daemon.pid) if family(each.pid))


def guards() -> set[int]:
    """All guards of this host. (They are nobody's children.)"""
    return {each.pid for each in psutil.process_iter(["name"]) if each.info["name"] == NAME and alive(each.pid)}


def guard_of(daemon: Daemon) -> int:
    """It was forked from the daemon, and has its command line."""
    mine = psutil.Process(daemon.pid).cmdline()
    return next(pid for pid in guards() if psutil.Process(pid).cmdline() == mine)


@pytest.fixture
def daemon(fresh: DaemonFactory) -> Iterator[Daemon]:
    made = fresh("family", settings=SETTINGS)
    yield made
    made.end()


def kill_worker(daemon: Daemon) -> None:
    os.kill(daemon.worker("default:0")["pid"], signal.SIGKILL)


def kill_at_deadline(daemon: Daemon) -> None:
    assert daemon.call("hang").problem == "deadline-exceeded"


def restart_worker(daemon: Daemon) -> None:
    assert daemon.request("POST", "/v1/workers/default:0/restart").status == 202


def kill_supervisor(daemon: Daemon) -> None:
    os.kill(guard_of(daemon), signal.SIGTERM)  # which it does not hear
    daemon.send(signal.SIGKILL)


def kill_forkserver(daemon: Daemon) -> None:
    forkserver(daemon).kill()


def kill_supervisor_and_forkserver(daemon: Daemon) -> None:
    server = forkserver(daemon)
    daemon.send(signal.SIGKILL)
    server.kill()


def kill_every_process_of_the_daemon(daemon: Daemon) -> None:
    server = forkserver(daemon)
    workers = server.children()
    daemon.send(signal.SIGKILL)
    for each in (server, *workers):
        each.kill()


def kill_the_guard_and_the_worker(daemon: Daemon) -> None:
    os.kill(guard_of(daemon), signal.SIGKILL)
    kill_worker(daemon)


@pytest.mark.parametrize(
    "end",
    [
        kill_worker,
        kill_at_deadline,
        restart_worker,
        Daemon.stop,
        kill_supervisor,
        kill_forkserver,
        kill_supervisor_and_forkserver,
        kill_every_process_of_the_daemon,
        kill_the_guard_and_the_worker,
    ],
)
def test_what_a_worker_started_ends_with_it(daemon: Daemon, end: Callable[[Daemon], object]) -> None:
    born = daemon.call("bear", {}).json
    try:
        assert len(born["kept"]) == 3
        assert os.getpgid(born["pid"]) == born["pid"] != os.getpgid(daemon.pid)
        assert all(os.getpgid(pid) == born["pid"] for pid in born["kept"])
        end(daemon)
        eventually(lambda: not any(alive(pid) for pid in [born["pid"], *born["kept"]]), "its group has ended")
        assert alive(born["free"])
    finally:
        for pid in (born["free"], *born["kept"]):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_signals_of_an_agents_children_are_their_own(daemon: Daemon) -> None:
    pid = daemon.worker("default:0")["pid"]
    assert daemon.call("terminate").json == [-signal.SIGTERM, -signal.SIGINT]
    assert daemon.call("terminate").json == [-signal.SIGTERM, -signal.SIGINT]
    assert "was told to stop from outside" not in daemon.log
    assert daemon.worker("default:0")["pid"] == pid


def ended(pid: int) -> bool:
    return not alive(pid)


def test_the_guard_ends_after_the_daemon(fresh: DaemonFactory) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        daemon = fresh("family", settings=SETTINGS)
        pid = guard_of(daemon)
        daemon.send(number)
        eventually(partial(ended, pid), "it has ended")


def test_signals_of_the_terminal_are_the_supervisors(fresh: DaemonFactory) -> None:
    daemon = fresh("basic")
    future = daemon.begin("wait", {"seconds": 0.5})
    eventually(lambda: daemon.in_flight() == 1, "it runs")
    os.killpg(os.getpgid(daemon.pid), signal.SIGINT)
    assert daemon.process is not None
    assert daemon.process.wait(30) == 0
    assert future.result().status == 200


SERVED = """
from penstock.workers import serve

async def patient(body: float) -> float:
    import asyncio
    await asyncio.sleep(body)
    return body

raise SystemExit(serve({{"patient": patient}}, workers=1, bind="127.0.0.1:0", settings={settings}))
"""


@pytest.fixture
def served(fresh: DaemonFactory, tmp_path: Path) -> Iterator[tuple[Daemon, subprocess.Popen[bytes]]]:
    """A daemon that a program has started with ``serve``, and that program, which leads a process group."""
    daemon = fresh.prepare()
    settings = {"supervision.state_dir": str(daemon.state), "database.dsn": "off"}
    program = tmp_path / "program.py"
    program.write_text(SERVED.format(settings=settings))
    environment = {**os.environ, "PENSTOCK_CONFIG": os.devnull}
    with daemon.log_path.open("ab") as output:
        caller = subprocess.Popen(
            [sys.executable, program], stdout=output, stderr=output, env=environment, start_new_session=True
        )
    daemon.process = caller
    daemon.wait_ready()
    pid = daemon.status()["pid"]
    yield daemon, caller
    daemon.kill()
    if alive(pid):
        os.kill(pid, signal.SIGKILL)


def test_a_daemon_ends_with_the_program_that_serves(served: tuple[Daemon, subprocess.Popen[bytes]]) -> None:
    daemon, caller = served
    pid = daemon.status()["pid"]
    workers = [worker["pid"] for worker in daemon.workers()]
    caller.kill()
    caller.wait()
    eventually(lambda: not any(alive(each) for each in (pid, *workers)), "it has ended")
    assert "SIGTERM: draining" in daemon.log


def test_a_terminal_stops_a_program_that_serves_by_draining(served: tuple[Daemon, subprocess.Popen[bytes]]) -> None:
    daemon, caller = served
    future = daemon.begin("patient", 1.0)
    eventually(lambda: daemon.in_flight() == 1, "it runs")
    os.killpg(caller.pid, signal.SIGINT)
    assert future.result().json == 1.0
    assert caller.wait(30) == 0
