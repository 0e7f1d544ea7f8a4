"""Reads of processes that may end at any moment, also during the read: psutil's exceptions are handled here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def alive(process: psutil.Process | int) -> bool:
    """Whether a process, or the one of this pid, has not ended. One that was not reaped yet has."""
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return bool(found.is_running() and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Whether all have ended."""
    return not any(alive(each) for each in processes)


def family(pid: int, name: str = "") -> list[psutil.Process]:
    """The descendants of a process that live, or those of them whose name begins like this; none once it has ended."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if each.name().startswith(name) and alive(each):
                    found.append(each)
    return found


def parent(pid: int) -> int:
    """The pid of a process's parent; 0 once the process has ended."""
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return 0
