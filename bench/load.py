"""Load on an HTTP server: closed loops (so many clients) and open loops (so many requests a second), and what became of it.

In an open loop a request is due when the schedule says, whether or not the server keeps up, and its latency counts from
that moment: a server that stalls cannot hide the requests that it delayed (coordinated omission). By how much the
generator itself was late is measured too, so that a starved generator is seen and not taken for a slow server.

As a command, for one agent or for a whole ``Spec`` written as JSON:

    python -m bench.load --url http://127.0.0.1:8080 --agent echo --body '{}' --clients 10 --seconds 5
    python -m bench.load --url http://127.0.0.1:8080 --agent echo --body '{}' --rate 500 --seconds 5
    python -m bench.load --url http://127.0.0.1:8080 --spec mix.json

As a library: ``run_apart(spec)`` runs a ``Spec`` in a process of its own and returns its ``Report``.

How it is built: the generator shares the machine with what it measures, so a request has to be cheap. There is no task
and no future for a request: a connection's ``data_received`` records the answer and writes the next request. Open loops
are woken by a timerfd, since the event loop's own timers know only whole milliseconds. Whatever happens to a request
is one row of a ``Series``; phases, sources and retries are looked at afterwards. This module imports none of its
neighbours, so that it can be used from anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import math
import os
import random
import resource
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

RESET: Final = "reset"
"""Outcome: the connection ended before the answer did."""
NO_ANSWER: Final = "no answer"
"""Outcome: the client's patience was over."""
NO_CONNECTION: Final = "no connection"
"""Outcome: the server did not take the connection."""
NOT_HTTP: Final = "not HTTP"
"""Outcome: the answer could not be read."""

ROOT: Final = Path(__file__).parents[1]
"""Where ``bench`` is imported from."""

_SWEEP: Final = 0.05
"""Seconds between two looks for requests whose patience is over."""
_RECONNECT: Final = 0.05
"""Seconds that a client of a closed loop waits after a refused connection."""


# What is to be done


class Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of request in a mix."""

    agent: str
    body: str = "{}"
    weight: float = 1.0
    headers: dict[str, str] = {}
    label: str = ""
    """What the report calls it; empty: the agent's name."""


class Population(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Clients that behave alike. With ``clients`` a closed loop; with ``rate`` or ``steps`` an open one."""

    name: str
    kinds: list[Kind]
    clients: int = 0
    rate: float = 0.0
    """Requests a second of all of them together."""
    steps: list[tuple[float, float]] = []
    """Instead of ``rate``: (seconds, requests a second), one after another."""
    sources: list[str] = []
    """Local addresses that they come from in turn: what the server takes for a client's identity. Empty: any."""
    begin: float = 0.0
    end: float | None = None
    """Seconds from the start of the run; None: its end."""
    even: bool = False
    """Open loop: evenly spaced. Otherwise at random (Poisson)."""
    retries: int = 0
    """How often a refusal with Retry-After is obeyed: the same request again, so many seconds later."""
    patience: float = 10.0
    """Seconds from the moment a request is due after which the client gives up and cuts the connection."""


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole run."""

    host: str
    port: int
    populations: list[Population]
    seconds: float
    seed: int = 1


def arrivals(steps: Iterable[tuple[float, float]], even: bool, rng: random.Random) -> Iterator[float]:
    """The moments of an open loop, in seconds from its start. ``steps``: (seconds, requests a second), in order."""
    begin = 0.0
    for seconds, rate in steps:
        if even:
            yield from (begin + number / rate for number in range(math.ceil(seconds * rate - 1e-9)))
        elif rate > 0:
            # Poisson arrivals know no past, so each step may start anew.
            at = begin + rng.expovariate(rate)
            while at < begin + seconds:
                yield at
                at += rng.expovariate(rate)
        begin += seconds


# What became of it


def percentile(values: Iterable[float], part: float) -> float:
    """The smallest value that at least ``part`` (0 to 1) of all do not exceed; NaN of none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(part * len(ordered) - 1e-9) - 1)]


def jain(values: Iterable[float]) -> float:
    """Jain's fairness index: 1 if all are equal, 1/n if one has everything; NaN of none or of zeros only."""
    shares = list(values)
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else math.nan


class Series:
    """What became of requests: a row each, kept in columns.

    Every try is a row of its own, due when it was due: ``attempts`` is 0 for the first and counts the retries. All times
    are seconds; ``due`` counts from the start of the run. ``names`` and ``sources`` are the texts that the codes in
    ``outcome`` and ``source`` stand for, shared by all series of a report.
    """

    __slots__ = ("attempts", "due", "names", "outcome", "source", "sources", "took")

    def __init__(self, names: list[str], sources: list[str]) -> None:
        self.names = names
        self.sources = sources
        self.due = array("d")
        self.took = array("d")
        self.outcome = array("H")
        self.source = array("H")
        self.attempts = array("B")

    def __len__(self) -> int:
        return len(self.due)

    def add(self, due: float, took: float, outcome: int, source: int, attempt: int) -> None:
        """Append a row."""
        self.due.append(due)
        self.took.append(took)
        self.outcome.append(outcome)
        self.source.append(source)
        self.attempts.append(attempt)

    def between(self, begin: float, end: float = math.inf) -> Series:
        """The rows that were due in this time (its end not included)."""
        return self._where(lambda row: begin <= self.due[row] < end)

    def of_source(self, source: str) -> Series:
        """The rows of one local address."""
        return self._where(lambda row: self.sources[self.source[row]] == source)

    def _where(self, wanted: Callable[[int], bool]) -> Series:
        chosen = Series(self.names, self.sources)
        for row in range(len(self)):
            if wanted(row):
                chosen.add(self.due[row], self.took[row], self.outcome[row], self.source[row], self.attempts[row])
        return chosen

    def extend(self, other: Series) -> None:
        """Append all rows of another series of the same report."""
        for column in ("due", "took", "outcome", "source", "attempts"):
            getattr(self, column).extend(getattr(other, column))

    def outcomes(self) -> Counter[str]:
        """How many rows ended how: ``200``, ``503 overloaded``, ``no answer``."""
        return Counter({self.names[code]: count for code, count in Counter(self.outcome).items()})

    def latencies(self) -> list[float]:
        """Of the 2xx answers, from the moment that they were due."""
        fine = self._fine()
        return [took for took, outcome in zip(self.took, self.outcome, strict=True) if outcome in fine]

    def ages(self) -> list[float]:
        """Of the answers that are not 2xx: how long the client waited for its refusal."""
        refused = {code for code, name in enumerate(self.names) if name[0] in "345"}
        return [took for took, outcome in zip(self.took, self.outcome, strict=True) if outcome in refused]

    def good(self, limit: float) -> int:
        """2xx answers within so many seconds of the moment that they were due."""
        return sum(took <= limit for took in self.latencies())

    def good_by_source(self, limit: float) -> dict[str, int]:
        """The good answers of each local address that sent anything, those with none included."""
        fine = self._fine()
        counts = dict.fromkeys((self.sources[code] for code in sorted(set(self.source))), 0)
        for took, outcome, source in zip(self.took, self.outcome, self.source, strict=True):
            counts[self.sources[source]] += outcome in fine and took <= limit
        return counts

    def throughput(self, begin: float, end: float) -> float:
        """2xx answers a second that arrived in this time."""
        fine = self._fine()
        rows = zip(self.due, self.took, self.outcome, strict=True)
        return sum(outcome in fine and begin <= due + took < end for due, took, outcome in rows) / (end - begin)

    def progress(self, begin: float, end: float) -> float:
        """2xx answers a second, those that were under way for only a part of this time counted as that part.

        Unlike ``throughput`` it is not misled by calls that are long beside the time looked at.
        """
        fine = self._fine()
        done = 0.0
        for due, took, outcome in zip(self.due, self.took, self.outcome, strict=True):
            if outcome in fine and took > 0:
                done += max(0.0, min(end, due + took) - max(begin, due)) / took
        return done / (end - begin)

    def comebacks(self) -> tuple[int, int]:
        """How many came back once after a refusal as Retry-After said, and how many of those got in."""
        fine = self._fine()
        first = [outcome for outcome, attempt in zip(self.outcome, self.attempts, strict=True) if attempt == 1]
        return len(first), sum(outcome in fine for outcome in first)

    def _fine(self) -> set[int]:
        return {code for code, name in enumerate(self.names) if name[0] == "2"}

    def pack(self) -> list[bytes]:
        """The columns as bytes."""
        return [column.tobytes() for column in (self.due, self.took, self.outcome, self.source, self.attempts)]

    def unpack(self, columns: Sequence[bytes]) -> None:
        """Take over packed columns."""
        for column, packed in zip((self.due, self.took), columns[:2], strict=True):
            column.frombytes(packed)
        for codes, packed in zip((self.outcome, self.source, self.attempts), columns[2:], strict=True):
            codes.frombytes(packed)


class Report(msgspec.Struct):
    """The series by ``population/kind``, and how the generator did."""

    series: dict[str, Series]
    seconds: float
    late: dict[str, float]
    """Seconds by which the generator sent later than due: ``p50``, ``p99``, ``max``; NaN without an open loop."""
    cpu: float
    """CPU seconds of the generator."""
    started: float
    """When the run began, by ``time.monotonic``, which is the same in all processes of a machine."""

    def all(self) -> Series:
        """Everything together."""
        return self.only("")

    def only(self, prefix: str) -> Series:
        """All series whose name begins so: ``"polite/"`` is everything of one population."""
        total = Series([], [])
        for name, each in self.series.items():
            total.names, total.sources = each.names, each.sources
            if name.startswith(prefix):
                total.extend(each)
        return total


class _Packed(msgspec.Struct):
    """A report on its way between processes."""

    names: list[str]
    sources: list[str]
    series: dict[str, list[bytes]]
    seconds: float
    late: dict[str, float]
    cpu: float
    started: float


def pack(report: Report) -> bytes:
    """A report as bytes, for ``unpack``."""
    whole = report.all()
    series = {name: each.pack() for name, each in report.series.items()}
    packed = _Packed(whole.names, whole.sources, series, report.seconds, report.late, report.cpu, report.started)
    return msgspec.msgpack.encode(packed)


def unpack(data: bytes) -> Report:
    """What ``pack`` made."""
    packed = msgspec.msgpack.decode(data, type=_Packed)
    series: dict[str, Series] = {}
    for name, columns in packed.series.items():
        series[name] = Series(packed.names, packed.sources)
        series[name].unpack(columns)
    return Report(series, packed.seconds, packed.late, packed.cpu, packed.started)


# Doing it


class _Request:
    """One try, due so many seconds after the start of the run."""

    __slots__ = ("attempt", "data", "due", "flow", "series", "source")

    def __init__(self, flow: _Flow, source: int, due: float, data: bytes, series: Series, attempt: int) -> None:
        self.flow = flow
        self.source = source
        self.due = due
        self.data = data
        self.series = series
        self.attempt = attempt


class _Flow:
    """One population at work."""

    def __init__(self, population: Population, spec: Spec, names: list[str], sources: list[str]) -> None:
        self.population = population
        self.begin = population.begin
        self.end = spec.seconds if population.end is None else min(population.end, spec.seconds)
        self.rng = random.Random(f"{spec.seed} {population.name}")
        self.sources = [_code(source, sources) for source in population.sources or [""]]
        self.series: dict[str, Series] = {}
        self._choices: list[tuple[bytes, Series]] = []
        for kind in population.kinds:
            label = f"{population.name}/{kind.label or kind.agent}"
            series = self.series.setdefault(label, Series(names, sources))
            self._choices.append((request_bytes(kind, spec.host, spec.port), series))
        self._weights = [kind.weight for kind in population.kinds]
        self._turn = 0

    def make(self, source: int, due: float) -> _Request:
        """The next request of the mix."""
        choices = self._choices
        data, series = choices[0] if len(choices) == 1 else self.rng.choices(choices, self._weights)[0]
        return _Request(self, source, due, data, series, 0)

    def next_source(self) -> int:
        """The sources in turn."""
        self._turn += 1
        return self.sources[self._turn % len(self.sources)]

    def arrivals(self) -> Iterator[float]:
        """The moments of an open loop, from the start of the run."""
        length = max(0.0, self.end - self.begin)
        steps = self.population.steps or [(length, self.population.rate)]
        for at in arrivals(steps, self.population.even, self.rng):
            if at >= length:
                return
            yield self.begin + at


def _code(text: str, texts: list[str]) -> int:
    """The number of a text in a growing list."""
    try:
        return texts.index(text)
    except ValueError:
        texts.append(text)
        return len(texts) - 1


def request_bytes(kind: Kind, host: str, port: int) -> bytes:
    """The whole request."""
    body = kind.body.encode()
    headers = "".join(f"{name}: {value}\r\n" for name, value in kind.headers.items())
    head = (
        f"POST /v1/agents/{kind.agent} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


class _Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request on its way. Tells ``finished`` what became of each."""

    __slots__ = ("_body", "_finished", "_head", "_missing", "_status", "closed", "request", "retry_after", "transport")

    def __init__(self, finished: Callable[[_Connection, _Request, str], None]) -> None:
        self._finished = finished
        self._head = b""
        self._body = b""
        self._missing = -1
        self._status = ""
        self.retry_after = -1.0
        self.request: _Request | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is not a subclass of asyncio's

    def send(self, request: _Request) -> None:
        assert self.transport is not None
        self.request = request
        self.transport.write(request.data)

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            if self._head:
                data = self._head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._head = data
                return
            self._head = b""
            if not self._read_head(data[: end + 2].lower()):
                self.give_up(NOT_HTTP)
                return
            data = data[end + 4 :]
        self._missing -= len(data)
        if self._status[0] != "2":
            self._body += data
        if self._missing <= 0:
            self._answered()

    def _read_head(self, head: bytes) -> bool:
        at = head.find(b"\r\ncontent-length: ")
        if not head.startswith(b"http/1.1 ") or self.request is None:
            return False
        self._status = head[9:12].decode()
        if at < 0 and self._status != "204":
            return False
        self._missing = int(head[at + 18 : head.find(b"\r", at + 18)]) if at >= 0 else 0
        self.retry_after = -1.0
        if self._status[0] != "2":
            at = head.find(b"\r\nretry-after: ")
            if at >= 0:
                self.retry_after = float(head[at + 15 : head.find(b"\r", at + 15)])
        self.closed = head.find(b"\r\nconnection: close") >= 0
        return True

    def _answered(self) -> None:
        request, self.request = self.request, None
        outcome = self._status
        if self._body:
            outcome = _name(outcome, self._body)
            self._body = b""
        self._missing = -1
        if self.closed and self.transport is not None:
            self.transport.close()
        if request is not None:
            self._finished(self, request, outcome)

    def give_up(self, outcome: str) -> None:
        """End the request on its way like this, and the connection."""
        self.closed = True
        if self.transport is not None:
            self.transport.abort()
        request, self.request = self.request, None
        if request is not None:
            self._finished(self, request, outcome)

    def connection_lost(self, error: Exception | None) -> None:
        self.give_up(RESET)


def _name(status: str, body: bytes) -> str:
    """``503 overloaded`` where the body is one of the problems, else the status."""
    try:
        problem = json.loads(body)["type"]
    except (ValueError, KeyError, TypeError):
        return status
    return f"{status} {str(problem).rpartition(':')[2]}"


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
        self._flows = [_Flow(each, spec, self._names, self._sources) for each in spec.populations]
        self._idle: list[list[_Connection]] = [[] for _ in self._sources]
        self._busy: set[_Connection] = set()
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

    async def _prepare(self, flow: _Flow) -> None:
        """Open the connections beforehand: all of a closed loop, a few of an open one."""
        number = flow.population.clients or 8
        for count in range(max(number, len(flow.sources))):
            source = flow.sources[count % len(flow.sources)]
            self._idle[source].append(await self._open(source))

    def _launch(self, flow: _Flow) -> _Alarm:
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

    def _open_loop(self, flow: _Flow) -> _Alarm:
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

    def _again(self, flow: _Flow, source: int, now: float) -> None:
        """The next request of a client in a closed loop, if there is time."""
        if now < flow.end:
            self._start(flow.make(source, now))
        else:
            self._over()

    def _start(self, request: _Request) -> None:
        idle = self._idle[request.source]
        while idle:
            connection = idle.pop()
            if not connection.closed:
                self._send(connection, request)
                return
        task = self._loop.create_task(self._connect(request))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, request: _Request) -> None:
        try:
            connection = await self._open(request.source)
        except OSError:
            self._record(request, NO_CONNECTION, self._now())
            self._loop.call_later(_RECONNECT, self._next, request)
            return
        self._send(connection, request)

    async def _open(self, source: int) -> _Connection:
        address = self._sources[source]
        _, connection = await self._loop.create_connection(
            lambda: _Connection(self._finished),
            self._spec.host,
            self._spec.port,
            local_addr=(address, 0) if address else None,
        )
        return connection

    def _send(self, connection: _Connection, request: _Request) -> None:
        if not request.flow.population.clients:
            self._late.append(self._now() - request.due)
        self._busy.add(connection)
        connection.send(request)

    def _finished(self, connection: _Connection, request: _Request, outcome: str) -> None:
        now = self._now()
        self._busy.discard(connection)
        if not connection.closed:
            self._idle[request.source].append(connection)
        self._record(request, outcome, now)
        if connection.retry_after >= 0 and outcome[0] in "45" and request.attempt < request.flow.population.retries:
            self._loop.call_later(connection.retry_after, self._retry, request, now + connection.retry_after)
        else:
            self._next(request, now)

    def _retry(self, request: _Request, due: float) -> None:
        self._start(
            _Request(request.flow, request.source, due, request.data, request.series, request.attempt + 1),
        )

    def _next(self, request: _Request, now: float | None = None) -> None:
        if request.flow.population.clients:
            self._again(request.flow, request.source, self._now() if now is None else now)
        else:
            self._over()

    def _record(self, request: _Request, outcome: str, now: float) -> None:
        code = self._codes.get(outcome)
        if code is None:
            code = self._codes[outcome] = _code(outcome, self._names)
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


# Showing it


def table(rows: list[list[Any]]) -> str:
    """Rows of cells, the first the heading, as text in columns."""
    texts = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in texts]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


PARTS: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def milliseconds(series: Series, *parts: str) -> list[float]:
    """These percentiles (names in ``PARTS``) of the latencies of the 2xx answers, in milliseconds."""
    ordered = sorted(series.latencies())
    return [round(percentile(ordered, PARTS[part]) * 1e3, 3) for part in parts]


def others(series: Series) -> str:
    """The outcomes that are not 2xx, as text; ``-`` if there are none."""
    found = sorted(series.outcomes().items())
    return ", ".join(f"{count} x {what}" for what, count in found if what[0] != "2") or "-"


def summary(report: Report) -> str:
    """The report as a table: milliseconds and counts."""
    rows: list[list[Any]] = [["load", "sent", "2xx", "2xx/s", *PARTS, "other"]]
    for name, each in sorted(report.series.items()):
        answers = len(each.latencies())
        rate = each.throughput(0.0, report.seconds)
        rows.append([name, len(each), answers, f"{rate:.0f}", *milliseconds(each, *PARTS), others(each)])
    late = ", ".join(f"{name} {value * 1e3:.2f} ms" for name, value in report.late.items() if not math.isnan(value))
    cost = report.cpu / max(1, len(report.all())) * 1e6
    text = f"{table(rows)}\ngenerator: {report.cpu:.2f} s of CPU, {cost:.0f} µs a request"
    return f"{text}; late {late}" if late else text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--agent", default="echo")
    parser.add_argument("--body", default="{}", help="JSON")
    parser.add_argument("--clients", type=int, default=10, help="a closed loop of so many (default)")
    parser.add_argument("--rate", type=float, help="requests a second: an open loop")
    parser.add_argument("--even", action="store_true", help="open loop: evenly spaced instead of at random")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--source", action="append", default=[], help="a local address to come from; may be repeated")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="may be repeated")
    parser.add_argument("--timeout", type=float, help="Request-Timeout of each request, in seconds")
    parser.add_argument("--retries", type=int, default=0, help="how often Retry-After is obeyed")
    parser.add_argument("--spec", metavar="FILE", help="a whole Spec as JSON, instead of all the above; - is stdin")
    parser.add_argument("--packed", action="store_true", help="write the report for a program, not for people")
    return parser.parse_args()


def _spec(options: argparse.Namespace) -> Spec:
    if options.spec:
        text = sys.stdin.buffer.read() if options.spec == "-" else Path(options.spec).read_bytes()
        return msgspec.json.decode(text, type=Spec)
    host, _, port = options.url.removeprefix("http://").strip("/").rpartition(":")
    pairs = [header.partition(":") for header in options.header]
    headers = {name.strip(): value.strip() for name, _, value in pairs}
    if options.timeout is not None:
        headers["Request-Timeout"] = f"{options.timeout:f}"
    population = Population(
        "load",
        [Kind(options.agent, options.body, headers=headers)],
        clients=0 if options.rate else options.clients,
        rate=options.rate or 0.0,
        even=options.even,
        sources=options.source,
        retries=options.retries,
    )
    return Spec(host, int(port), [population], options.seconds)


def main() -> int:
    """The command."""
    options = _options()
    try:
        report = run(_spec(options))
    except (OSError, ValueError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    if options.packed:
        # Not sys.stdout.buffer: with PYTHONUNBUFFERED that is the bare file, whose writes may be cut short.
        with open(sys.stdout.fileno(), "wb", closefd=False) as output:
            output.write(pack(report))
    else:
        print(summary(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
