"""Reaping of orphans: the supervisor waits for processes that the kernel has reparented to it.

As PID 1 of a container, or as a subreaper, the supervisor becomes the parent of every process whose own parent has
died. Each stays a zombie, and takes a place in the process table, until it is waited for.

The supervisor's own children must be left to those who started them, or their exit statuses would be lost. These learn
of an end on the same loop, and wait for the child at once. So a process that is a zombie at two checks in a row is an
orphan. Most checks are one system call, which says that there is no zombie at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Final

log = logging.getLogger("penstock.orphans")

INTERVAL: Final = 0.5
"""Seconds between two checks."""


class Orphans:
    """Reaps them from its construction on until it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._seen: frozenset[int] = frozenset()
        self._timer = loop.call_later(INTERVAL, self._due)

    def _due(self) -> None:
        self._timer = self._loop.call_later(INTERVAL, self._due)
        # After all that the loop has learnt by now: of the ends of children that have somebody, above all.
        self._loop.call_soon(self._check)

    def _check(self) -> None:
        zombies = frozenset(_zombies()) if _any_zombie() else frozenset()
        for pid in self._seen & zombies:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._seen = zombies - self._seen

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()


def _any_zombie() -> bool:
    """Whether a child has ended and was not waited for."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _zombies() -> list[int]:
    """The children that have ended and were not waited for."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        try:
            children = (thread / "children").read_text().split()
        except OSError:
            continue  # the thread has ended meanwhile
        found += [int(pid) for pid in children if _is_zombie(pid)]
    return found


def _is_zombie(pid: str) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    # The second field, a name in parentheses, may have anything in it.
    return stat.rpartition(b")")[2].split()[0] == b"Z"
