"""Whether processors are short, on the host and for the interpreter of each worker, and what others leave of them.

Read at most every ``INTERVAL`` seconds, and only while calls end or requests wait: ``/proc/stat`` for the host, and the
CPU clock of each worker's process, which is one system call without opening anything. What calls take while processors
are short says nothing about what they would take alone (see ``core.window``).
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterable
from typing import Final

from ..host import cgroups

INTERVAL: Final = 0.02
"""Seconds between two samples."""

SHORT: Final = 0.95
"""Of the host's processors, or of one for a worker: used more than this they are short."""

LEAST: Final = 0.25
"""Of the processors: what the workers may count on, whatever others use."""

WEIGHT: Final = 0.2
"""Of the newest sample, in what others use on average."""

MOMENT: Final = 0.2
"""Seconds for which what was seen of the host counts as now."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def idle_ticks(wanted: set[int]) -> tuple[int, int]:
    """What these processors have idled so far together, in the kernel's ticks, and how many they are; of all processors
    where the kernel does not tell them apart.
    """
    with open("/proc/stat", "rb") as file:
        everything = file.readline().split()
        if len(wanted) < (os.cpu_count() or 1):
            lines = (line.split() for line in itertools.takewhile(lambda line: line.startswith(b"cpu"), file))
            idle = [_idle(fields) for fields in lines if int(fields[0][3:]) in wanted]
            if idle:
                return sum(idle), len(idle)
    return _idle(everything), os.cpu_count() or 1


def _idle(fields: list[bytes]) -> int:
    return int(fields[4]) + int(fields[5])


def cpu_seconds(pid: int) -> float | None:
    """CPU time of a process so far; None if there is none of this id."""
    try:
        # As MAKE_PROCESS_CPUCLOCK in the kernel's posix-timers.h has it, with CPUCLOCK_SCHED.
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return None


class Pressure:
    """The last readings."""

    def __init__(self, groups: cgroups.Groups | None = None) -> None:
        """``groups``: this process's, unless said otherwise."""
        self._groups = groups or cgroups.own()
        self._group_used = 0.0
        self._beside = 0.0
        self._workers_used = 0.0
        self._at = -math.inf
        self._idle_at = -math.inf
        self._idle = 0
        self._used = 0.0
        self._others = 0.0
        self._pressed_at = -math.inf
        self._clocks: dict[int, float] = {}
        self._rates: dict[int, float] = {}
        self._pressed: dict[int, float] = {}

    def is_due(self, now: float) -> bool:
        """Whether ``sample`` would read anything."""
        return now - self._at >= INTERVAL

    def sample(self, pids: Iterable[int], now: float) -> None:
        """Read all clocks."""
        elapsed, self._at = now - self._at, now
        before, self._clocks = self._clocks, {}
        self._rates.clear()
        for pid in pids:
            clock = cpu_seconds(pid)
            if clock is None:
                continue
            self._clocks[pid] = clock
            if pid in before:
                self._used += clock - before[pid]
                rate = self._rates[pid] = (clock - before[pid]) / elapsed
                if rate > SHORT:
                    self._pressed[pid] = now
        for pid in self._pressed.keys() - self._clocks.keys():
            del self._pressed[pid]
        self._sample_host(now)

    def _sample_host(self, now: float) -> None:
        # The kernel counts in hundredths of a second, so a sample needs several of them to mean anything.
        elapsed = now - self._idle_at
        if elapsed < 5 / _TICKS:
            return
        try:
            idle, count = idle_ticks(os.sched_getaffinity(0))
        except OSError:
            return  # the host has no descriptor for it just now; what was seen last counts on
        spare = (idle - self._idle) / _TICKS / elapsed / count
        group_used = self._used_by_group()
        if elapsed < math.inf:
            # Which group it is may change with its quota, and then this is no difference of anything.
            used = min(float(count), max(0.0, (group_used - self._group_used) / elapsed))
            if spare < 1.0 - SHORT or used > SHORT * self._groups.quota():
                self._pressed_at = now
            others = (1.0 - spare) * count - self._used / elapsed
            # The kernel's ticks are coarse, so a sample may be below zero; only the mean is meaningful.
            self._others += (others - self._others) * WEIGHT
            self._beside += (used - self._used / elapsed - self._beside) * WEIGHT
        self._group_used = group_used
        self._idle, self._idle_at, self._used = idle, now, 0.0

    def _used_by_group(self) -> float:
        """CPU seconds so far of all that shares our quota; where that is not told, of this process and the workers."""
        used = self._groups.used()
        if used is None:
            self._workers_used += self._used
            used = self._workers_used + time.process_time()
        return used

    def was_pressed(self, pid: int, since: float) -> bool:
        """Whether the host, or this worker, was short of processors at any sample since then, or at the one before."""
        since -= INTERVAL
        return self._pressed_at >= since or self._pressed.get(pid, -math.inf) >= since

    def host_pressed(self, now: float) -> bool:
        """Whether the host was short of processors a moment ago."""
        return now - self._pressed_at < MOMENT

    def left(self, processors: float) -> float:
        """Processors that the workers may use beside what others do: the supervisor, the database, other programs.

        ``processors``: those that the daemon may use; of the host's, others may leave as many all the same.
        """
        of_host = len(os.sched_getaffinity(0)) - max(0.0, self._others)
        of_quota = processors - max(0.0, self._beside) if self._groups.quota() <= processors else processors
        return max(LEAST * processors, min(of_host, of_quota))

    def rate(self, pid: int) -> float:
        """Processors that a worker has used between the last two samples; 0 if that is not known."""
        return self._rates.get(pid, 0.0)
