"""What ``closedloop.c`` does, for where there is no C compiler: the same input, the same output, at a much higher cost.

Everything that is written at the head of that file holds here, too, but that times are kept to the
microsecond. A client is a task. ``crowding.py`` says what this costs.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import uvloop

TURN: Final = 0.1
RECONNECT: Final = 0.05
RESET: Final = "reset"
NO_ANSWER: Final = "no answer"
NO_CONNECTION: Final = "no connection"
NOT_HTTP: Final = "not HTTP"


@dataclass
class Group:
    """Clients that behave alike; ``kinds`` are (number of the request, weight, its bytes)."""

    pause: float
    obeys: bool
    times: int
    sources: list[str] = field(default_factory=list)
    kinds: list[tuple[int, float, bytes]] = field(default_factory=list)


@dataclass
class Record:
    """Of one kind in one phase."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    told: Counter[int] = field(default_factory=Counter)
    last_refusal: float = -1.0

    def line(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "outcomes": self.outcomes,
            "last_refusal": self.last_refusal,
            "answered": sorted(self.answered.items()),
            "refused": sorted(self.refused.items()),
            "told": [self.told[times] for times in range(max(self.told, default=-1) + 1)],
        }


@dataclass
class Answer:
    """What was read; ``retry_after`` in seconds, negative: the server did not say."""

    outcome: str
    closing: bool = True
    retry_after: float = -1.0


class Run:
    """Everything: what is to be done, and what became of it in the present phase."""

    def __init__(self, source: BinaryIO) -> None:
        self.address = ("127.0.0.1", 0)
        self.patience = 10.0
        self.groups: list[Group] = []
        self.phases: list[tuple[float, list[int]]] = []
        self.kinds = 0
        self._read(source)
        self._rng = random.Random(1)
        self._clients: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._asked: dict[tuple[int, int], float] = {}
        """When those that wait for an answer began."""
        self._begin(0.0)

    def _read(self, source: BinaryIO) -> None:
        while line := source.readline():
            word, *rest = line.decode().split() or [""]
            if word == "server":
                self.address = (rest[0], int(rest[1]))
            elif word == "patience":
                self.patience = float(rest[0])
            elif word == "group":
                self.groups.append(Group(float(rest[0]), rest[1] == "1", int(rest[2])))
            elif word == "source":
                self.groups[-1].sources.append(rest[0])
            elif word == "request":
                self.groups[-1].kinds.append((self.kinds, float(rest[0]), source.read(int(rest[1]))))
                self.kinds += 1
            elif word == "phase":
                self.phases.append((float(rest[0]), [int(number) for number in rest[1:]]))
            elif word:
                raise ValueError(f"a line of the input is not understood: {line!r}")

    def _begin(self, seconds: float) -> None:
        self._records = [Record() for _ in range(self.kinds)]
        self._turns: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self._length = round(seconds / TURN + 0.499)
        self._begun, self._cpu = time.monotonic(), time.process_time()

    async def play(self) -> None:
        """All phases."""
        print("{}", flush=True)
        for number, (seconds, sizes) in enumerate(self.phases):
            self._begin(seconds)
            wanted = {(group, client) for group, size in enumerate(sizes) for client in range(size)}
            for name in self._clients.keys() - wanted:
                self._clients.pop(name).cancel()
            for name in sorted(wanted - self._clients.keys()):
                self._clients[name] = asyncio.create_task(self._live(name))
            if number == len(self.phases) - 1:
                await asyncio.wait(self._clients.values(), timeout=seconds)
            else:
                await asyncio.sleep(seconds)
            self._print()
        for task in self._clients.values():
            task.cancel()
        await asyncio.wait(self._clients.values())

    def _print(self) -> None:
        now = time.monotonic()
        line = {
            "seconds": now - self._begun,
            "cpu": time.process_time() - self._cpu,
            "unanswered": len(self._asked),
            "oldest": now - min(self._asked.values(), default=now),
            "answered": [self._turns[0][turn] for turn in range(self._length)],
            "refused": [self._turns[1][turn] for turn in range(self._length)],
            "kinds": [record.line() for record in self._records],
        }
        print(json.dumps(line), flush=True)

    async def _live(self, name: tuple[int, int]) -> None:
        """One client, until it has had all its requests or is cancelled."""
        group, told, done = self.groups[name[0]], 0, 0
        weights = [kind[1] for kind in group.kinds]
        connection = _Connection(self.address, group.sources[name[1] % len(group.sources)] if group.sources else None)
        kind, _, data = group.kinds[0]
        try:
            while not group.times or done < group.times:
                if not (told and group.obeys):
                    kind, _, data = self._rng.choices(group.kinds, weights)[0]
                begun = self._asked[name] = time.monotonic()
                try:
                    async with asyncio.timeout(self.patience):
                        answer = await connection.exchange(data)
                except TimeoutError:
                    answer = Answer(NO_ANSWER)
                del self._asked[name]
                if answer.closing:
                    connection.close()
                refused = self._record(kind, answer, begun, told)
                told = told + 1 if refused else 0
                pause = self._rng.expovariate(1.0 / group.pause) if group.pause else 0.0
                if refused and group.obeys and answer.retry_after >= 0:
                    pause = answer.retry_after
                else:
                    done += 1
                    if answer.outcome in (RESET, NO_CONNECTION, NOT_HTTP):
                        pause = RECONNECT
                if pause:
                    await asyncio.sleep(pause)
        finally:
            self._asked.pop(name, None)
            connection.close()

    def _record(self, kind: int, answer: Answer, begun: float, told: int) -> bool:
        """Whether it was a refusal."""
        now, record = time.monotonic(), self._records[kind]
        took, turn = round((now - begun) * 1e6), int((now - self._begun) / TURN)
        record.outcomes[answer.outcome] += 1
        if answer.outcome in ("429", "503"):
            record.refused[took] += 1
            record.last_refusal = now - self._begun
            self._turns[1][turn] += 1
            return True
        if answer.outcome[0] == "2":
            record.answered[took] += 1
            record.told[told] += 1
            self._turns[0][turn] += 1
        return False


class _Connection:
    """To the server, made when it is needed."""

    def __init__(self, address: tuple[str, int], source: str | None) -> None:
        self._address = address
        self._source = (source, 0) if source else None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, data: bytes) -> Answer:
        """Ask, and read the answer to its end."""
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            try:
                self._streams = await asyncio.open_connection(*self._address, local_addr=self._source)
            except OSError:
                return Answer(NO_CONNECTION)
        reader, writer = self._streams
        try:
            writer.write(data)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status, *lines = head.split("\r\n")
            headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if not status.startswith("http/1.1 ") or ("content-length" not in headers and status[9:12] != "204"):
                return Answer(NOT_HTTP)
            await reader.readexactly(int(headers.get("content-length", 0)))
        except (OSError, asyncio.IncompleteReadError):
            return Answer(RESET)
        except (asyncio.LimitOverrunError, ValueError):
            return Answer(NOT_HTTP)
        closing = headers.get("connection", "").startswith("close")
        return Answer(status[9:12], closing, float(headers.get("retry-after", -1.0)))

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


if __name__ == "__main__":
    uvloop.run(Run(sys.stdin.buffer).play())
