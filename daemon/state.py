"""The state directory: the lock that makes a daemon the only one in it, and the directory for its sockets."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

LOCK: Final = "penstock.lock"
LONGEST_SOCKET: Final = 107
"""Bytes of a Unix socket's path on Linux."""
ROOM: Final = 24
"""Bytes that the names of our sockets need."""


class StateError(Exception):
    """The state directory cannot be used. The text says why."""


class StateDirectory:
    """``supervision.state_dir``, made if it is missing, and locked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runtime = path / "run"
        """A directory of mode 0700 for Unix sockets, empty at first."""
        self._lock = -1
        self._temporary = False

    def lock(self) -> None:
        """Take the directory for this process (``StateError``). The kernel gives it back however the process ends."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = self.path / LOCK
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"supervision.state_dir {self.path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise StateError(f"another daemon (pid {owner or 'unknown'}) uses {self.path}: it holds {file}") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor
        try:
            self._open_runtime()
        except OSError as error:
            raise StateError(f"no directory for sockets could be made in {self.path}: {error.strerror}") from error

    def _open_runtime(self) -> None:
        """``run`` below the state directory, or a temporary one, remembered in ``run.path``, where the path is too long."""
        note = self.path / "run.path"
        if note.exists():
            # The last daemon had one and was killed before it could remove it.
            shutil.rmtree(note.read_text(), ignore_errors=True)
            note.unlink()
        shutil.rmtree(self.runtime, ignore_errors=True)
        if len(os.fsencode(self.runtime)) + ROOM > LONGEST_SOCKET:
            self.runtime = Path(tempfile.mkdtemp(prefix="penstock-"))
            self._temporary = True
            note.write_text(str(self.runtime))
        else:
            self.runtime.mkdir(mode=0o700)
            self.runtime.chmod(0o700)

    def close(self) -> None:
        """Remove the sockets' directory and give the lock back. May be called twice."""
        if self._lock < 0:
            return
        shutil.rmtree(self.runtime, ignore_errors=True)
        if self._temporary:
            (self.path / "run.path").unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1
