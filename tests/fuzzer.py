"""Odd requests over raw sockets, and what must be true of a daemon whatever it was sent.

Every request is made of its own seed, so that one that did harm can be made again. Some are well formed by the grammar
of HTTP and odd in what they hold: each must be answered, and not by a fault of the daemon's. Others are such requests
torn apart: whatever comes back, it holds no traceback. After all of them nothing may be left: no slot, no share, no
byte; no worker has died, and the log has no fault.
"""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from tests.fix_daemon import PATIENCE, Daemon, eventually

AGENTS: Final = ("look", "look_in_thread", "alone", "wait", "counted", "counted_async", "square", "begun_elsewhere")
NAMES: Final = (
    *("X-Note", "Affinity-Key", "X-Request-Id", "traceparent", "tracestate", "Priority", "Request-Timeout"),
    *("X-Request-Timeout-Seconds", "grpc-timeout", "Content-Type", "Content-Encoding", "Authorization", "Accept"),
    *(
        "If-None-Match",
        "Cookie",
        "User-Agent",
        "Idempotency-Key",
        "Prefer",
        "Not-Before",
        "TE",
        "Range",
        "Upgrade",
    ),
    *(
        "Accept-Encoding",
        "Last-Event-ID",
        "X-Forwarded-For",
        "Origin",
        "Sec-WebSocket-Key",
        "Via",
        "Trailer",
        "Forwarded",
    ),
)
VALUES: Final = (
    *(
        b"",
        b"u=0",
        b"u=9;i",
        b"0",
        b"0.02",
        b"20",
        b"1e9",
        b"9" * 500,
        b"application/json",
        b"text/plain; q=x",
        b"identity",
    ),
    *(
        b"gzip",
        b"Bearer x",
        b"Basic \xff",
        b"*",
        b'W/"a", *',
        b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01",
        b"k=v,k=v",
    ),
    *(
        b"caf\xe9",
        b"caf\xc3\xa9",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"1m",
        b"99999999H",
        b"websocket",
        b"h2c",
        b"x:99999999999",
    ),
)
PATHS: Final = (
    *(
        b"/",
        b"/livez",
        b"/readyz",
        b"/metrics",
        b"/v1/agents",
        b"/v1/status",
        b"/v1/workers",
        b"/openapi.json",
        b"/docs",
    ),
    *(b"/v1/agents/", b"/v1/agents/nobody", b"/v1/workers/default:7", b"/v1/workers/x/stack?seconds=", b"/v1/jobs/1"),
    *(
        b"/v1/workers/x/profile?seconds=1&format=",
        b"/dashboard/x",
        b"*",
        b"http://h/v1/agents/look",
        b"//",
        b"/v1/reload/",
    ),
)
BODIES: Final = (
    *(
        b"",
        b"null",
        b"{}",
        b"1",
        b'"x"',
        b"[1,2",
        b'{"number": 3}',
        b'{"number": "3"}',
        b'{"seconds": 0.01}',
        b"[" * 3000,
    ),
    *(
        b'"\\ud800"',
        b'"\xed\xa0\x80"',
        b"\xff\xfe",
        b"\x00",
        b"NaN",
        b"9" * 400,
        b'{"seconds": -1e400}',
        b'{"number": 1e99}',
    ),
)
METHODS: Final = (*([b"POST"] * 20), b"GET", b"GET", b"HEAD", b"PUT", b"OPTIONS", b"PATCH", b"DELETE", b"TRACE")
FAULTS: Final = frozenset({500, 502})
"""Statuses that say of a fault: none of these agents raises, and none dies."""
GLANCE: Final = 0.05
"""Seconds that the answer to something torn is waited for: it may be none, as more is to be expected."""


@dataclass(frozen=True)
class Case:
    """What is sent, in pieces. ``whole``: an answer is due."""

    number: str
    pieces: list[bytes]
    whole: bool
    head: bool = False

    def __str__(self) -> str:
        return f"case {self.number}: {self.pieces!r:.3000}"


def make(number: str, torn: bool | None = None) -> Case:
    """The case of this number, ``SEED-INDEX``: the same one each time."""
    rng = random.Random(number)
    method, request = _request(rng)
    if torn is None:
        torn = rng.random() < 0.5
    if torn:
        request = _torn(rng, request)
    places = sorted(rng.sample(range(len(request) + 1), min(len(request), rng.choice((0, 0, 1, 3)))))
    pieces = [request[start:end] for start, end in zip([0, *places], [*places, len(request)], strict=True)]
    return Case(number, [each for each in pieces if each], not torn, method == b"HEAD")


def _octets(rng: random.Random, most: int, without: bytes = b"") -> bytes:
    allowed = [each for each in range(256) if each not in without]
    return bytes(rng.choices(allowed, k=rng.randint(0, most)))


_CONTROL: Final = bytes(each for each in range(32) if each != 9) + b"\x7f"
_HIGH: Final = bytes(range(128, 256))
"""What aiohttp takes in no target of a request."""


def _value(rng: random.Random) -> bytes:
    return rng.choice(VALUES) if rng.random() < 0.6 else _octets(rng, 40, _CONTROL)


def _target(rng: random.Random) -> bytes:
    path = b"/v1/agents/" + rng.choice(AGENTS).encode() if rng.random() < 0.65 else rng.choice(PATHS)
    if rng.random() < 0.15:
        path += rng.choice((b"%ff", b"%00", b"%e9", b"caf\xc3\xa9", b"%", b"/..", b"%2f", b"%ED%A0%80"))
    if rng.random() < 0.15:
        path += (
            b"?"
            + _octets(rng, 20, _CONTROL + b" \t#" + (_HIGH if rng.random() < 0.8 else b""))
            + rng.choice((b"", b"&history=-1", b"&seconds=\xff"))
        )
    return path


def _request(rng: random.Random) -> tuple[bytes, bytes]:
    method = rng.choice(METHODS)
    lines = [b"%b %b HTTP/1.1" % (method, _target(rng)), b"Host: x"]
    names = rng.sample(NAMES, rng.choice((0, 1, 2, 4, 12)))
    lines += [b"%b: %b" % (name.encode(), _value(rng)) for name in names]
    body = rng.choice(BODIES) if rng.random() < 0.7 else _octets(rng, 2000)
    if method in (b"GET", b"HEAD", b"TRACE", b"OPTIONS", b"DELETE"):
        body = b""
    if body and rng.random() < 0.25:
        lines.append(b"Transfer-Encoding: chunked")
        half = rng.randint(0, len(body))
        chunks = [each for each in (body[:half], body[half:]) if each]
        body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n"
    elif method in (b"POST", b"PUT", b"PATCH"):
        lines.append(b"Content-Length: %d" % len(body))
    lines.append(b"Connection: close")
    return method, b"\r\n".join(lines) + b"\r\n\r\n" + body


def _torn(rng: random.Random, request: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 6))):
        at = rng.randint(0, len(request))
        match rng.randrange(7):
            case 0:
                request = request[:at]
            case 1:
                request = request[:at] + _octets(rng, 5) + request[at + rng.randint(0, 3) :]
            case 2:
                request = request[:at] + bytes([rng.randrange(256)]) + request[at + 1 :]
            case 3:
                request = request + _request(rng)[1]
            case 4:
                request = request.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\n ", b"\r\n\r\n")), rng.randint(1, 3))
            case 5:
                length = rng.choice((b"-1", b"+3", b"99", b"1" * 5000, b"0x1", b"3, 3", b"", b"\xb2"))
                request = re.sub(rb"Content-Length: [^\r]*", b"Content-Length: " + length, request)
            case _:
                request = request.replace(
                    b"HTTP/1.1", rng.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"http/1.1")), 1
                )
    return request


@dataclass
class Fuzzer:
    """Sends cases and keeps what was wrong."""

    daemon: Daemon
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def run(self, seed: int, first: int, count: int) -> None:
        """Send so many cases, several at once, and look at the daemon afterwards."""
        with ThreadPoolExecutor(8) as threads:
            for _ in threads.map(lambda at: self.send(make(f"{seed}-{at}")), range(first, first + count)):
                pass
        self.look()

    def send(self, case: Case) -> None:
        answer, due = self._exchange(case)
        found = [int(each) for each in re.findall(rb"(?:\A|\n|[^\r\n])HTTP/1\.1 (\d{3}) ", answer)]
        self.statuses.update(found)
        if b"Traceback" in answer or b'File "' in answer:
            self.wrong.append(f"a traceback in {answer!r:.500} for {case}")
        elif FAULTS & set(found) or (due and not found):
            self.wrong.append(f"{answer!r:.500} for {case}")
        elif due and not case.head and b"application/problem+json" in answer:
            json.loads(answer.partition(b"\r\n\r\n")[2])

    def _exchange(self, case: Case) -> tuple[bytes, bool]:
        """What came back, and whether it had to: it was all sent, and the daemon did not close the connection before."""
        with socket.create_connection(("127.0.0.1", self.daemon.port), timeout=PATIENCE) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answer, due = b"", case.whole
            try:
                for piece in case.pieces:
                    client.sendall(piece)
                client.settimeout(PATIENCE if case.whole else GLANCE)
                while piece := client.recv(65536):
                    answer += piece
            except ConnectionError:
                # It was refused before all of it was there, and what was on its way may have cost us the answer.
                due = False
            except TimeoutError:
                pass
            return answer, due

    def look(self) -> None:
        """The daemon answers, has all its slots, and nothing is left in any book."""
        daemon = self.daemon
        assert not self.wrong, f"{len(self.wrong)} wrong, the first: " + "\n".join(self.wrong[:3])

        def rests() -> bool:
            status = daemon.status()
            queue = status["queue"]
            return not (queue["requests"] or queue["bytes"] or queue["refusing"]) and not any(
                worker["in_flight"] or worker["load"] for worker in status["workers"]
            )

        eventually(rests, "nothing is in any book")
        slots = 8
        replies = daemon.calls("wait", [{"seconds": 0.05}] * slots, at_once=slots)
        assert [reply.status for reply in replies] == [200] * slots
        assert daemon.get("/livez").status == 200
        faults = [
            line for line in daemon.log.splitlines() if " ERROR " in line or "Traceback" in line or " killed" in line
        ]
        assert not faults, faults[:5]


def run_for(daemon: Daemon, seconds: float, seed: int) -> Fuzzer:
    """Send cases for so long."""
    fuzzer, until, at = Fuzzer(daemon), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        fuzzer.run(seed, at, 500)
        at += 500
        print(f"seed {seed}: {at} cases, {dict(sorted(fuzzer.statuses.items()))}", flush=True)
    return fuzzer
