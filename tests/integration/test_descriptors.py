"""A daemon that is given too few descriptors: the first three are closed, or the limit is low."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from penstock.daemon.host.descriptors import CHANGES, EACH_WORKER, FEWEST, OWN
from tests.fix_daemon import PATIENCE, Daemon, DaemonFactory, eventually

CLOSED = [(0,), (1,), (2,), (0, 1, 2)]


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_a_standard_descriptor_that_is_closed_is_dev_null(fresh: DaemonFactory, closed: tuple[int, ...]) -> None:
    """Whatever is closed, nothing else gets its number: neither the lock, nor the log, nor a socket."""
    daemon = fresh("basic", closed=" ".join(f"{each}>&-" for each in closed))
    for each in closed:
        assert os.readlink(f"/proc/{daemon.pid}/fd/{each}") == "/dev/null"
        for child in psutil.Process(daemon.pid).children():
            assert os.readlink(f"/proc/{child.pid}/fd/{each}") == "/dev/null", "the forkserver has it as well"
    assert daemon.call("echo", 1).json == 1
    assert (daemon.state / "penstock.lock").read_text() == f"{daemon.pid}\n", "nothing is written into the lock"
    assert daemon.stop(signal.SIGTERM) == 0
    assert "stopped" in (daemon.state / "log" / "penstock.log").read_text()


def connect(daemon: Daemon, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", daemon.port), PATIENCE) for _ in range(count)]


def answered(connection: socket.socket) -> bool:
    """Whether a request on it gets 200; false where it was refused or closed."""
    try:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        return connection.recv(65536).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def test_a_limit_too_low_to_serve_is_one_line_that_says_what_would_do(fresh: DaemonFactory) -> None:
    for limit in (24, 64):
        daemon = fresh.prepare("basic", shell=f"ulimit -n {limit};")
        daemon.start()
        assert daemon.process is not None
        assert daemon.process.wait(PATIENCE) == 1
        assert daemon.log.count("\n") == 1
        assert f"the limit on open files is {limit}, and with 2 workers" in daemon.log


def test_with_what_is_said_to_do_everything_goes(fresh: DaemonFactory) -> None:
    """The promised connections, deaths, a reload and a look at a stack, all at once."""
    least = OWN + EACH_WORKER * 2 + CHANGES + FEWEST
    daemon = fresh("basic", shell=f"ulimit -n {least};", settings={"database.dsn": "", "http.header_timeout": 300})
    connections = connect(daemon, FEWEST // 2)
    assert all(answered(each) for each in connections)
    before = daemon.wait_workers(2)
    for worker in before:
        os.kill(worker["pid"], signal.SIGKILL)
    eventually(lambda: all(each["generation"] > 1 for each in daemon.workers()), "both are new")
    daemon.wait_workers(2)
    reload = daemon.request("POST", "/v1/reload")
    assert reload.status == 202, reload.body
    assert daemon.get("/v1/workers/default:0/stack").status == 200
    eventually(lambda: all(each["generation"] > 2 for each in daemon.workers()), "all are replaced")
    daemon.wait_workers(2)
    assert all(answered(each) for each in connections)
    assert "Too many open files" not in daemon.log
    for each in connections:
        each.close()


def test_with_a_limit_of_256_many_clients_are_let_in(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", shell="ulimit -n 256;")
    connections = connect(daemon, 100)
    assert all(answered(each) for each in connections)
    assert daemon.call("echo", 1).json == 1
    for each in connections:
        each.close()


def test_a_configuration_with_more_workers_than_the_limit_allows_is_not_taken(
    fresh: DaemonFactory, tmp_path: Path
) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text("")
    daemon = fresh(
        "basic", shell="ulimit -n 200;", environment={"PENSTOCK_CONFIG": str(file)}, settings={"agents.timeout": 5}
    )
    file.write_text("[pools.default]\nworkers = 2\n[pools.more]\nworkers = 100\n")
    reply = daemon.request("POST", "/v1/reload")
    assert reply.problem == "reload-failed"
    assert "with 102 workers" in reply.json["detail"]
    assert daemon.call("echo", 1).json == 1


def test_a_shortage_is_said_once_and_got_over(fresh: DaemonFactory) -> None:
    """The host takes descriptors away while the daemon runs."""
    daemon = fresh("basic")
    used = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    before = daemon.worker("default:0")["pid"]
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
    os.kill(before, signal.SIGKILL)
    tries = re.compile("could not be started|can be accepted|Too many open files|Traceback")
    eventually(lambda: "could not be started" in daemon.log, "the shortage is said")
    connections = connect(daemon, 60)
    eventually(lambda: "no connection can be accepted for now" in daemon.log, "and that of clients")
    lines = len(tries.findall(daemon.log))
    ends = time.monotonic() + 2.5
    eventually(lambda: time.monotonic() > ends, "it has tried again several times")
    assert len(tries.findall(daemon.log)) <= lines + 4, daemon.log
    assert "Traceback" not in daemon.log
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
    for each in connections:
        each.close()
    daemon.wait_workers(2)
    assert daemon.call("echo", 1).json == 1
