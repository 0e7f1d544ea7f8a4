"""The state directory: its lock, its mode, and where its sockets lie."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.daemon.host.state import (
    SUN_PATH,
    SocketDirectory,
    StateDirectory,
    StateError,
    StateInUse,
    private_directory,
)
from tests.fix_daemon import line_of

HOLD = """
import sys
from pathlib import Path
from penstock.daemon.host.state import StateDirectory
state = StateDirectory(Path(sys.argv[1]))
state.lock()
print(state.runtime, flush=True)
sys.stdin.read()
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def no_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Instead of pytest's own, in whose paths no socket fits."""
    with tempfile.TemporaryDirectory(prefix="state-", dir="/tmp") as made:
        yield Path(made)


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A path in which no socket fits."""
    return tmp_path / ("d" * 100) / "state"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of ``tmp_path / "state"``."""
    with hold(tmp_path / "state") as process:
        assert line_of(process, "it holds the lock")
        yield process
        process.kill()


def hold(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_a_missing_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "a" / "b")
    state.lock()
    assert mode(state.path) == 0o700
    assert mode(state.runtime) == 0o700
    assert (state.path / "penstock.lock").read_text() == f"{os.getpid()}\n"
    assert mode(state.path / "penstock.lock") == 0o600
    state.close()


def test_a_second_daemon_is_told_the_lock_and_the_pid(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(StateInUse) as caught:
        StateDirectory(tmp_path / "state").lock()
    assert str(tmp_path / "state" / "penstock.lock") in str(caught.value)
    assert f"pid {holder.pid}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_lock_ends_with_its_holder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    state = StateDirectory(tmp_path / "state")
    state.lock()
    assert (state.path / "penstock.lock").read_text() == f"{os.getpid()}\n"
    state.close()


def test_a_refused_daemon_leaves_the_sockets_of_the_other_alone(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    bind(tmp_path / "state" / "run" / "answers")
    with pytest.raises(StateInUse):
        StateDirectory(tmp_path / "state").lock()
    assert (tmp_path / "state" / "run" / "answers").exists()


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    state.lock()
    code = "print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], close_fds=False, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        line_of(child, "the child runs")
        state.close()
        again = StateDirectory(tmp_path / "state")
        again.lock()
        again.close()
        child.kill()


def test_close_may_come_first_and_twice(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    state.close()
    state.lock()
    state.close()
    state.close()


def test_stale_sockets_are_removed_and_other_files_stay(tmp_path: Path) -> None:
    run = tmp_path / "state" / "run"
    private_directory(tmp_path / "state")
    private_directory(run)
    bind(run / "work-1")
    (run / "note").write_text("kept")
    state = StateDirectory(tmp_path / "state")
    state.lock()
    assert [each.name for each in state.runtime.iterdir()] == ["note"]
    bind(state.runtime / "work-2")
    state.close()
    assert [each.name for each in run.iterdir()] == ["note"]


def connected(path: Path) -> bool:
    """Whether another process can connect to a socket there."""
    program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    return subprocess.run([sys.executable, "-c", program, str(path)], stderr=subprocess.DEVNULL).returncode == 0


def test_a_long_path_has_its_sockets_by_a_shorter_one(long: Path) -> None:
    """They lie in the state directory all the same, where nobody cleans up."""
    state = StateDirectory(long)
    state.lock()
    assert mode(state.runtime) == 0o700
    name = "s" * 40
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state.runtime / name))
        listener.listen()
        assert [each.name for each in (long / "run").iterdir()] == [name]
        assert connected(state.runtime / name)
    state.close()
    assert sorted(each.name for each in long.iterdir()) == ["penstock.lock", "run"]
    assert list((long / "run").iterdir()) == []


def test_what_a_killed_daemon_left_is_removed(long: Path) -> None:
    with hold(long) as killed:
        bind(Path(line_of(killed, "it holds the lock").strip()) / "work-1")
        killed.kill()
    assert (long / "run" / "work-1").exists()
    state = StateDirectory(long)
    state.lock()
    assert list(state.runtime.iterdir()) == []
    state.close()


@pytest.mark.parametrize("length", [1, 13, 40])
def test_the_longest_name_fits_wherever_the_directory_is(tmp_path: Path, length: int) -> None:
    for padding in range(max(1, SUN_PATH - len(str(tmp_path)) - 50), SUN_PATH - len(str(tmp_path)) + 10):
        home = tmp_path / ("p" * padding)
        used = SocketDirectory(home, length)
        bind(used.path / ("s" * length))
        used.close()


def test_the_runtime_directory_of_systemd_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "given"
    given.mkdir(mode=0o755)
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{given}:/nowhere")
    first, second = StateDirectory(tmp_path / "one"), StateDirectory(tmp_path / "two")
    first.lock()
    second.lock()
    assert first.runtime.parent == second.runtime.parent == given
    assert first.runtime != second.runtime
    assert mode(first.runtime) == 0o700
    first.close()
    second.close()


def test_an_unusable_runtime_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "missing"))
    state = StateDirectory(tmp_path / "state")
    state.lock()
    assert state.runtime == tmp_path / "state" / "run"
    state.close()


def test_an_open_directory_of_ours_is_closed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    state = StateDirectory(path)
    state.lock()
    state.close()
    assert mode(path) == 0o700
    assert "0755" in caplog.text
    path.chmod(0o750)
    state.lock()
    state.close()
    assert mode(path) == 0o700


def test_an_open_directory_with_other_things_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir()
    path.chmod(0o755)
    (path / "letters").write_text("private")
    with pytest.raises(StateError, match=r"mode 0755.*other things"):
        StateDirectory(path).lock()
    assert mode(path) == 0o755
    assert [each.name for each in path.iterdir()] == ["letters"]


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="something else"):
        StateDirectory(tmp_path / "state").lock()
    with pytest.raises(StateError, match="cannot be used"):
        StateDirectory(tmp_path / "state" / "below").lock()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_someone_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    os.chown(path, 65534, 65534)
    with pytest.raises(StateError, match="belongs to uid 65534"):
        StateDirectory(path).lock()
