"""The file that says where a running daemon listens, for the commands that connect to it.

With port 0 the system chooses, and a socket of the service manager's is no matter of the configuration at all. So a
daemon writes down where it is in its state directory, which the commands find by the same configuration. A daemon that
was killed leaves the file behind, and its port may be another program's by now: so the daemon holds a lock on the file,
which the kernel gives up with it, and an unlocked file counts for nothing. Every daemon makes a new file, so that a
reader of an old one never blocks it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def announced(directory: Path, listeners: Listeners) -> Iterator[None]:
    """A block during which they are written down (``StateError``). A reader finds the whole or nothing."""
    made = directory / f"{FILE}.new"
    try:
        made.unlink(missing_ok=True)
        file = made.open("xb")
    except OSError as error:
        raise StateError(f"{made} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(msgspec.json.encode(listeners))
            file.flush()
            made.replace(directory / FILE)
        except OSError as error:
            raise StateError(f"{made} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            (directory / FILE).unlink(missing_ok=True)


def find(directory: Path) -> Listeners | None:
    """Where the daemon with this state directory listens; None if none runs, or none that we may know of."""
    try:
        with (directory / FILE).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return msgspec.json.decode(file.read(), type=Listeners)
    except (OSError, msgspec.MsgspecError):
        return None
    return None


def describe(listeners: Listeners) -> Iterator[str]:
    """Each of them for people."""
    yield from listeners.http
    yield from (f"{each} (admin)" for each in listeners.admin)
