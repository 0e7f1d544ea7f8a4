"""Stacks and recordings of workers, and of the supervisor itself, for people who ask.

Bounded in every way: whoever asks for a process's stacks while they are being read gets the same ones, so there is at
most one py-spy for that; recordings are one at a time for each process, ``RECORDINGS`` in all, and at most ``LONGEST``
seconds long. A recording ends when the one who waits for it is cancelled, which the front does when the client goes,
and when the daemon ends.

Expected refusals are values, as everywhere. Names are the workers' and ``SUPERVISOR``, which no worker can have.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import msgspec

from penstock.ipc.ptrace import NOBODY, allow_tracer

from ..core.health import Health
from ..core.refusals import Problem, Refusal
from ..fleet.backend import Inspectable
from ..fleet.views import CallView, WorkerView
from ..host import pyspy

SUPERVISOR: Final = "supervisor"
"""The name of the supervisor's own process."""

RECORDINGS: Final = 3
"""Recordings at once; each takes some percent of a core."""

SHORTEST: Final = 0.1
LONGEST: Final = 60.0
"""Seconds that a recording may take."""

DUMP_TIMEOUT: Final = 5.0
"""Seconds that py-spy may take for stacks that people ask for."""

NOT_SOON: Final = 60.0
"""Seconds after which to try again where nothing changes by itself."""


class Stack(msgspec.Struct, frozen=True):
    """What a process is doing."""

    worker: str
    pid: int
    health: str
    standstill: float
    """Seconds that its loop has not turned for; 0 while it turns."""
    stopped: bool
    """By a signal."""
    calls: list[CallView]
    threads: list[pyspy.Thread]

    def text(self) -> str:
        """For people: the calls from the supervisor's books, then the threads in py-spy's form."""
        head = f"{self.worker} (pid {self.pid}): " + self._state()
        lines = [head]
        if self.calls:
            count = len(self.calls)
            lines += ["", f"{count} {'call' if count == 1 else 'calls'} in flight:", *map(_line, self.calls)]
        elif self.worker != SUPERVISOR:
            lines += ["", "no call in flight"]
        return "\n".join([*lines, "", *map(str, self.threads), ""])

    def _state(self) -> str:
        if self.stopped:
            return f"stopped by a signal; `kill -CONT {self.pid}` lets it go on"
        if self.health in (Health.LATE, Health.STUCK):
            return f"{self.health}, its loop has not turned for {self.standstill:.1f} s"
        return "its loop turns" if self.health else "it is not serving"


def _line(call: CallView) -> str:
    left = f"{call.remaining:.1f} s left" if call.remaining >= 0 else f"{-call.remaining:.1f} s past its deadline"
    what = {
        "waiting": f"waits {call.since:.1f} s for a thread or a connection",
        "running": f"runs {call.since:.1f} s",
        "awaiting": f"runs {call.since:.1f} s, and awaits something: it is on no stack",
    }[call.state]
    told = ", was told to end" if call.cancelled else ""
    return f"    {call.agent}  {call.kind}, {what}; {left}{told}  [request {call.request_id}]"


class Workers(Protocol):
    """What is asked of the fleet."""

    def worker(self, name: str) -> WorkerView | None:
        """The worker of that name."""

    def calls(self, name: str) -> list[CallView]:
        """Its calls."""

    def inspectable(self, name: str) -> Inspectable | None:
        """Its process, if there is one that can be inspected."""


class Own:
    """The supervisor's own process."""

    async def stacks(self, timeout: float, *, nonblocking: bool = False) -> list[pyspy.Thread]:
        return await pyspy.dump(os.getpid(), timeout, nonblocking)

    async def record(self, seconds: float, form: str) -> pyspy.Recording:
        return await pyspy.record(os.getpid(), seconds, form)

    def is_stopped(self) -> bool:
        return pyspy.is_stopped(os.getpid())


class Profiler:
    """Looks into the processes of the daemon."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._dumps: dict[tuple[str, int], asyncio.Task[list[pyspy.Thread]]] = {}
        self._recordings: dict[str, float] = {}
        """When each that runs will be over, by name."""
        self._waiting: set[asyncio.Task[pyspy.Recording]] = set()
        self._looking_at_self = 0
        self._closed = False

    async def stack(self, name: str) -> Stack | Refusal | None:
        """What a process is doing now. None: there is none of that name."""
        found = self._process(name)
        if not isinstance(found, tuple):
            return found
        process, pid = found
        try:
            threads = await self._threads(name, process, pid)
        except pyspy.SpyError as error:
            return _failed(name, error)
        except asyncio.CancelledError:
            if not self._closed:
                raise
            return _stopping()
        stopped = process.is_stopped()
        view = self._workers.worker(name)
        health = Health.HEALTHY if name == SUPERVISOR else "" if view is None else view.health
        standstill = 0.0 if view is None else view.standstill
        calls = self._workers.calls(name) if view is not None and view.health else []
        return Stack(
            worker=name,
            pid=pid,
            health=health,
            standstill=standstill,
            stopped=stopped,
            calls=calls,
            threads=threads,
        )

    async def record(self, name: str, seconds: float, form: str) -> pyspy.Recording | Refusal | None:
        """Record where a process spends its time. ``form`` is one of ``pyspy.FORMATS``."""
        found = self._process(name)
        if not isinstance(found, tuple):
            return found
        busy = self._busy(name)
        if busy is not None:
            return busy
        self._recordings[name] = time.monotonic() + seconds
        task = self._loop.create_task(self._record(name, found[0], seconds, form))
        self._waiting.add(task)
        try:
            return await task
        except pyspy.SpyError as error:
            return _failed(name, error)
        except asyncio.CancelledError:
            if not self._closed:
                raise
            return _stopping()
        finally:
            self._waiting.discard(task)
            del self._recordings[name]

    async def _record(self, name: str, process: Inspectable, seconds: float, form: str) -> pyspy.Recording:
        with self._permission(name):
            return await process.record(seconds, form)

    def close(self) -> None:
        """End what runs; who waits for it is told."""
        self._closed = True
        for task in [*self._waiting, *self._dumps.values()]:
            task.cancel()

    def _process(self, name: str) -> tuple[Inspectable, int] | Refusal | None:
        """A process and its pid; why it cannot be inspected; None: there is none of that name."""
        if self._closed:
            return _stopping()
        if name == SUPERVISOR:
            return Own(), os.getpid()
        view = self._workers.worker(name)
        if view is None:
            return None
        if not view.pid:
            return Refusal(Problem.UNAVAILABLE, f"the worker {name} has no process now, it is {view.state.value}")
        process = self._workers.inspectable(name)
        if process is None:
            return Refusal(Problem.UNAVAILABLE, f"the worker {name} runs where it cannot be inspected", NOT_SOON)
        return process, view.pid

    def _busy(self, name: str) -> Refusal | None:
        """Why there can be no recording now."""
        now = time.monotonic()
        ends = self._recordings.get(name)
        if ends is not None:
            detail = f"a recording of {name} is running, and a process has at most one at a time"
            return Refusal(Problem.OVERLOADED, detail, max(1.0, ends - now))
        if len(self._recordings) >= RECORDINGS:
            detail = f"{RECORDINGS} recordings are running ({', '.join(self._recordings)}), which is the limit"
            return Refusal(Problem.OVERLOADED, detail, max(1.0, min(self._recordings.values()) - now))
        return None

    async def _threads(self, name: str, process: Inspectable, pid: int) -> list[pyspy.Thread]:
        """The stacks of a process, from a capture that may be under way already."""
        task = self._dumps.get((name, pid))
        if task is None:
            task = self._dumps[name, pid] = self._loop.create_task(self._dump(name, process))
            task.add_done_callback(lambda _: self._dumps.pop((name, pid)))
        return await asyncio.shield(task)

    async def _dump(self, name: str, process: Inspectable) -> list[pyspy.Thread]:
        with self._permission(name):
            # Beside a recording, which stops the process at each sample, a second one could not.
            return await process.stacks(DUMP_TIMEOUT, nonblocking=name in self._recordings)

    @contextmanager
    def _permission(self, name: str) -> Iterator[None]:
        """Let our children trace us, as long as they do. Workers let them all the time."""
        if name != SUPERVISOR:
            yield
            return
        self._looking_at_self += 1
        allow_tracer(os.getpid())
        try:
            yield
        finally:
            self._looking_at_self -= 1
            if not self._looking_at_self:
                allow_tracer(NOBODY)


def _stopping() -> Refusal:
    return Refusal(Problem.UNAVAILABLE, "the daemon is stopping")


def _failed(name: str, error: pyspy.SpyError) -> Refusal:
    return Refusal(Problem.UNAVAILABLE, f"{name} cannot be inspected: {error}", NOT_SOON)
