"""The generator of load: closed loops (so many clients) and open loops (so many requests a second).

In an open loop a request is due when the schedule says, whether or not the server keeps up, and its latency counts from
that moment: a server that stalls cannot hide the requests that it delayed (coordinated omission). By how much the
generator itself was late is measured too, so that a starved generator is seen and not taken for a slow server.

How it is built: the generator shares the machine with what it measures, so a request has to be cheap. There is no task
and no future for a request: a connection's ``data_received`` records the answer and writes the next request. Open loops
are woken by a timerfd, since the event loop's own timers know only whole milliseconds. Whatever happens to a request
is one row of a ``Series``; phases, sources and retries are looked at afterwards.

``run_apart(spec)`` runs a ``Spec`` in a process of its own and returns its ``Report``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from bench.connection import NO_ANSWER, NO_CONNECTION, RESET, Connection, Flow, Request, code_of
from bench.series import Report, percentile, unpack
from bench.spec import Spec

ROOT: Final = Path(__file__).parents[1]
"""Where ``bench`` is imported from."""

_SWEEP: Final = 0.05
"""Seconds between two looks for requests whose patience is over."""
_RECONNECT: Final = 0.05
"""Seconds that a client of a closed loop waits after a refused connection."""


class _TimeSpec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class _Alarm:
    """A timer with the clock's precision: Linux's timerfd (in ``os`` from Python 3.13 on)."""

    _libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._fd = int(self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        loop.add_reader(self._fd, self._ring)

    def set(self, at: float) -> None:
        """Ring at this moment (``time.monotonic``); at once if it is past."""
        seconds = int(at)
        spec = _TimeSpec(0, 0, seconds, max(1, int((at - seconds) * 1e9)))
        absolute = 1
        if self._libc.timerfd_settime(self._fd, absolute, ctypes.byref(spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def _ring(self) -> None:
        os.read(self._fd, 8)
        self._callback()

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


class Generator:
    """Runs one spec, once."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._names: list[str] = []
        self._codes: dict[str, int] = {}
        self._sources: list[str] = []
        self._flows = [Flow(each, spec, self._names, self._sources) for each in spec.populations]
        self._idle: list[list[Connection]] = [[] for _ in self._sources]
        self._busy: set[Connection] = set()
        self._late = array("d")
        self._started = 0.0
        self._pending = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._done = self._loop.create_future()

    async def run(self) -> Report:
        """Everything, to the last answer. Raises OSError if the server is not there at the start."""
        for flow in self._flows:
            await self._prepare(flow)
        begun_cpu = time.process_time()
        self._started = time.monotonic() + 0.01
        alarms = [self._launch(flow) for flow in self._flows]
        sweeper = self._loop.call_later(_SWEEP, self._sweep)
        try:
            await self._done
        finally:
            sweeper.cancel()
            for alarm in alarms:
                alarm.close()
            for idle in self._idle:
                for connection in idle:
                    connection.give_up(RESET)
        late = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        return Report(
            {name: series for flow in self._flows for name, series in flow.series.items()},
            self._spec.seconds,
            {name: percentile(self._late, part) for name, part in late.items()},
            time.process_time() - begun_cpu,
            self._started,
        )

    def _now(self) -> float:
        return time.monotonic() - self._started

    # Beginning and ending

    async def _prepare(self, flow: Flow) -> None:
        """Open the connections beforehand: all of a closed loop, a few of an open one."""
        number = flow.population.clients or 8
        for count in range(max(number, len(flow.sources))):
            source = flow.sources[count % len(flow.sources)]
            self._idle[source].append(await self._open(source))

    def _launch(self, flow: Flow) -> _Alarm:
        """Set a population going when its time comes. What is under way counts in ``_pending``."""
        self._pending += 1
        if not flow.population.clients:
            return self._open_loop(flow)

        def begin() -> None:
            for number in range(flow.population.clients):
                self._pending += 1
                self._again(flow, flow.sources[number % len(flow.sources)], self._now())
            self._over()

        alarm = _Alarm(self._loop, begin)
        alarm.set(self._started + flow.begin)
        return alarm

    def _open_loop(self, flow: Flow) -> _Alarm:
        moments = flow.arrivals()
        due = next(moments, None)

        def ring() -> None:
            nonlocal due
            now = self._now()
            while due is not None and due <= now:
                self._pending += 1
                self._start(flow.make(flow.next_source(), due))
                due = next(moments, None)
            if due is None:
                self._over()
            else:
                alarm.set(self._started + due)

        alarm = _Alarm(self._loop, ring)
        alarm.set(self._started + (due or 0.0))
        return alarm

    def _over(self) -> None:
        self._pending -= 1
        if not self._pending and not self._done.done():
            self._done.set_result(None)

    # A request

    def _again(self, flow: Flow, source: int, now: float) -> None:
        """The next request of a client in a closed loop, if there is time."""
        if now < flow.end:
            self._start(flow.make(source, now))
        else:
            self._over()

    def _start(self, request: Request) -> None:
        idle = self._idle[request.source]
        while idle:
            connection = idle.pop()
            if not connection.closed:
                self._send(connection, request)
                return
        task = self._loop.create_task(self._connect(request))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, request: Request) -> None:
        try:
            connection = await self._open(request.source)
        except OSError:
            self._record(request, NO_CONNECTION, self._now())
            self._loop.call_later(_RECONNECT, self._next, request)
            return
        self._send(connection, request)

    async def _open(self, source: int) -> Connection:
        address = self._sources[source]
        _, connection = await self._loop.create_connection(
            lambda: Connection(self._finished),
            self._spec.host,
            self._spec.port,
            local_addr=(address, 0) if address else None,
        )
        return connection

    def _send(self, connection: Connection, request: Request) -> None:
        if not request.flow.population.clients:
            self._late.append(self._now() - request.due)
        self._busy.add(connection)
        connection.send(request)

    def _finished(self, connection: Connection, request: Request, outcome: str) -> None:
        now = self._now()
        self._busy.discard(connection)
        if not connection.closed:
            self._idle[request.source].append(connection)
        self._record(request, outcome, now)
        if connection.retry_after >= 0 and outcome[0] in "45" and request.attempt < request.flow.population.retries:
            self._loop.call_later(connection.retry_after, self._retry, request, now + connection.retry_after)
        else:
            self._next(request, now)

    def _retry(self, request: Request, due: float) -> None:
        self._start(
            Request(request.flow, request.source, due, request.data, request.series, request.attempt + 1),
        )

    def _next(self, request: Request, now: float | None = None) -> None:
        if request.flow.population.clients:
            self._again(request.flow, request.source, self._now() if now is None else now)
        else:
            self._over()

    def _record(self, request: Request, outcome: str, now: float) -> None:
        code = self._codes.get(outcome)
        if code is None:
            code = self._codes[outcome] = code_of(outcome, self._names)
        request.series.add(request.due, now - request.due, code, request.source, request.attempt)

    def _sweep(self) -> None:
        now = self._now()
        for connection in list(self._busy):
            request = connection.request
            if request is not None and now > request.due + request.flow.population.patience:
                connection.give_up(NO_ANSWER)
        if not self._done.done():
            self._loop.call_later(_SWEEP, self._sweep)


def run(spec: Spec) -> Report:
    """Run in this process. Raises OSError if the server is not there."""
    with contextlib.suppress(ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def main() -> Report:
        return await Generator(spec).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def run_apart(spec: Spec) -> Report:
    """Run in a process of its own, so that the generator's CPU time is not the caller's."""
    command = [sys.executable, "-m", "bench.load", "--spec", "-", "--packed"]
    done = subprocess.run(command, input=msgspec.json.encode(spec), stdout=subprocess.PIPE, check=True, cwd=ROOT)
    return unpack(done.stdout)
