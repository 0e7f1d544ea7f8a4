"""Load on an HTTP server: closed loop (so many clients) or open loop (so many requests a second).

In an open loop a request is due when the schedule says, whether or not the server keeps up, and its latency counts from
that moment: a server that stalls cannot hide the requests that it made late (coordinated omission; Gil Tene). What the
generator itself is late is measured and reported, so that a starved generator is seen.

As a command:

    python bench/load.py --url http://127.0.0.1:8080 --agent echo --body '{}' --clients 10 --seconds 5
    python bench/load.py --url http://127.0.0.1:8080 --agent echo --body '{}' --rate 500 --seconds 5

As a library: ``run_apart(spec)`` runs a ``Spec`` in a process of its own and returns a ``Report``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvloop

ABANDON = 10.0
"""Seconds after which a request without an answer is counted as lost."""


class Kind(msgspec.Struct, frozen=True):
    """One kind of request in a mix."""

    agent: str
    body: str
    weight: float = 1.0
    headers: dict[str, str] = {}


class Population(msgspec.Struct, frozen=True):
    """Clients that behave alike: ``clients`` in a closed loop, or ``rate`` requests a second in an open one."""

    name: str
    kinds: list[Kind]
    clients: int = 0
    rate: float = 0.0
    source: str = ""
    """The local address they come from: what the server takes for the client's identity. Empty: any."""
    begin: float = 0.0
    end: float = 1e9
    """Seconds from the start of the run."""
    limit: float = 0.5
    """Seconds within which an answer counts as good."""
    even: bool = False
    """Open loop: evenly spaced; otherwise at random (Poisson)."""
    retries: int = 0
    """So many times a refusal with Retry-After is obeyed."""


class Spec(msgspec.Struct, frozen=True):
    """A whole run."""

    host: str
    port: int
    populations: list[Population]
    seconds: float
    seed: int = 1
    warm_up: float = 0.0
    """Seconds at the start that are not counted."""
    buckets: float = 0.0
    """If above 0, outcomes are also counted for every so many seconds."""


@dataclass
class Series:
    """What became of the requests of one kind of one population."""

    latencies: list[float] = field(default_factory=list)
    """Seconds, of the 2xx answers."""
    refusal_ages: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    """``2xx``, the names of problems, ``lost``."""
    good: int = 0
    """2xx within the limit."""
    sent: int = 0
    timeline: dict[str, Counter[str]] = field(default_factory=dict)
    retried: int = 0
    admitted_on_retry: int = 0


@dataclass
class Report:
    """The series by ``population/agent``, and how the generator did."""

    series: dict[str, Series]
    seconds: float
    late_p99: float
    """Seconds by which the generator sent later than intended, 99th percentile."""
    cpu: float
    """CPU seconds of the generator."""

    def all(self) -> Series:
        """Everything together."""
        total = Series()
        for each in self.series.values():
            total.latencies += each.latencies
            total.refusal_ages += each.refusal_ages
            total.outcomes += each.outcomes
            total.good += each.good
            total.sent += each.sent
        return total


def percentile(values: list[float], part: float) -> float:
    """The smallest value that at least ``part`` (0 to 1) of all do not exceed; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def arrivals(rate: float, seconds: float, even: bool, rng: random.Random) -> list[float]:
    """The moments of an open loop, in seconds from its start."""
    if even:
        return [number / rate for number in range(int(rate * seconds))]
    moments: list[float] = []
    at = rng.expovariate(rate)
    while at < seconds:
        moments.append(at)
        at += rng.expovariate(rate)
    return moments


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way."""

    def __init__(self) -> None:
        self._data = b""
        self._need = -1
        self._status = 0
        self._problem = False
        self.retry_after = 0.0
        self.waiter: asyncio.Future[str] | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]

    def send(self, request: bytes, waiter: asyncio.Future[str]) -> None:
        assert self.transport is not None
        self.waiter = waiter
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        if self._need < 0:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            self._read_head(self._data[:end].lower())
            self._data = self._data[end + 4 :]
        if len(self._data) >= self._need:
            body, self._data, self._need = self._data[: self._need], self._data[self._need :], -1
            self._answer(body)

    def _read_head(self, head: bytes) -> None:
        self._status = int(head[9:12])
        at = head.find(b"content-length: ")
        self._need = int(head[at + 16 : head.find(b"\r", at) if head.find(b"\r", at) > 0 else None]) if at > 0 else 0
        self._problem = b"problem+json" in head
        at = head.find(b"retry-after: ")
        self.retry_after = float(head[at + 13 :].split(b"\r", 1)[0]) if at > 0 else 0.0
        self.closed = b"connection: close" in head

    def _answer(self, body: bytes) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is None or waiter.done():
            return
        if 200 <= self._status < 300:
            waiter.set_result("2xx")
        elif self._problem:
            waiter.set_result(json.loads(body)["type"].rpartition(":")[2])
        else:
            waiter.set_result(str(self._status))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result("lost")


class Generator:
    """Runs one spec."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._rng = random.Random(spec.seed)
        self._idle: dict[str, deque[Connection]] = {}
        self._late: list[float] = []
        self._started = 0.0
        self.series: dict[str, Series] = {}

    async def run(self) -> Report:
        """Everything, to the last answer."""
        begun = time.process_time()
        self._started = time.monotonic() + 0.05
        tasks: list[asyncio.Task[None]] = []
        for population in self._spec.populations:
            end = min(population.end, self._spec.seconds)
            if population.clients:
                tasks += [
                    self._loop.create_task(self._client(population, end, random.Random(self._rng.random())))
                    for _ in range(population.clients)
                ]
            else:
                tasks.append(self._loop.create_task(self._stream(population, end)))
        await asyncio.gather(*tasks)
        counted = self._spec.seconds - self._spec.warm_up
        return Report(self.series, counted, percentile(self._late, 0.99), time.process_time() - begun)

    async def _client(self, population: Population, end: float, rng: random.Random) -> None:
        requests = [(kind, self._request(kind)) for kind in population.kinds]
        weights = [kind.weight for kind in population.kinds]
        await asyncio.sleep(self._started + population.begin - time.monotonic())
        while time.monotonic() < self._started + end:
            kind, request = requests[0] if len(requests) == 1 else rng.choices(requests, weights)[0]
            await self._one(population, kind, request, time.monotonic())

    async def _stream(self, population: Population, end: float) -> None:
        requests = [(kind, self._request(kind)) for kind in population.kinds]
        weights = [kind.weight for kind in population.kinds]
        rng = random.Random(f"{self._spec.seed} {population.name}")
        flying: set[asyncio.Task[None]] = set()
        for at in arrivals(population.rate, end - population.begin, population.even, rng):
            due = self._started + population.begin + at
            wait = due - time.monotonic()
            if wait > 0.0005:
                await asyncio.sleep(wait)
            self._late.append(time.monotonic() - due)
            kind, request = requests[0] if len(requests) == 1 else rng.choices(requests, weights)[0]
            task = self._loop.create_task(self._one(population, kind, request, due))
            flying.add(task)
            task.add_done_callback(flying.discard)
        if flying:
            await asyncio.wait(set(flying))

    def _request(self, kind: Kind) -> bytes:
        body = kind.body.encode()
        headers = "".join(f"{name}: {value}\r\n" for name, value in kind.headers.items())
        head = (
            f"POST /v1/agents/{kind.agent} HTTP/1.1\r\nHost: {self._spec.host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        )
        return head.encode() + body

    async def _connection(self, source: str) -> Connection:
        idle = self._idle.setdefault(source, deque())
        while idle:
            connection = idle.popleft()
            if not connection.closed:
                return connection
        _, made = await self._loop.create_connection(
            Connection, self._spec.host, self._spec.port, local_addr=(source, 0) if source else None
        )
        return made

    async def _one(self, population: Population, kind: Kind, request: bytes, due: float) -> None:
        outcome, retry_after = await self._try(population, request)
        self._count(population, kind, outcome, due)
        tries = 0
        while tries < population.retries and retry_after > 0 and outcome in ("overloaded", "throttled", "unavailable"):
            tries += 1
            await asyncio.sleep(retry_after)
            outcome, retry_after = await self._try(population, request)
            series = self._series(population, kind)
            series.retried += 1
            series.admitted_on_retry += outcome not in ("overloaded", "throttled", "unavailable")

    async def _try(self, population: Population, request: bytes) -> tuple[str, float]:
        try:
            connection = await self._connection(population.source)
        except OSError:
            return "no connection", 0.0
        waiter: asyncio.Future[str] = self._loop.create_future()
        connection.send(request, waiter)
        timer = self._loop.call_later(ABANDON, lambda: None if waiter.done() else waiter.set_result("lost"))
        outcome = await waiter
        timer.cancel()
        if outcome == "lost" and connection.transport is not None:
            connection.transport.abort()
        elif not connection.closed:
            self._idle[population.source].append(connection)
        return outcome, connection.retry_after

    def _series(self, population: Population, kind: Kind) -> Series:
        return self.series.setdefault(f"{population.name}/{kind.agent}", Series())

    def _count(self, population: Population, kind: Kind, outcome: str, due: float) -> None:
        since = due - self._started
        if since < self._spec.warm_up:
            return
        series = self._series(population, kind)
        latency = time.monotonic() - due
        series.sent += 1
        series.outcomes[outcome] += 1
        good = outcome == "2xx" and latency <= population.limit
        series.good += good
        if outcome == "2xx":
            series.latencies.append(latency)
        else:
            series.refusal_ages.append(latency)
        if self._spec.buckets:
            bucket = f"{math.floor(since / self._spec.buckets) * self._spec.buckets:g}"
            counts = series.timeline.setdefault(bucket, Counter())
            counts[outcome] += 1
            counts["good"] += good


async def run(spec: Spec) -> Report:
    """Run in this process, on this loop."""
    return await Generator(spec).run()


def run_apart(spec: Spec) -> Report:
    """Run in a process of its own, so that the generator's CPU time is not the caller's."""
    done = subprocess.run(
        [sys.executable, __file__, "--spec"], input=msgspec.json.encode(spec), stdout=subprocess.PIPE, check=True
    )
    raw = json.loads(done.stdout)
    series = {
        name: Series(
            **{
                **each,
                "outcomes": Counter(each["outcomes"]),
                "timeline": {at: Counter(counts) for at, counts in each["timeline"].items()},
            }
        )
        for name, each in raw.pop("series").items()
    }
    raw["late_p99"] = math.nan if raw["late_p99"] is None else raw["late_p99"]
    return Report(series=series, **raw)


def _run(spec: Spec) -> Report:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(spec))


def table(rows: list[list[Any]]) -> str:
    """Rows of cells, the first the heading, as text in columns."""
    texts = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in texts]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def summary(report: Report) -> str:
    """The report as a table: milliseconds and counts."""
    rows: list[list[Any]] = [["load", "sent", "2xx", "2xx/s", "p50", "p90", "p95", "p99", "p99.9", "max", "other"]]
    for name, each in sorted(report.series.items()):
        answers = len(each.latencies)
        times = [percentile(each.latencies, part) * 1e3 for part in (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)]
        other = ", ".join(f"{count} {what}" for what, count in each.outcomes.items() if what != "2xx") or "-"
        rows.append([name, each.sent, answers, answers / report.seconds, *times, other])
    return table(rows) + f"\ngenerator: late p99 {report.late_p99 * 1e3:.2f} ms, {report.cpu:.2f} s of CPU"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--spec", action="store_true", help="read a spec from standard input, write a report as JSON")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--agent", default="echo")
    parser.add_argument("--body", default="{}")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second: an open loop")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--timeout", type=float, help="Request-Timeout of each request")
    options = parser.parse_args()
    if options.spec:
        report = _run(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec))
        sys.stdout.buffer.write(msgspec.json.encode(report))
        return 0
    host, _, port = options.url.removeprefix("http://").strip("/").rpartition(":")
    headers = {} if options.timeout is None else {"Request-Timeout": f"{options.timeout:f}"}
    kind = Kind(options.agent, options.body, headers=headers)
    clients = 0 if options.rate else options.clients
    population = Population("load", [kind], clients=clients, rate=options.rate)
    print(summary(_run(Spec(host, int(port), [population], options.seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
