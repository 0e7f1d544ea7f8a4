"""A real daemon: ``penstock serve`` as a process of its own, with the agents of ``tests/agents``, called over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, AnyStr, TypeVar

import psutil
import pytest

from penstock.daemon.host import listeners
from tests.fix_processes import family

AGENTS = Path(__file__).parent / "agents"
PATIENCE = 30.0
"""Seconds that any single condition is waited for."""

PATIENT = {"Request-Timeout": "28"}
"""For calls that are to wait for as long as it takes, also where everything is slow."""

T = TypeVar("T")
_tick = threading.Event()


def eventually(condition: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T:
    """The condition's value as soon as it is true. Fails with ``what`` when patience is at its end."""
    ends = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > ends:
            pytest.fail(f"timed out after {patience:g} s, waiting until {what}; last seen: {value!r}")
        _tick.wait(0.02)


async def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait on the running loop until the condition is true. Fails with ``what`` when patience is at its end."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + patience
    while not condition():
        if loop.time() > ends:
            pytest.fail(f"timed out after {patience:g} s, waiting until {what}")
        await asyncio.sleep(0.005)


def line_of(process: subprocess.Popen[AnyStr], what: str, patience: float = PATIENCE) -> AnyStr:
    """The next line of a process's standard output. If none comes, the process is killed and this fails with ``what``."""
    assert process.stdout is not None
    return _read(process, process.stdout.readline, what, patience) or pytest.fail(f"its output ended before {what}")


def rest_of(process: subprocess.Popen[AnyStr], what: str, patience: float = PATIENCE) -> AnyStr:
    """Its standard output to the end. If that does not come, the process is killed and this fails with ``what``."""
    assert process.stdout is not None
    return _read(process, process.stdout.read, what, patience)


def _read(process: subprocess.Popen[AnyStr], read: Callable[[], AnyStr], what: str, patience: float) -> AnyStr:
    late = threading.Event()

    def kill() -> None:
        late.set()
        process.kill()

    killer = threading.Timer(patience, kill)
    killer.start()
    found = read()
    killer.cancel()
    killer.join()
    if late.is_set():
        pytest.fail(f"timed out after {patience:g} s, reading until {what}")
    return found


@dataclass
class Reply:
    """A response, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The NAME of the problem type; empty for other responses."""
        if self.headers.get_content_type() != "application/problem+json":
            return ""
        return str(self.json["type"]).removeprefix("urn:penstock:problem:")

    @property
    def timing(self) -> dict[str, float]:
        """The parts of ``Server-Timing``, in seconds."""
        parts = (part.split(";dur=") for part in self.headers.get("Server-Timing", "").split(", ") if part)
        return {name: float(milliseconds) / 1e3 for name, milliseconds in parts}


@dataclass
class Daemon:
    """One daemon and how to talk to it."""

    state: Path
    settings: list[str]
    agents: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    wanted: int = 0
    """The port that it is to listen on; 0: the system chooses. Nobody guesses: others choose at the same time."""
    directory: Path = AGENTS
    """Where it is started."""
    shell: str = ""
    """Commands of sh that come before it, such as ``ulimit -n 64;``."""
    closed: str = ""
    """Descriptors that it does not get, in the shell's words: ``0<&- 1>&-``."""
    process: subprocess.Popen[bytes] | None = None
    _port: int = 0

    @property
    def log_path(self) -> Path:
        return self.state.parent / f"{self.state.name}.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def port(self) -> int:
        """Where it listens, as soon as it does."""
        if not self._port:
            self._port = _port_of(self.listeners().http)
        return self._port

    @port.setter
    def port(self, port: int) -> None:
        self._port = port

    @property
    def admin_port(self) -> int:
        """Where its second listener is."""
        return _port_of(self.listeners().admin)

    def listeners(self) -> listeners.Listeners:
        found = eventually(lambda: self.runs() and listeners.find(self.state), "the daemon listens")
        assert isinstance(found, listeners.Listeners)
        return found

    def runs(self) -> bool:
        """True; if it has ended, the test fails here, with its log, instead of waiting for what cannot come."""
        assert self.process is not None, "it was never started"
        if self.process.poll() is not None:
            pytest.fail(f"the daemon ended with {self.process.returncode}:\n{self.log}")
        return True

    def command(self) -> list[str]:
        arguments = [sys.executable, "-m", "penstock.daemon", "serve", "--bind", f"127.0.0.1:{self.wanted}"]
        if self.agents:
            arguments += ["--agents", *self.agents]
        for setting in [f"supervision.state_dir={self.state}", *self.settings]:
            arguments += ["--set", setting]
        if self.shell or self.closed:
            return ["/bin/sh", "-c", f'{self.shell} exec "$@" {self.closed}', "sh", *arguments]
        return arguments

    def start(self) -> None:
        self._port = self.wanted
        with self.log_path.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PENSTOCK_CONFIG": os.devnull, **self.environment},
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        def ready() -> bool:
            self.runs()
            try:
                return self.get("/readyz").status == 200
            except OSError:
                return False

        try:
            eventually(ready, "the daemon is ready")
        except BaseException:
            print(self.log)
            raise

    def wait_workers(self, count: int) -> list[dict[str, Any]]:
        """Wait until so many workers run; all of them."""

        def running() -> list[dict[str, Any]]:
            workers = self.workers()
            return workers if sum(worker["state"] == "RUNNING" for worker in workers) >= count else []

        return eventually(running, f"{count} workers run")

    # Talking to it

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = PATIENCE,
    ) -> Reply:
        begun = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read(), time.monotonic() - begun)
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def call(self, agent: str, value: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Call an agent with a value as JSON, or with bytes as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.request("POST", f"/v1/agents/{agent}", body, headers)

    def calls(
        self, agent: str, values: list[Any], headers: dict[str, str] | None = None, at_once: int = 64
    ) -> list[Reply]:
        """Call an agent with each value, many at once; the replies in the order of the values."""
        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(lambda value: self.call(agent, value, headers), values))

    def begin(self, agent: str, value: Any = None, headers: dict[str, str] | None = None) -> Future[Reply]:
        """Call an agent from a thread of its own."""
        return _in_thread(lambda: self.call(agent, value, headers))

    def hold(self, agent: str, value: Any = None) -> http.client.HTTPConnection:
        """Call an agent whose call is to last until the connection is closed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", f"/v1/agents/{agent}", json.dumps(value).encode(), PATIENT)
        return connection

    def begin_get(self, path: str) -> Future[Reply]:
        """GET from a thread of its own."""
        return _in_thread(lambda: self.get(path))

    def begin_post(self, path: str) -> Future[Reply]:
        """POST nothing from a thread of its own."""
        return _in_thread(lambda: self.request("POST", path))

    def workers(self) -> list[dict[str, Any]]:
        return list(self.get("/v1/workers").json["workers"])

    def worker(self, name: str) -> dict[str, Any]:
        return dict(self.get(f"/v1/workers/{name}").json)

    def status(self) -> dict[str, Any]:
        return dict(self.get("/v1/status").json)

    def in_flight(self) -> int:
        return sum(int(worker["in_flight"]) for worker in self.workers())

    # Ending it

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop and wait; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """Stop it without draining, and make sure that nothing of it is left."""
        if self.process is not None and self.process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5.0)
        self.kill()

    def kill(self) -> None:
        """Make sure that nothing of it is left."""
        if self.process is None:
            return
        left: list[psutil.Process] = []
        if self.process.poll() is None:
            left = family(self.process.pid)
            self.process.kill()
        self.process.wait()
        for process in psutil.wait_procs(left, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _port_of(addresses: list[str]) -> int:
    assert len(addresses) == 1, addresses
    return int(addresses[0].rpartition(":")[2])


def _in_thread(ask: Callable[[], Reply]) -> Future[Reply]:
    future: Future[Reply] = Future()

    def work() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


class DaemonFactory:
    """Makes daemons and sees to it that none survives the test."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: list[Daemon] = []

    def prepare(self, *agents: str, settings: dict[str, Any] | None = None, **more: Any) -> Daemon:
        """A daemon that is not started yet. It has two workers and no database unless the settings say so."""
        chosen: dict[str, Any] = {"pools.default.workers": 2, "database.dsn": "off", **(settings or {})}
        state = self._directory / f"state{len(self._made)}"
        daemon = Daemon(state, [f"{key}={_literal(value)}" for key, value in chosen.items()], list(agents), **more)
        self._made.append(daemon)
        return daemon

    def __call__(self, *agents: str, settings: dict[str, Any] | None = None, **more: Any) -> Daemon:
        """A daemon that is ready."""
        daemon = self.prepare(*agents, settings=settings, **more)
        daemon.start()
        daemon.wait_ready()
        return daemon

    def close(self) -> None:
        for daemon in self._made:
            daemon.end()


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonFactory]:
    """A factory whose daemons live as long as the module."""
    factory = DaemonFactory(tmp_path_factory.mktemp("daemons"))
    yield factory
    factory.close()


@pytest.fixture
def at_rest(daemon: Daemon) -> Iterator[None]:
    """For a module with a ``daemon`` of two workers: after each test both run, and no call is left."""
    yield
    daemon.wait_workers(2)
    eventually(lambda: daemon.in_flight() == 0, "nothing is left running")


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[DaemonFactory]:
    """A factory whose daemons live as long as the test."""
    factory = DaemonFactory(tmp_path)
    yield factory
    factory.close()
