"""What the service manager is told, on a real datagram socket, by a path and by an abstract name."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fix_daemon import PATIENCE, DaemonFactory, eventually


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.setblocking(False)

    def listen(self) -> list[dict[str, str]]:
        """All messages so far, each as its assignments."""
        while True:
            try:
                message = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in message.splitlines()))

    def has(self, **wanted: str) -> bool:
        return any(wanted.items() <= message.items() for message in self.listen())

    def wait(self, **wanted: str) -> None:
        eventually(lambda: self.has(**wanted), f"{wanted} is heard")

    def forget(self) -> None:
        self.listen()
        self.heard.clear()

    def status(self) -> str:
        """The newest."""
        return next((message["STATUS"] for message in reversed(self.listen()) if "STATUS" in message), "")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


def test_an_abstract_name_will_do(fresh: DaemonFactory) -> None:
    manager = Manager(f"@penstock-test-{os.getpid()}")
    fresh("basic", environment={"NOTIFY_SOCKET": manager.address})
    manager.wait(READY="1")
    manager.close()


def test_a_whole_life(manager: Manager, fresh: DaemonFactory) -> None:
    daemon = fresh.prepare("basic", environment={"NOTIFY_SOCKET": manager.address})
    daemon.start()
    manager.wait(READY="1")
    assert daemon.get("/readyz").status == 200
    assert re.fullmatch(r"ready; [12] of 2 workers run, 0 calls in flight, 0 of 1024 requests wait", manager.status())
    before = [message for message in manager.heard if "READY" not in message]
    assert any("STATUS" in message and message["STATUS"].startswith("starting") for message in before)
    assert any(int(message.get("EXTEND_TIMEOUT_USEC", 0)) == 30_000_000 for message in before)
    # How it fares, while it runs.
    calls = [daemon.begin("alone", {"seconds": 1.1}) for _ in range(3)]
    eventually(lambda: "2 calls in flight, 1 of 1024 requests wait" in manager.status(), "the queue is shown")
    # A reload, and one that fails.
    manager.forget()
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    daemon.send(signal.SIGHUP)
    manager.wait(RELOADING="1")
    assert int(next(each for each in manager.heard if "RELOADING" in each)["MONOTONIC_USEC"]) >= now
    manager.wait(READY="1")
    # The end.
    manager.forget()
    daemon.send(signal.SIGTERM)
    manager.wait(STOPPING="1")
    assert [call.result().status for call in calls] == [200] * 3
    assert daemon.process is not None
    assert daemon.process.wait(PATIENCE) == 0
    assert not manager.has(READY="1")
    assert all(int(each["EXTEND_TIMEOUT_USEC"]) > 30e6 for each in manager.heard if "EXTEND_TIMEOUT_USEC" in each)


def test_a_start_without_hope_asks_for_no_more_time(manager: Manager, fresh: DaemonFactory) -> None:
    settings = {"supervision.start_retries": 0}
    daemon = fresh.prepare(
        "lost_module_of_that_name", settings=settings, environment={"NOTIFY_SOCKET": manager.address}
    )
    daemon.start()
    eventually(lambda: "FATAL" in daemon.log and daemon.log.count("is given up") == 2, "the workers are given up")
    eventually(lambda: "0 of 2 workers run" in manager.status(), "that is said")
    manager.forget()
    until = time.monotonic() + 1.2
    eventually(lambda: time.monotonic() > until, "it would have asked once or twice")
    assert daemon.get("/healthz").status == 200
    assert not any("EXTEND_TIMEOUT_USEC" in message or "READY" in message for message in manager.listen())


def test_the_watchdog_is_fed_only_while_the_loop_turns(manager: Manager, fresh: DaemonFactory) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "300000"}
    daemon = fresh("basic", environment=environment)

    def fed() -> int:
        return sum("WATCHDOG" in message for message in manager.listen())

    manager.forget()
    begun = time.monotonic()
    eventually(lambda: fed() >= 5, "it is fed")
    assert time.monotonic() - begun < 5 * 0.3
    daemon.send(signal.SIGSTOP)
    manager.forget()
    until = time.monotonic() + 0.7
    eventually(lambda: time.monotonic() > until, "the daemon is stopped for a while")
    assert fed() <= 1
    daemon.send(signal.SIGCONT)
    eventually(lambda: fed() >= 3, "it is fed again")


def test_the_watchdog_of_another_process_is_not_fed(manager: Manager, fresh: DaemonFactory) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    fresh("basic", environment=environment)
    manager.wait(READY="1")
    until = time.monotonic() + 0.3
    eventually(lambda: time.monotonic() > until, "time for three")
    assert not any("WATCHDOG" in message for message in manager.listen())


def test_workers_do_not_speak_for_the_daemon(manager: Manager, fresh: DaemonFactory, tmp_path: Path) -> None:
    (tmp_path / "environs.py").write_text(
        "import os\nfrom penstock.workers import agent\n@agent\nasync def variables(body=None): return dict(os.environ)\n"
    )
    names = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "900000000", "LISTEN_FDS": "1", "LISTEN_PID": "1"}
    daemon = fresh("environs", environment={**names, "PYTHONPATH": str(tmp_path), "MINE": "yes"})
    seen = daemon.call("variables").json
    assert seen["MINE"] == "yes"
    assert not names.keys() & seen.keys()


def test_nobody_there_costs_a_warning(fresh: DaemonFactory, tmp_path: Path) -> None:
    daemon = fresh("basic", environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    eventually(lambda: "the service manager can no longer be notified" in daemon.log, "it is said")
    assert daemon.call("echo", 1).status == 200
