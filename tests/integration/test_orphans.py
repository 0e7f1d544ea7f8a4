"""As PID 1, or as a subreaper, the supervisor reaps what nobody waits for, and leaves its own children to their owners."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest

from tests.fix_daemon import AGENTS, Daemon, DaemonFactory, eventually

SUBREAPER = "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"


def as_subreaper(command: list[str]) -> list[str]:
    return [sys.executable, "-c", SUBREAPER, *command]


def as_pid_1(command: list[str]) -> list[str]:
    unshare = shutil.which("unshare")
    prefix = [str(unshare), "--pid", "--fork", "--kill-child", "--mount-proc"]
    if unshare is None or subprocess.run([*prefix, "true"], capture_output=True, timeout=20).returncode != 0:
        pytest.skip("nobody here may make a namespace of pids")
    return [*prefix, *command]


def start(daemon: Daemon, command: list[str]) -> psutil.Process:
    """Start a daemon by another command line, and wait until it is ready; its process."""
    with daemon.log_path.open("ab") as output:
        daemon.process = subprocess.Popen(
            command,
            cwd=AGENTS,
            stdout=output,
            stderr=output,
            env={**os.environ, "PENSTOCK_CONFIG": os.devnull},
            start_new_session=True,
        )
    daemon.wait_ready()
    found = psutil.Process(daemon.process.pid)
    return found if found.cmdline()[0] == sys.executable else found.children()[0]


def zombies(process: psutil.Process) -> int:
    found = 0
    for each in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += each.status() == psutil.STATUS_ZOMBIE
    return found


def forkservers(supervisor: psutil.Process) -> list[psutil.Process]:
    """Of its children, those that have children."""
    tree = supervisor.children(recursive=True)
    parents = set()
    for each in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            parents.add(each.ppid())
    return [each for each in tree if each.pid in parents]


@pytest.mark.parametrize("launched", [as_subreaper, as_pid_1])
def test_orphans_are_reaped_and_children_are_not_stolen(
    fresh: DaemonFactory, launched: Callable[[list[str]], list[str]]
) -> None:
    daemon = fresh.prepare("family", settings={"pools.default.workers": 1})
    supervisor = start(daemon, launched(daemon.command()))
    assert daemon.call("orphan", 60).json == 60
    eventually(lambda: zombies(supervisor) == 0, "none is left")
    assert daemon.request("POST", "/v1/reload").status == 202
    eventually(lambda: "reloaded: every worker" in daemon.log, "the forkserver has been replaced")
    # Its end is learnt by whoever started it.
    eventually(lambda: len(forkservers(supervisor)) == 1, "the old one has ended")
    eventually(lambda: zombies(supervisor) == 0, "nor of these")
    forkservers(supervisor)[0].kill()
    eventually(lambda: "the forkserver exited unexpectedly (killed by SIGKILL)" in daemon.log, "its status is known")
    daemon.wait_workers(1)
    assert daemon.call("orphan", 3).json == 3
    eventually(lambda: zombies(supervisor) == 0, "workers and what they left are reaped, too")
    supervisor.terminate()
    assert daemon.process is not None
    assert daemon.process.wait(30) == 0
    assert "Traceback" not in daemon.log
