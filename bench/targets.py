"""What is measured: a daemon with the bench agents, and the servers that it is compared with; each in processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from penstock.daemon.host import listeners

ROOT = Path(__file__).parents[1]

AIOHTTP = """
import asyncio, json, sys, uvloop
from aiohttp import web

async def main(kind, port):
    if kind == "app":
        async def echo(request):
            return web.json_response(await request.json())
        app = web.Application()
        app.router.add_post("/v1/agents/echo", echo)
        runner = web.AppRunner(app, access_log=None)
    else:
        async def answer(request):
            body = json.dumps(json.loads(await request.read() or b"null"))
            return web.Response(body=body.encode(), content_type="application/json")
        runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()

uvloop.run(main(sys.argv[1], int(sys.argv[2])))
"""
"""The same echo, decoded and encoded, as aiohttp's ``web.Application`` does it, and as its low-level ``web.Server`` does."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Target:
    """A running server."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def cpu(self) -> float:
        """CPU seconds so far of all its processes together, those included that have ended and were waited for."""
        root = psutil.Process(self.process.pid)
        total = 0.0
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def own_cpu(self) -> float:
        """CPU seconds so far of its first process alone: of the daemon, the supervisor."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def read(self, path: str) -> bytes:
        """What is at a path."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
            return bytes(response.read())

    def get(self, path: str) -> Any:
        """JSON from a path."""
        return json.loads(self.read(path))

    def workers(self) -> list[dict[str, Any]]:
        """The daemon's workers."""
        return list(self.get("/v1/workers")["workers"])

    def call(self, agent: str, value: Any) -> Any:
        """The result of one call of an agent. Raises HTTPError if it is refused or fails."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/agents/{agent}",
            json.dumps(value).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


def _wait_for(port: int, path: str, process: subprocess.Popen[bytes], patience: float = 60.0) -> None:
    """Wait until the path is answered with anything but 503."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5):
                return
        except urllib.error.HTTPError as error:
            if error.code != 503:
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise RuntimeError(f"the server was not ready within {patience:g} s")


def _chosen(port: Callable[[], int], process: subprocess.Popen[bytes], patience: float = 60.0) -> int:
    """The port that the system chose for the server, once it is known."""
    until = time.monotonic() + patience
    while not (found := port()):
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the server does not listen (status {process.poll()})")
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def _running(
    name: str, command: list[str], port: int | Callable[[], int], path: str, directory: str
) -> Iterator[Target]:
    """The server, ready. ``port``: where it listens, or what says so once it does (0: not yet). What it prints is shown if it does not come up. A SIGTERM to us ends it, too."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    log = Path(directory) / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={**os.environ, "PENSTOCK_CONFIG": os.devnull},
            start_new_session=True,
        )
    try:
        try:
            port = _chosen(port, process) if callable(port) else port
            _wait_for(port, path, process)
        except RuntimeError as error:
            raise RuntimeError(f"{name}: {error}\n{log.read_text(errors='replace')[-4000:]}") from None
        yield Target(name, port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port_of(state: Path) -> int:
    found = listeners.find(state)
    return int(found.http[0].rpartition(":")[2]) if found is not None else 0


@contextlib.contextmanager
def penstock(*modules: str, program: Sequence[str] = ("-m", "penstock.daemon"), **settings: Any) -> Iterator[Target]:
    """A daemon with these agent modules (the bench agents if none), ready with all its workers, its state in a folder
    that goes with it.

    ``program``: what the interpreter runs. ``settings``: ``pools__default__workers=4``. The database is off unless ``database__dsn`` says otherwise.
    """
    chosen = {"database__dsn": "off", "log__level": "warning", **settings}
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as directory:
        command = [sys.executable, *program, "serve", "--bind", "127.0.0.1:0"]
        command += ["--agents", *(modules or ("bench.agents",)), "--set", f"supervision.state_dir={directory}/state"]
        for key, value in chosen.items():
            literal = value if isinstance(value, str) else json.dumps(value)
            command += ["--set", f"{key.replace('__', '.')}={literal}"]
        state = Path(directory, "state")
        with _running("penstock", command, lambda: _port_of(state), "/readyz", directory) as target:
            until = time.monotonic() + 30.0
            while any(each["state"] != "RUNNING" for each in target.workers()):
                if time.monotonic() > until:
                    log = Path(directory, "log").read_text(errors="replace")[-4000:]
                    raise RuntimeError(f"not all workers run: {target.workers()}\n{log}")
                time.sleep(0.02)
            yield target


@contextlib.contextmanager
def aiohttp(kind: Literal["app", "server"]) -> Iterator[Target]:
    """``app``: echo on aiohttp's Application; ``server``: on its low-level Server. Both on uvloop, one process."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as directory:
        command = [sys.executable, "-c", AIOHTTP, kind, str(port)]
        with _running(f"aiohttp {kind}", command, port, "/", directory) as target:
            yield target
