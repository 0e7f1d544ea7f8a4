"""Where a running daemon listens, for the commands that look for it.

With port 0 the system chooses, and a socket of the service manager's is no matter of the configuration at all. So a
daemon writes down where it is in its state directory, which the commands find by the same configuration. A daemon that
was killed leaves the file behind, and its port may be another program's by now: so the file also says whose it is, by
pid and start time, and counts for nothing once that process has ended.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from .state import StateError

FILE: Final = "listening.json"


class Listeners(msgspec.Struct, frozen=True):
    """The addresses of a daemon's listeners, as the configuration writes them, with the ports that they really have."""

    http: list[str]
    admin: list[str]
    """Of the second listener; empty if the first serves the admin routes, too."""


class _Note(msgspec.Struct):
    pid: int
    started: int
    listeners: Listeners


def announce(directory: Path, listeners: Listeners) -> None:
    """Write them down (``StateError``). A reader finds the whole or nothing."""
    pid = os.getpid()
    made = directory / f"{FILE}.new"
    try:
        made.write_bytes(msgspec.json.encode(_Note(pid, _started(pid), listeners)))
        made.replace(directory / FILE)
    except OSError as error:
        raise StateError(f"{made} cannot be written: {error.strerror}") from error


def withdraw(directory: Path) -> None:
    """Nobody listens there any more."""
    (directory / FILE).unlink(missing_ok=True)


def find(directory: Path) -> Listeners | None:
    """Where the daemon with this state directory listens; None if none runs, or none that we may know of."""
    try:
        note = msgspec.json.decode((directory / FILE).read_bytes(), type=_Note)
    except (OSError, msgspec.MsgspecError):
        return None
    return note.listeners if note.started == _started(note.pid) else None


def _started(pid: int) -> int:
    """When a process was started, in the kernel's ticks since its own start; -1 if there is no such process."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        # The second field is a name in parentheses, in which anything may be.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[19]) if fields[0] not in ("Z", "X") else -1
    return -1


def describe(listeners: Listeners) -> Iterable[str]:
    """Each of them for people."""
    yield from listeners.http
    yield from (f"{each} (admin)" for each in listeners.admin)
