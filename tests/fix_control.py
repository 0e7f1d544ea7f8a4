"""The stock supervisorctl as a process, and XML-RPC over a Unix socket, for the tests of the control socket."""

from __future__ import annotations

import atexit
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fix_daemon import PATIENCE, line_of


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit status."""

    out: str
    err: str
    status: int


ZYGOTE = """
import json, os, sys, tempfile
from supervisor import supervisorctl
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["supervisorctl", *json.loads(line)]
            supervisorctl.main()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    print(json.dumps([*texts, status]), flush=True)
"""
"""Has the client imported once and forks for every command: the same program, without most of its start."""

_own = threading.local()


def supervisorctl(socket_path: Path, *words: str, options: tuple[str, ...] = ()) -> Said:
    """Run the stock client once, as a process of its own."""
    zygote = getattr(_own, "zygote", None)
    if zygote is None:
        command = [sys.executable, "-c", ZYGOTE]
        zygote = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(zygote.kill)
        _own.zygote = zygote
    assert zygote.stdin is not None
    zygote.stdin.write(json.dumps(client_command(socket_path, *words, options=options)[3:]) + "\n")
    zygote.stdin.flush()
    return Said(*json.loads(line_of(zygote, f"supervisorctl {' '.join(words)} ends")))


def client_command(socket_path: Path, *words: str, options: tuple[str, ...] = ()) -> list[str]:
    """Its command line. A daemon's own file on this host does not come into it."""
    return [sys.executable, "-m", "supervisor.supervisorctl", "-s", f"unix://{socket_path}", *options, *words]


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = UnixConnection(self._path)
        self._connection = host, connection  # what ``close`` closes
        return connection

    def request(self, *arguments: Any, **options: Any) -> Any:
        """A connection for each: nobody closes that of a proxy that is made for a call."""
        try:
            return super().request(*arguments, **options)
        finally:
            self.close()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path)


def connect(path: Path) -> socket.socket:
    """A connection to a Unix socket, however long its path is."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
        except OSError:
            connection.close()
            raise
        return connection
    finally:
        os.close(directory)


def supervisord(configuration: Path) -> subprocess.Popen[bytes]:
    """A real one, as a process of its own. What it says is in the file ``said`` beside its configuration."""
    with (configuration.parent / "said").open("wb") as said:
        command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(configuration)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)


def running(process: subprocess.Popen[bytes]) -> bool:
    """True; if that supervisord has ended, the test fails here and shows what it said."""
    if process.poll() is not None:
        assert isinstance(process.args, list)
        said = Path(process.args[-1]).parent / "said"
        pytest.fail(f"supervisord ended with {process.returncode}:\n{said.read_text(errors='replace')}")
    return True


def listens(path: Path) -> bool:
    """Whether somebody takes connections there. A socket's file is there a moment earlier."""
    try:
        connect(path).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def proxy(path: Path) -> Any:
    """An XML-RPC client of the namespace-less kind: ``proxy(path).supervisor.getState()``."""
    return xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=_Transport(path))


def fault(call: Any, *arguments: Any) -> tuple[int, str]:
    """The fault that a call ends with."""
    try:
        value = call(*arguments)
    except xmlrpc.client.Fault as error:
        return error.faultCode, error.faultString
    raise AssertionError(f"no fault but {value!r}")
