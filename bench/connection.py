"""The generator's requests, and the connections that they go over."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from typing import Final

from bench.series import Series
from bench.spec import Population, Spec, arrivals, request_bytes

RESET: Final = "reset"
"""Outcome: the connection ended before the answer did."""
NO_ANSWER: Final = "no answer"
"""Outcome: the client's patience was over."""
NO_CONNECTION: Final = "no connection"
"""Outcome: the server did not take the connection."""
NOT_HTTP: Final = "not HTTP"
"""Outcome: the answer could not be read."""


class Request:
    """One try, due so many seconds after the start of the run."""

    __slots__ = ("attempt", "data", "due", "flow", "series", "source")

    def __init__(self, flow: Flow, source: int, due: float, data: bytes, series: Series, attempt: int) -> None:
        self.flow = flow
        self.source = source
        self.due = due
        self.data = data
        self.series = series
        self.attempt = attempt


class Flow:
    """One population at work."""

    def __init__(self, population: Population, spec: Spec, names: list[str], sources: list[str]) -> None:
        self.population = population
        self.begin = population.begin
        self.end = spec.seconds if population.end is None else min(population.end, spec.seconds)
        self.rng = random.Random(f"{spec.seed} {population.name}")
        self.sources = [code_of(source, sources) for source in population.sources or [""]]
        self.series: dict[str, Series] = {}
        self._choices: list[tuple[bytes, Series]] = []
        for kind in population.kinds:
            label = f"{population.name}/{kind.label or kind.agent}"
            series = self.series.setdefault(label, Series(names, sources))
            self._choices.append((request_bytes(kind, spec.host, spec.port), series))
        self._weights = [kind.weight for kind in population.kinds]
        self._turn = 0

    def make(self, source: int, due: float) -> Request:
        """The next request of the mix."""
        choices = self._choices
        data, series = choices[0] if len(choices) == 1 else self.rng.choices(choices, self._weights)[0]
        return Request(self, source, due, data, series, 0)

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


def code_of(text: str, texts: list[str]) -> int:
    """The number of a text in a growing list."""
    try:
        return texts.index(text)
    except ValueError:
        texts.append(text)
        return len(texts) - 1


class Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request on its way. Tells ``finished`` what became of each."""

    __slots__ = ("_body", "_finished", "_head", "_missing", "_status", "closed", "request", "retry_after", "transport")

    def __init__(self, finished: Callable[[Connection, Request, str], None]) -> None:
        self._finished = finished
        self._head = b""
        self._body = b""
        self._missing = -1
        self._status = ""
        self.retry_after = -1.0
        self.request: Request | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is not a subclass of asyncio's

    def send(self, request: Request) -> None:
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
