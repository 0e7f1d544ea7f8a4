"""Where a daemon listens, written down for those who look for it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.daemon.host.listeners import FILE, Listeners, announced, describe, find
from penstock.daemon.host.state import StateError
from tests.fix_daemon import line_of

TWO = Listeners(["127.0.0.1:4711", "unix:/run/x"], ["127.0.0.1:4712"])


def test_what_is_announced_is_found_for_as_long(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    with announced(tmp_path, TWO):
        assert find(tmp_path) == TWO
        assert [each.name for each in tmp_path.iterdir()] == [FILE]
        assert find(tmp_path) == TWO
    assert find(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


ANNOUNCING = """
import sys
from pathlib import Path
from penstock.daemon.host.listeners import Listeners, announced
with announced(Path(sys.argv[1]), Listeners(["127.0.0.1:1"], [])):
    print(flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_daemon_left_counts_for_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ANNOUNCING, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        line_of(process, "the listeners are written down")
        assert find(tmp_path) == Listeners(["127.0.0.1:1"], [])
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert find(tmp_path) is None, "nor while nobody has reaped it"
    assert (tmp_path / FILE).exists()


def test_who_looks_never_stands_in_the_way_of_the_next_daemon(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{}")
    (tmp_path / f"{FILE}.new").write_text("left by one that was killed meanwhile")
    with (tmp_path / FILE).open() as old, (tmp_path / f"{FILE}.new").open() as new:
        for each in (old, new):
            fcntl.flock(each, fcntl.LOCK_SH)
        with announced(tmp_path, TWO):
            assert find(tmp_path) == TWO


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_file_that_is_something_else_is_none(tmp_path: Path, content: bytes) -> None:
    with announced(tmp_path, TWO):
        (tmp_path / FILE).write_bytes(content)
        assert find(tmp_path) is None


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(StateError, match=f"{tmp_path}/missing/{FILE}.* cannot be written: No such file"),
        announced(tmp_path / "missing", TWO),
    ):
        pass


def test_for_people() -> None:
    assert list(describe(TWO)) == ["127.0.0.1:4711", "unix:/run/x", "127.0.0.1:4712 (admin)"]
