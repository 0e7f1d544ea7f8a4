"""Streams: what an item costs, when the first one is there, and what readers that read nothing cost the others.

An item's cost is the CPU time of the supervisor and all workers together for a hundred thousand of them, less what the
same generator takes where its items are dropped in the agent. The reader's own time does not count.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import psutil

from bench.measuring import Check, Result, closed, command
from bench.tables import milliseconds
from bench.targets import Target, penstock

ITEMS: Final = 100_000
DEAREST: Final = 1.5
"""Microseconds that an item may cost."""
FIRST: Final = 1.2
"""Times the latency of a plain call that the first item may take."""
READERS: Final = 50
MOST: Final = 20 * 1024 * 1024
"""Bytes that so many readers who read nothing may hold together."""
DISTURBED: Final = 1.1
"""Times its p99 that another client may have beside them."""


def measure(scale: float) -> Result:
    """All of it."""
    result = Result("streams")
    with penstock() as target:
        _costs(target, result, max(3, round(5 * scale)))
        _first(target, result, max(100, round(400 * scale)))
        _readers(target, result, 2.0 * scale, max(3, round(5 * scale)))
    return result


def _costs(target: Target, result: Result, rounds: int) -> None:
    rows: list[list[Any]] = [["generator", "made us", "streamed us", "an item us", "(min-max)", "items/s"]]
    result.tables[f"{ITEMS} items of {len(json.dumps(_item(target)))} bytes in one stream, CPU of all processes"] = rows
    for kind, stream, made in (("async", "items", "made"), ("plain", "plain_items", "plain_made")):
        costs, whole, own, rates = [], [], [], []
        for _ in range(rounds):
            before = target.cpu()
            target.call(made, ITEMS)
            own.append((target.cpu() - before) / ITEMS * 1e6)
            before, begun = target.cpu(), time.monotonic()
            _read_all(target, stream)
            rates.append(ITEMS / (time.monotonic() - begun))
            whole.append((target.cpu() - before) / ITEMS * 1e6)
            costs.append(whole[-1] - own[-1])
        cost = statistics.median(costs)
        spread = f"{min(costs):.2f}-{max(costs):.2f}"
        rows.append(
            [kind, statistics.median(own), statistics.median(whole), cost, spread, round(statistics.median(rates))]
        )
        result.checks.append(Check(f"CPU us of an item, {kind} generator", cost, DEAREST))


def _item(target: Target) -> Any:
    with _calling(target, "items", 1) as stream:
        return json.loads(stream.readline())


def _first(target: Target, result: Result, count: int) -> None:
    """The time to the first item, and that of a plain call, in turn."""
    took: dict[str, list[float]] = {"echo": [], "items": []}
    for _ in range(count):
        for agent, found in took.items():
            begun = time.perf_counter()
            with _calling(target, agent, 3) as stream:
                stream.readline()
                found.append((time.perf_counter() - begun) * 1e3)
    plain, first = (statistics.median(took[agent]) for agent in ("echo", "items"))
    result.tables["the first item, and a plain call, one client, ms"] = [
        ["echo p50", "first item p50", "ratio"],
        [plain, first, first / plain],
    ]
    result.checks.append(Check("first item over a plain call", first / plain, FIRST))


def _readers(target: Target, result: Result, seconds: float, rounds: int) -> None:
    """Another client's p99 with and without so many readers who read nothing, and what these hold."""
    rows: list[list[Any]] = [["round", "p99 ms alone", "beside them", "ratio", "held MiB"]]
    result.tables[f"four clients of an echo beside {READERS} readers that read nothing"] = rows
    ratios, held = [], []
    for number in range(rounds):
        alone = _p99(target, seconds)
        before = _memory(target)
        with contextlib.ExitStack() as readers:
            for _ in range(READERS):
                readers.enter_context(_calling(target, "items", 100_000_000, unread=True))
            time.sleep(1.0)
            beside = _p99(target, seconds)
            held.append(_memory(target) - before)
        ratios.append(beside / alone)
        rows.append([number + 1, alone, beside, ratios[-1], held[-1] / 2**20])
        _settled(target)
    result.checks.append(Check("memory of the readers, MiB", statistics.median(held) / 2**20, MOST / 2**20))
    result.checks.append(Check("p99 of others beside them, over alone", statistics.median(ratios), DISTURBED))


def _settled(target: Target) -> None:
    until = time.monotonic() + 10
    while any(each["in_flight"] for each in target.workers()) and time.monotonic() < until:
        time.sleep(0.05)


def _p99(target: Target, seconds: float) -> float:
    return milliseconds(closed(target, "echo", "1", 4, seconds).all(), "p99")[0]


def _memory(target: Target) -> int:
    """Bytes that all processes have for themselves."""
    root = psutil.Process(target.process.pid)
    return sum(int(each.memory_full_info().uss) for each in [root, *root.children(recursive=True)])


class Stream:
    """An answer that is read piece by piece."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")

    def readline(self) -> bytes:
        """The first item, or the whole body of an answer that is no stream."""
        chunked = False
        while (line := self._file.readline()) not in (b"\r\n", b""):
            chunked = chunked or line.lower().startswith(b"transfer-encoding")
        if chunked:
            self._file.readline()
            return self._file.readline()
        return self._file.read(1)

    def drain(self) -> None:
        """Read all, and look at nothing but the end."""
        end = b""
        while not end.endswith(b"0\r\n\r\n"):
            got = self._connection.recv(1 << 20)
            if not got:
                raise RuntimeError("the stream was broken off")
            end = (end + got)[-5:]

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _calling(target: Target, agent: str, value: Any, *, unread: bool = False) -> Iterator[Stream]:
    with socket.socket() as connection:
        if unread:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", target.port))
        body = json.dumps(value)
        connection.sendall(
            f"POST /v1/agents/{agent} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        stream = Stream(connection)
        try:
            yield stream
        finally:
            stream.close()


def _read_all(target: Target, agent: str) -> None:
    with _calling(target, agent, ITEMS) as stream:
        stream.drain()


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
