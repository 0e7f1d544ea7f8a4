"""Where a daemon listens, written down for those who look for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.daemon.listeners import FILE, Listeners, announce, describe, find, withdraw
from penstock.daemon.state import StateError

TWO = Listeners(["127.0.0.1:4711", "unix:/run/x"], ["127.0.0.1:4712"])


def test_what_is_announced_is_found_until_it_is_withdrawn(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    announce(tmp_path, Listeners(["127.0.0.1:1"], []))
    announce(tmp_path, TWO)
    assert find(tmp_path) == TWO
    assert [each.name for each in tmp_path.iterdir()] == [FILE]
    withdraw(tmp_path)
    withdraw(tmp_path)
    assert find(tmp_path) is None


def test_what_a_killed_daemon_left_counts_for_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from penstock.daemon.listeners import Listeners, announce\n"
        "announce(Path(sys.argv[1]), Listeners(['127.0.0.1:1'], [])); print(); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert find(tmp_path) == Listeners(["127.0.0.1:1"], [])
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert find(tmp_path) is None, "nor while nobody has reaped it"
    assert find(tmp_path) is None


def test_another_process_with_that_pid_is_not_taken_for_it(tmp_path: Path) -> None:
    announce(tmp_path, TWO)
    said = json.loads((tmp_path / FILE).read_bytes())
    (tmp_path / FILE).write_text(json.dumps({**said, "started": said["started"] - 1}))
    assert find(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_file_that_is_something_else_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert find(tmp_path) is None


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"{tmp_path}/missing/{FILE}.* cannot be written: No such file"):
        announce(tmp_path / "missing", TWO)


def test_for_people() -> None:
    assert list(describe(TWO)) == ["127.0.0.1:4711", "unix:/run/x", "127.0.0.1:4712 (admin)"]
