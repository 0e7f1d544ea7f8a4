"""A daemon that is given too few descriptors: the first three are closed, or the limit is low."""

from __future__ import annotations

import os
import signal

import pytest

from tests.fix_daemon import DaemonFactory

CLOSED = [(0,), (1,), (2,), (0, 1, 2)]


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_a_standard_descriptor_that_is_closed_is_dev_null(fresh: DaemonFactory, closed: tuple[int, ...]) -> None:
    """Whatever is closed, nothing else gets its number: neither the lock, nor the log, nor a socket."""
    daemon = fresh("basic", closed=" ".join(f"{each}>&-" for each in closed))
    for each in closed:
        assert os.readlink(f"/proc/{daemon.pid}/fd/{each}") == "/dev/null"
    assert daemon.call("echo", 1).json == 1
    assert (daemon.state / "penstock.lock").read_text() == f"{daemon.pid}\n", "nothing is written into the lock"
    assert daemon.stop(signal.SIGTERM) == 0
    assert "stopped" in (daemon.state / "log" / "penstock.log").read_text()
