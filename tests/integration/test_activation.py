"""Sockets that systemd hands over, by its own ``systemd-socket-activate`` and by hand for what that cannot do."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fix_control import UnixConnection
from tests.fix_daemon import AGENTS, PATIENCE, Daemon, DaemonFactory, eventually

ACTIVATE = shutil.which("systemd-socket-activate")
BY_HAND = """
import fcntl, os, sys
given = [int(each) for each in sys.argv[1].split(",")]
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=sys.argv[2])
for number, copy in enumerate([fcntl.fcntl(each, fcntl.F_DUPFD, 100) for each in given]):
    os.dup2(copy, 3 + number)
    os.close(copy)
os.execv(sys.executable, [sys.executable, "-m", "penstock.daemon", *sys.argv[3:]])
"""
"""Makes itself a process as systemd starts it."""


class Handed(Daemon):
    """A daemon that is started with sockets."""

    sockets: list[socket.socket]
    names: str

    def command(self) -> list[str]:
        descriptors = ",".join(str(each.fileno()) for each in self.sockets)
        return [sys.executable, "-c", BY_HAND, descriptors, self.names, *super().command()[3:]]

    def start(self) -> None:
        with self.log_path.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                cwd=AGENTS,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PENSTOCK_CONFIG": os.devnull, **self.environment},
                pass_fds=[each.fileno() for each in self.sockets],
                start_new_session=True,
            )


def listening(family: socket.AddressFamily = socket.AF_INET, path: str = "") -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(path if path else ("127.0.0.1", 0))
    listener.listen(64)
    return listener


@pytest.fixture
def handed(tmp_path: Path) -> Iterator[list[Handed]]:
    made: list[Handed] = []
    yield made
    for daemon in made:
        daemon.end()
        for listener in daemon.sockets:
            listener.close()


def prepare(handed: list[Handed], tmp_path: Path, names: str, *sockets: socket.socket, **settings: object) -> Handed:
    chosen = {
        "pools.default.workers": 1,
        "database.dsn": "off",
        **{k.replace("__", "."): v for k, v in settings.items()},
    }
    daemon = Handed(tmp_path / f"state{len(handed)}", [f"{key}={value}" for key, value in chosen.items()], ["basic"])
    daemon.sockets = list(sockets)
    daemon.names = names
    handed.append(daemon)
    return daemon


@pytest.mark.skipif(ACTIVATE is None, reason="systemd-socket-activate is not on this host")
def test_it_starts_with_the_first_client(fresh: DaemonFactory) -> None:
    daemon = fresh.prepare("basic", settings={"pools.default.workers": 1})
    path = daemon.state.parent / "http.sock"
    command = [str(ACTIVATE), "-l", str(path), "--fdname=http", *_environment(), *daemon.command()]
    with daemon.log_path.open("ab") as output:
        daemon.process = subprocess.Popen(command, cwd=AGENTS, stdout=output, stderr=output, start_new_session=True)
    eventually(lambda: "Listening on" in daemon.log, "the socket is there")
    # The client waits for the daemon, which waits for its worker.
    connection = UnixConnection(path)
    connection.request("POST", "/v1/agents/echo", b"1")
    assert connection.getresponse().status == 200
    connection.close()
    assert daemon.listeners().http == [f"unix:{path}"], "and nowhere else"
    eventually(lambda: f"listening on unix:{path}\n" in daemon.log, "it says so")
    assert daemon.log.count("listening on ") == 1


def _environment() -> list[str]:
    """It passes nothing on that it is not told to."""
    return [f"--setenv={name}" for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ]


def test_a_restart_refuses_no_connection_and_fails_no_request(handed: list[Handed], tmp_path: Path) -> None:
    listener = listening()
    daemon = prepare(handed, tmp_path, "http", listener)
    daemon.port = listener.getsockname()[1]
    daemon.start()
    daemon.wait_ready()
    done = threading.Event()
    statuses: list[int] = []
    lock = threading.Lock()

    def hammer(keep: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
        while not done.is_set():
            status = 0
            while not status:
                try:
                    connection.request("POST", "/v1/agents/wait", b'{"seconds": 0.02}')
                    response = connection.getresponse()
                    response.read()
                    status = response.status
                except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                    # The end of a connection that was idle: the request was not taken, and every client tries again.
                    assert keep
                    connection.close()
            if not keep:
                connection.close()
            with lock:
                statuses.append(status)
        connection.close()

    threads = [threading.Thread(target=hammer, args=(number % 2 == 0,)) for number in range(6)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(statuses) > 30, "calls are answered")
        assert daemon.stop() == 0
        stopped = len(statuses)
        assert statuses[:stopped] == [200] * stopped
        daemon.start()
        daemon.wait_ready()
        eventually(lambda: len(statuses) > stopped + 60, "calls are answered again")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}


def test_clients_do_not_wait_for_workers_that_do_not_come(handed: list[Handed], tmp_path: Path) -> None:
    listener = listening()
    daemon = prepare(handed, tmp_path, "http", listener, supervision__start_retries=0)
    daemon.agents = ["lost_module_of_that_name"]
    daemon.port = listener.getsockname()[1]
    daemon.start()
    reply = daemon.call("echo", 1)
    assert (reply.status, reply.problem) == (503, "unavailable")
    assert daemon.stop() == 0


def test_several_sockets_and_one_for_admins(handed: list[Handed], tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    first, unix, admin = listening(), listening(socket.AF_UNIX, path), listening()
    daemon = prepare(handed, tmp_path, "http:http:admin", first, unix, admin)
    daemon.port = first.getsockname()[1]
    daemon.start()
    daemon.wait_ready()
    assert daemon.get("/v1/workers").problem == "not-found"
    connection = UnixConnection(Path(path))
    connection.request("POST", "/v1/agents/about", b"null")
    assert b'"client":"unix"' in connection.getresponse().read()
    connection.close()
    daemon.port = admin.getsockname()[1]
    assert daemon.get("/v1/workers").status == 200
    assert daemon.call("echo", 1).status == 200
    assert daemon.stop() == 0
    # They are somebody else's: nothing of them is gone.
    assert os.path.exists(path)


def test_sockets_for_another_process_are_not_taken(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", environment={"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "http"})
    assert daemon.call("echo", 1).status == 200


def test_what_does_not_listen_is_refused(handed: list[Handed], tmp_path: Path) -> None:
    deaf = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    deaf.bind(("127.0.0.1", 0))
    daemon = prepare(handed, tmp_path, "http", deaf)
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(PATIENCE) == 1
    assert "descriptor 3 that was handed over is not a listening stream socket" in daemon.log
