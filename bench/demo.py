"""``make demo``: starts a daemon, fires requests of all the bundled agents, 10, 50 and 200 at once, and prints a table.

Each of so many clients sends its requests one after another, of all agents in turn, each client beginning with another
one. A request counts as answered when its result is right, as refused when it got a 429 or 503, and as lost otherwise.
The exit status is 0 if nothing was lost and the daemon stopped in order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import eq
from typing import Any

import aiohttp

LEVELS = (10, 50, 200)
EACH = 10
"""Requests that each client sends."""

PATIENCE = 120.0
"""Seconds until the daemon must be ready (the first start makes a database and an index), and until it must have ended."""

QUESTIONS = (
    "How do I read a CSV file?",
    "How can I create a temporary file?",
    "How do I copy a directory tree?",
    "How do I run a subprocess and capture its output?",
    "How do I compress data with gzip?",
    "How do I parse an ISO 8601 date?",
    "What happens when a task given to gather raises an exception?",
    "How do I send a message to an SMTP server?",
    "How do I sort a list by a key?",
    "How do I open a connection to an SQLite database?",
)
SEARCHES = ("temporary directory", "os.path.join", "http server", "thread lock", "json decode", '"regular expression"')
NAMES = ("csv.reader", "os.path.join", "json.loads", "threading.Lock", "shutil.copytree", "gzip.compress")

Check = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent to an agent, and how its result is told to be right."""

    agent: str
    body: Any
    right: Check


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request fared: ``answered``, ``refused`` or ``lost``; the time in seconds, and why it was lost."""

    agent: str
    kind: str
    seconds: float
    why: str = ""


def requests() -> Iterator[Request]:
    """Requests of all agents in turn, without end."""
    for number in itertools.count():
        body = {"number": number, "text": QUESTIONS[number % len(QUESTIONS)]}
        yield Request("echo", body, partial(eq, body))
        text = SEARCHES[number % len(SEARCHES)]
        yield Request("search", {"text": text, "limit": 5}, lambda hits: 0 < len(hits) <= 5)
        question = QUESTIONS[number % len(QUESTIONS)]
        yield Request("answer", {"question": question}, lambda found: bool(found["sources"]))
        yield Request("primes", {"below": 100_000}, lambda found: found == {"count": 9592, "largest": 99991})
        yield Request("sleep", {"seconds": 0.02}, lambda found: found == {"slept": 0.02})
        name = NAMES[number % len(NAMES)]
        yield Request("similar", {"name": name}, lambda found: len(found) == 5)
        yield Request("tokens", {"text": question}, partial(_is_whole, question))
        yield Request("research", {"question": question}, _has_all)


def _is_whole(text: str, items: list[str]) -> bool:
    return "".join(items) == text


def _has_all(findings: list[dict[str, Any]]) -> bool:
    return {each["agent"] for each in findings if each.get("found")} == {"answer", "search", "similar"}


class Daemon:
    """The daemon, as a process of its own."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._listening = asyncio.Event()
        self.address = ""
        """Where it listens; the system chose the port."""
        self._arguments = arguments
        self._said: deque[str] = deque(maxlen=20)
        self._starting = True

    async def start(self) -> None:
        """Start it, and show what it says until it is ready."""
        command = [sys.executable, "-m", "penstock.daemon", "serve", "--bind", "127.0.0.1:0", *self._arguments]
        self._process = await asyncio.create_subprocess_exec(
            *command, stderr=asyncio.subprocess.PIPE, start_new_session=True, limit=1 << 20
        )
        self._listener = asyncio.create_task(self._listen())
        listening = asyncio.ensure_future(self._listening.wait())
        await asyncio.wait({listening, self._listener}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._said.append(text)
            if not self.address and (found := re.search(r"listening on (127\.0\.0\.1:\d+)", text)):
                self.address = found[1]
                self._listening.set()
            if self._starting:
                print(f"  {text}", flush=True)

    async def ready(self, session: aiohttp.ClientSession) -> bool:
        """Wait until all its workers serve; False if it ended instead, or was too slow."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self._process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get("/readyz") as reply:
                    up = reply.status == 200
                if up and all(worker["state"] == "RUNNING" for worker in await workers(session)):
                    self._starting = False
                    return True
            await asyncio.sleep(0.1)
        return False

    async def stop(self) -> int | None:
        """Ask it to stop, and wait; its exit status, None if it had to be killed."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self._process.wait(), PATIENCE)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            return None
        finally:
            await asyncio.wait({self._listener}, timeout=1.0)

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self._said)


async def workers(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
    """What the daemon says of its workers."""
    async with session.get("/v1/workers") as reply:
        return list((await reply.json())["workers"])


async def send(session: aiohttp.ClientSession, request: Request) -> Outcome:
    """One request and how it fared."""
    begun = time.monotonic()
    try:
        async with session.post(f"/v1/agents/{request.agent}", json=request.body) as reply:
            streamed = reply.content_type == "application/x-ndjson"
            text = await reply.text()
            result = [json.loads(line) for line in text.splitlines()] if streamed else json.loads(text)
            seconds = time.monotonic() - begun
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return Outcome(request.agent, "lost", time.monotonic() - begun, f"{type(error).__name__}: {error}")
    if reply.status in (429, 503):
        return Outcome(request.agent, "refused", seconds)
    if reply.status == 200 and request.right(result):
        return Outcome(request.agent, "answered", seconds)
    return Outcome(request.agent, "lost", seconds, f"{reply.status}: {result!r:.200}")


async def client(session: aiohttp.ClientSession, number: int) -> list[Outcome]:
    """One client's requests, one after another."""
    return [await send(session, each) for each in itertools.islice(requests(), number, number + EACH)]


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least this part of all is not above; NaN of none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(q * len(ranked)) - 1)] if ranked else math.nan


def row(level: str, name: str, outcomes: Sequence[Outcome]) -> str:
    """A line of the table."""
    counts = [sum(each.kind == kind for each in outcomes) for kind in ("answered", "refused", "lost")]
    times = [1000 * each.seconds for each in outcomes if each.kind == "answered"]
    marks = [quantile(times, q) for q in (0.5, 0.95, 0.99, 1.0)]
    return f"{level:>7}  {name:<9}{len(outcomes):>6}" + "".join(
        [*(f"{count:>9}" for count in counts), *(f"{mark:>8.1f}" for mark in marks)]
    )


def shares(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    """Which part of the requests each worker answered."""
    earlier = {worker["name"]: worker["answered"] for worker in before}
    done = {worker["name"]: worker["answered"] - earlier.get(worker["name"], 0) for worker in after}
    whole = max(1, sum(done.values()))
    return "   ".join(f"{name} {100 * count / whole:.0f} %" for name, count in sorted(done.items()))


async def fire(session: aiohttp.ClientSession, level: int) -> list[Outcome]:
    """So many clients at once; prints their part of the table."""
    before = await workers(session)
    begun = time.monotonic()
    found = await asyncio.gather(*(client(session, number) for number in range(level)))
    seconds = time.monotonic() - begun
    outcomes = [outcome for each in found for outcome in each]
    print(row(str(level), "all", outcomes))
    for agent in sorted({each.agent for each in outcomes}):
        print(row("", agent, [each for each in outcomes if each.agent == agent]))
    print(f"{'':9}{len(outcomes) / seconds:.0f} requests/s; by worker: {shares(before, await workers(session))}\n")
    return outcomes


async def demonstrate(arguments: Sequence[str]) -> int:
    """Start, fire, stop; the exit status."""
    daemon = Daemon(arguments)
    print("Starting a daemon:")
    await daemon.start()
    outcomes: list[Outcome] = []
    try:
        connections = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(f"http://{daemon.address}", connector=connections, timeout=timeout) as session:
            if not (daemon.address and await daemon.ready(session)):
                print("The daemon did not become ready.", file=sys.stderr)
                return 1
            print("\nat once  agent      sent answered  refused     lost  p50 ms  p95 ms  p99 ms  max ms")
            for level in LEVELS:
                outcomes += await fire(session, level)
    finally:
        status = await daemon.stop()
    lost = [each for each in outcomes if each.kind == "lost"]
    for why in dict.fromkeys(f"{each.agent}: {each.why}" for each in lost):
        print(f"lost: {why}", file=sys.stderr)
    if status != 0:
        ended = "had to be killed" if status is None else f"ended with status {status}"
        print(f"The daemon {ended}. The end of its log:\n{daemon.last_words()}", file=sys.stderr)
    print(f"{len(outcomes)} requests sent, {len(lost)} lost.")
    return 1 if lost or status != 0 else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = "All options are passed on to penstock serve."
    try:
        return asyncio.run(demonstrate(parser.parse_known_args()[1]))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
