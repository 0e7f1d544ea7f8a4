"""The state directory: a lock for one daemon at a time, mode 0700, and short paths for Unix sockets.

Everything that a daemon keeps lies in one directory of mode 0700. Its lock is an ``flock``: the kernel gives it up with
the process that holds it, however that dies, so there are no stale locks. The pid inside is for people only.

A Unix socket's path holds 107 bytes. Where the state directory's is too long, the sockets lie in it all the same, and
are called by way of a descriptor of the daemon's: ``/proc/PID/fd/N/NAME``. In a temporary directory with a shorter path
they would be what cleaners look for: old files that nobody seems to use, without which no worker can be started again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import zlib
from pathlib import Path
from typing import Final

log = logging.getLogger("penstock.state")

SUN_PATH: Final = 107
"""Bytes that the path of a Unix socket may have."""

SOCKET_NAME: Final = 40
"""Bytes kept free for the file name of an ipc socket."""

LOCK: Final = "penstock.lock"
_PREFIX: Final = "penstock-"


class StateError(Exception):
    """The state directory cannot be used. One line that names it and says why."""


class StateInUse(StateError):
    """Another daemon holds the lock. The text names the lock file and that daemon's pid."""


class StateDirectory:
    """The state directory of one daemon. ``lock`` comes first; until then nothing is made or touched."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None
        self._runtime: Path | None = None
        self._sockets: SocketDirectory | None = None

    def lock(self) -> None:
        """Make the directory if it is missing, and take it for this process (``StateInUse``, ``StateError``)."""
        try:
            private_directory(self.path)
            self._lock = _take(self.path / LOCK)
            self._runtime = self._place_for_sockets()
        except OSError as error:
            reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
            raise StateError(f"the state directory {self.path} cannot be used: {reason}") from error

    def _place_for_sockets(self) -> Path:
        given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        if given and os.path.isdir(given) and os.access(given, os.W_OK):
            # A name of this state directory's own: daemons with different ones may share the runtime directory.
            wanted = Path(given) / f"{_PREFIX}{zlib.crc32(os.fsencode(self.path)):08x}"
            if _fits(wanted, SOCKET_NAME):
                private_directory(wanted)
                empty_of_sockets(wanted)
                return wanted
        self._sockets = SocketDirectory(self.path / "run", SOCKET_NAME)
        return self._sockets.path

    @property
    def runtime(self) -> Path:
        """A directory of mode 0700, empty of sockets at start, in which file names of 40 bytes can be sockets."""
        assert self._runtime is not None, "lock() comes first"
        return self._runtime

    def close(self) -> None:
        """Remove the sockets and give up the lock. May be called twice."""
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None
        elif self._runtime is not None:
            empty_of_sockets(self._runtime)
        self._runtime = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def private_directory(path: Path) -> None:
    """Make ``path`` with mode 0700, or see to it that only its owner, who must be us, may enter it (``StateError``).

    One that is open to others is closed to them if it is empty or has been ours before; one with other things in it
    may be anything (``/tmp``, a home), and is refused instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.stat()
    else:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise StateError(f"{path} must be a directory, and is not")
    if found.st_uid != os.geteuid():
        raise StateError(f"the directory {path} belongs to uid {found.st_uid}, not to uid {os.geteuid()}; chown it")
    mode = stat.S_IMODE(found.st_mode)
    if not mode & 0o077:
        return
    if any(path.iterdir()) and not (path / LOCK).exists():
        raise StateError(
            f"the directory {path} is open to others (mode {mode:04o}) and holds other things; "
            "chmod 700 it or choose another"
        )
    path.chmod(0o700)
    log.warning("the directory %s was open to others (mode %04o) and is 0700 now", path, mode)


class SocketDirectory:
    """A directory of mode 0700 for sockets, and a path of it by which names of so many bytes fit into an address."""

    def __init__(self, home: Path, name_length: int) -> None:
        """Makes ``home``, or removes the sockets in it: whoever calls this holds the lock (``StateError``,
        ``OSError``).
        """
        private_directory(home)
        empty_of_sockets(home)
        self.home = home
        self.descriptor = -1
        """What the path leads by; -1 where that is ``home`` itself."""
        self.path = home
        """For this process and its children of the same user, as long as this is open."""
        if not _fits(home, name_length):
            self.descriptor = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.path = Path(f"/proc/{os.getpid()}/fd/{self.descriptor}")

    def close(self) -> None:
        """Remove the sockets."""
        if self.home.is_dir():
            empty_of_sockets(self.home)
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def empty_of_sockets(directory: Path) -> None:
    """Remove the sockets in a directory."""
    for entry in directory.iterdir():
        if stat.S_ISSOCK(entry.lstat().st_mode):
            entry.unlink()


def _take(path: Path) -> int:
    """The lock's descriptor. It is closed by exec, so no child keeps the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise StateInUse(f"the state directory is in use: {path} is locked by the daemon with pid {holder}") from error
    except BaseException:
        os.close(descriptor)
        raise
    # Written before it is cut, so that a reader never finds it empty.
    os.ftruncate(descriptor, os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0))
    return descriptor


def _fits(directory: Path, name_length: int) -> bool:
    # libpq takes a comma in the name of a socket's directory for the end of it.
    return len(os.fsencode(directory)) + 1 + name_length <= SUN_PATH and "," not in str(directory)
