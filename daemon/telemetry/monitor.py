"""What the workers, the supervisor and the host use: sampled once a second, and kept as a history of minutes.

Resources are read by psutil from ``/proc`` on a thread of its own: most of that time is the kernel's, during which the
loop goes on. A process costs some 0.1 ms; its private memory is expensive (the kernel walks all its pages), so that
is read every ten seconds only. What workers show on their scoreboards, and what the core knows of their
calls, is read where it is when somebody asks. Nothing here is done for a request.

How late the supervisor's own loop is, is measured as the workers do it: by a timer that asks to be called every tenth
of a second. The same timer checks for workers that have to be recycled.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from penstock.ipc.scoreboard import HEARTBEAT

from ..engine.engine import Engine
from ..fleet.backend import Vitals
from ..fleet.fleet import Fleet
from .engine_views import call_limit
from .traffic import Summary, Traffic

log = logging.getLogger("penstock.monitor")

STEP: Final = 1.0
"""Seconds between two samples, and between two entries of the history."""

KEPT: Final = 300
"""Entries of the history."""

PRIVATE_EVERY: Final = 10
"""Looks in which every process's private memory is read once."""

PRESSURE: Final = Path("/proc/pressure")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses. Sizes are bytes, rates a second; None: not measured yet."""

    cpu: float | None
    """Of one core, since the sample before."""
    rss: int
    uss: int | None
    """Private memory: what its end would give back."""
    threads: int
    fds: int
    voluntary: float | None
    """Context switches: it waited for something."""
    involuntary: float | None
    """Context switches: it was made to let others run."""


@dataclass(frozen=True, slots=True)
class Host:
    """What the host has and uses. ``cpu`` is 0 to 1 of all CPUs, memory is bytes."""

    cpus: int
    cpu: float
    memory: dict[str, int]
    load: tuple[float, float, float]
    pressure: dict[str, dict[str, float | None]] | None
    """For cpu, memory and io: percent of the last 10 s in which some, or all, waited for it. None: not to be had."""


class Watched:
    """One process, with what was read of it last. Used by the sampling thread alone."""

    __slots__ = ("_cpu", "_process", "_read_at", "_switches", "_uss")

    def __init__(self, pid: int) -> None:
        """Raises ``psutil.Error`` if there is no such process."""
        self._process = psutil.Process(pid)
        self._read_at = 0.0
        self._cpu = 0.0
        self._switches = (0, 0)
        self._uss: int | None = None

    def read(self, private: bool) -> Usage:
        """Look at it (``psutil.Error`` if it has ended). ``private``: at its private memory too."""
        process = self._process
        now = time.monotonic()
        with process.oneshot():
            times = process.cpu_times()
            rss = int(process.memory_info().rss)
            threads = process.num_threads()
            switches = process.num_ctx_switches()
            fds = open_files(process)
        if private or self._uss is None:
            self._uss = int(process.memory_full_info().uss)
        before, cpu_before, switched = self._read_at, self._cpu, self._switches
        self._read_at, self._cpu = now, times.user + times.system
        self._switches = (switches.voluntary, switches.involuntary)
        if not before:
            return Usage(
                cpu=None,
                rss=rss,
                uss=self._uss,
                threads=threads,
                fds=fds,
                voluntary=None,
                involuntary=None,
            )
        seconds = max(1e-3, now - before)
        rates = [(new - old) / seconds for new, old in zip(self._switches, switched, strict=True)]
        return Usage(
            cpu=max(0.0, self._cpu - cpu_before) / seconds,
            rss=rss,
            uss=self._uss,
            threads=threads,
            fds=fds,
            voluntary=rates[0],
            involuntary=rates[1],
        )


def open_files(process: psutil.Process) -> int:
    """How many file descriptors a process has open (``psutil.Error`` if it has ended).

    Linux tells since 6.2 as the size of the directory. To list it, as psutil does, takes milliseconds where there are
    thousands, and takes the interpreter from the loop for each of them.
    """
    try:
        told = os.stat(f"/proc/{process.pid}/fd").st_size
    except OSError:
        told = 0  # psutil says what is wrong, in its own terms
    return told or int(process.num_fds())


class Sampler:
    """Reads all processes and the host. Used by the sampling thread alone."""

    def __init__(self) -> None:
        self._watched: dict[int, Watched] = {}
        self._samples = 0
        self._cpus = psutil.cpu_count() or 1
        psutil.cpu_percent(None)  # counts from here

    def sample(self, pids: Sequence[int]) -> tuple[dict[int, Usage], Host]:
        """The usage by pid, as far as the processes live, and the host."""
        self._samples += 1
        watched: dict[int, Watched] = {}
        usage: dict[int, Usage] = {}
        for number, pid in enumerate(pids):
            try:
                process = watched[pid] = self._watched.get(pid) or Watched(pid)
                usage[pid] = process.read((number + self._samples) % PRIVATE_EVERY == 0)
            except psutil.Error as error:
                # It is ending; whoever supervises it knows.
                log.debug("sampling process %d failed: %s", pid, error)
                watched.pop(pid, None)
        self._watched = watched
        return usage, self._host()

    def _host(self) -> Host:
        memory = psutil.virtual_memory()
        sizes = {"total": memory.total, "available": memory.available, "used": memory.used}
        return Host(self._cpus, psutil.cpu_percent(None) / 100.0, sizes, os.getloadavg(), pressure())


def pressure(directory: Path = PRESSURE) -> dict[str, dict[str, float | None]] | None:
    """The kernel's pressure stall information; None where it keeps none."""
    stalls: dict[str, dict[str, float | None]] = {}
    try:
        for name in ("cpu", "memory", "io"):
            stalls[name] = dict.fromkeys(("some", "full"))
            for line in (directory / name).read_text().splitlines():
                # some avg10=1.25 avg60=0.30 avg300=0.07 total=5022781
                kind, average, *_ = line.split()
                stalls[name][kind] = float(average.removeprefix("avg10="))
    except OSError:
        return None
    return stalls


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of the history."""

    at: float
    """Unix seconds."""
    traffic: Summary
    queue: int
    in_flight: int
    limit: float | None
    cpu: float | None


class History:
    """The last minutes, a step each."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=KEPT)

    def add(self, entry: Entry) -> None:
        """Take the newest step."""
        self._entries.append(entry)

    def since(self, at: float) -> dict[str, Any]:
        """The steps after this time in unix seconds, as columns."""
        entries = [entry for entry in self._entries if entry.at > at]
        columns: dict[str, Any] = {"step": STEP, "at": [entry.at for entry in entries]}
        for name in ("rate", "refused", "failed", "p50", "p95", "p99"):
            columns[name] = [getattr(entry.traffic, name) for entry in entries]
        for name in ("queue", "in_flight", "limit", "cpu"):
            columns[name] = [getattr(entry, name) for entry in entries]
        return columns


class Monitor:
    """Looks, and keeps what was seen."""

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: Engine, traffic: Traffic, fleet: Fleet) -> None:
        self._loop = loop
        self._engine = engine
        self._traffic = traffic
        self.host: Host | None = None
        self.history = History()
        self.lag = 0.0
        """Seconds by which the supervisor's loop was late, at most, in the last step."""
        self._late = 0.0
        self._usage: dict[int, Usage] = {}
        self._fleet = fleet
        self._recycler = fleet.recycler(lambda pid: None if (usage := self.usage(pid)) is None else usage.rss)
        self._executor = ThreadPoolExecutor(1, "penstock-monitor")
        self._sampler = Sampler()
        self._sampling: asyncio.Task[None] | None = None
        self._blind = False
        """The last sampling failed, which was logged."""
        self._beat: asyncio.TimerHandle | None = None
        self._stepped = time.monotonic()

    def start(self) -> None:
        """Look from now on, and recycle workers."""
        self._turn(time.monotonic())

    def usage(self, pid: int) -> Usage | None:
        """What a process used at the last sample; None if it was not there yet."""
        return self._usage.get(pid)

    def _turn(self, asked: float) -> None:
        now = time.monotonic()
        self._late = max(self._late, now - asked)
        self._beat = self._loop.call_later(HEARTBEAT, self._turn, now + HEARTBEAT)
        if now - self._stepped >= STEP - HEARTBEAT / 2:
            self._stepped = now
            self._step(now)
        self._recycler.check(now)

    def _step(self, now: float) -> None:
        self.lag, self._late = self._late, 0.0
        self._traffic.tick(now)
        scheduler = self._engine.scheduler
        cpu = None if self.host is None else self.host.cpu
        limit = call_limit(self._engine.scheduler)
        summary = self._traffic.summary(1)
        self.history.add(Entry(time.time(), summary, scheduler.backlog.requests, scheduler.in_flight, limit, cpu))
        if self._sampling is None or self._sampling.done():
            self._sampling = self._loop.create_task(self._sample())

    async def _sample(self) -> None:
        pids = [os.getpid(), *self._fleet.pids()]
        try:
            chosen = [pid for pid in pids if pid]
            self._usage, self.host = await self._loop.run_in_executor(self._executor, self._sampler.sample, chosen)
            self._blind = False
        except Exception as error:
            # It is tried again every second. A host that is short of something is no error of the program.
            if not self._blind:
                log.error("resource sampling failed: %s", error, exc_info=not isinstance(error, OSError))
            self._blind = True

    def close(self) -> None:
        """Look no more. May be called without ``start``."""
        if self._beat is not None:
            self._beat.cancel()
        if self._sampling is not None:
            self._sampling.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)


def loop_lag(vitals: Vitals, now: float) -> tuple[float, float]:
    """By how many seconds a worker's loop was late at its last turn, and how long ago that was.

    A turn that is overdue by more than that counts already: a loop that hangs is late for as long as it does.
    """
    turned = max(0.0, now - vitals.turned_at) if vitals.turned_at else 0.0
    return max(vitals.lag, turned - HEARTBEAT), turned
