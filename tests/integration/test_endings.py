"""How a worker ends that was told to: exit handlers run, threads are waited for, and what takes too long is killed and
said so.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fix_daemon import Daemon, DaemonFactory, eventually

CODE = """
import atexit, os, threading, time
from penstock.workers import agent

@atexit.register
def leave():
    with open({path!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")

@agent
def linger(body: float) -> int:
    threading.Thread(target=time.sleep, args=(body,), name="lingers-on", daemon=False).start()
    return os.getpid()
"""


@pytest.fixture
def left(tmp_path: Path) -> Path:
    return tmp_path / "left"


def serve(fresh: DaemonFactory, tmp_path: Path, left: Path, **settings: object) -> Daemon:
    (tmp_path / "tidy.py").write_text(CODE.format(path=str(left)))
    return fresh(
        "tidy",
        settings={"pools.default.workers": 1, **settings},
        environment={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
    )


@pytest.mark.parametrize("preload", [False, True])
def test_exit_handlers_of_modules_run_at_an_orderly_stop(
    fresh: DaemonFactory, tmp_path: Path, left: Path, preload: bool
) -> None:
    daemon = serve(fresh, tmp_path, left, **{"agents.preload": preload})
    first = daemon.call("linger", 0.0).json
    assert daemon.request("POST", "/v1/workers/default:0/restart").status == 202
    eventually(lambda: left.exists() and left.read_text().split() == [str(first)], "the first has left")
    second = daemon.call("linger", 0.0).json
    assert daemon.stop() == 0
    assert left.read_text().split()[:2] == [str(first), str(second)]


def test_a_thread_is_waited_for_before_the_exit_handlers_run(fresh: DaemonFactory, tmp_path: Path, left: Path) -> None:
    daemon = serve(fresh, tmp_path, left)
    pid = daemon.call("linger", 1.5).json
    assert daemon.stop() == 0
    assert left.read_text().split()[0] == str(pid)
    assert "exits once its non-daemon threads have ended: lingers-on" in daemon.log


def test_a_thread_that_does_not_end_costs_only_the_time_to_stop_and_is_named(
    fresh: DaemonFactory, tmp_path: Path, left: Path
) -> None:
    daemon = serve(fresh, tmp_path, left, **{"supervision.stop_timeout": 1.5})
    daemon.call("linger", 600.0)
    daemon.request("POST", "/v1/workers/default:0/restart")
    eventually(
        lambda: "default:0/1 is killed: it had not ended 1.5 s after it was told to" in daemon.log, "it is killed"
    )
    assert "lingers-on" in daemon.log
    assert not left.exists()
    daemon.call("linger", 600.0)
    assert daemon.stop() == 0
    assert "default:0/2 is killed" in daemon.log
