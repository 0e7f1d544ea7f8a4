"""Crowds in closed loops on a daemon: the shell around ``closedloop.c``, which does the asking, and what became of it.

``load.py`` keeps a row for each request, which is what open loops want. A crowd that is refused and comes back at once
asks 30,000 times a second: rows would fill the memory, and Python would take a whole processor from what is measured.
So a program in C asks, keeps histograms, and says after each phase what happened in it: 11 to 13 us of CPU for a
request on a kept connection, 45 to 50 us with a connection for each (wrk: 15 to 17, 50 to 54). It is compiled when it
is first needed. Without a C compiler ``closedloop.py`` stands in: it does the same at 30 to 35 us.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from bench.spec import Kind, request_bytes
from bench.targets import Target

SOURCE: Final = Path(__file__).with_name("closedloop.c")
REFUSALS: Final = ("429", "503")

_folders: list[tempfile.TemporaryDirectory[str]] = []


@dataclass(frozen=True)
class Crowd:
    """Clients that behave alike. Each asks for one thing after another, of ``kinds`` at random by their weights."""

    kinds: list[Kind]
    clients: tuple[int, ...]
    """How many there are in each phase."""
    keep: bool = True
    """They keep their connections; else they open one for each request."""
    pause: float = 0.0
    """Seconds between an answer and the next request, in the mean (exponential)."""
    obeys: bool = False
    """They come back when Retry-After says, with the same request; else they come back at once."""
    times: int = 0
    """Requests of each client; 0: no end."""
    sources: list[str] = field(default_factory=list)
    """Local addresses that they come from in turn; empty: 127.0.0.1."""


@dataclass
class Tally:
    """What became of requests. Times in seconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """By status, or ``reset``, ``no answer``, ``no connection``, ``not HTTP``."""
    answered: Counter[float] = field(default_factory=Counter)
    """Of the 2xx: how many took so long, exact to 1.6 %."""
    refused: Counter[float] = field(default_factory=Counter)
    """Of the 429 and 503: how many came after so long."""
    told: Counter[int] = field(default_factory=Counter)
    """Of the 2xx: how many had been refused so often before."""
    last_refusal: float = -1.0
    """Seconds since the phase began; negative: there was none."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.outcomes + other.outcomes,
            self.answered + other.answered,
            self.refused + other.refused,
            self.told + other.told,
            max(self.last_refusal, other.last_refusal),
        )

    @property
    def answers(self) -> int:
        """The 2xx."""
        return self.answered.total()

    @property
    def refusals(self) -> int:
        """The 429 and 503."""
        return self.refused.total()

    @property
    def unserved(self) -> float:
        """The part of all requests that ended without a 2xx, whatever they got instead; 0 if none ended."""
        return 1.0 - self.answers / max(1, self.outcomes.total())

    @property
    def others(self) -> str:
        """What is neither answered nor refused."""
        rest = [(name, count) for name, count in self.outcomes.items() if name[0] != "2" and name not in REFUSALS]
        return ", ".join(f"{count} {name}" for name, count in rest) or "-"


def quantile(times: Counter[float], part: float) -> float:
    """The smallest time that at least ``part`` (0 to 1) of all do not exceed; NaN of none."""
    wanted = max(1, math.ceil(part * times.total() - 1e-9))
    seen = 0
    for took, count in sorted(times.items()):
        seen += count
        if seen >= wanted:
            return took
    return math.nan


@dataclass
class Phase:
    """One phase, or several of a kind added up. All in seconds."""

    seconds: float
    crowds: list[Tally]
    """Of each crowd."""
    asking: float
    """CPU of the generator."""
    supervisor: float
    """CPU of the daemon's first process."""
    unanswered: int = 0
    """Clients that were waiting when it ended."""
    kinds: list[int] = field(default_factory=list)
    """Answers of each kind of request, crowd after crowd."""
    turns: list[tuple[int, int]] = field(default_factory=list)
    """Answered and refused in each tenth of a second."""

    def __add__(self, other: Phase) -> Phase:
        return Phase(
            self.seconds + other.seconds,
            [mine + others for mine, others in zip(self.crowds, other.crowds, strict=True)],
            self.asking + other.asking,
            self.supervisor + other.supervisor,
            max(self.unanswered, other.unanswered),
            [mine + others for mine, others in zip(self.kinds, other.kinds, strict=True)],
            self.turns + other.turns,
        )

    @property
    def all(self) -> Tally:
        """All crowds together."""
        return functools.reduce(Tally.__add__, self.crowds)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.all.answers / self.seconds

    def done(self, costs: Sequence[float]) -> float:
        """Answers a second, those of each kind of request counted as so many; no ``costs``: all as one."""
        weights = costs or [1.0] * len(self.kinds)
        return sum(count * weight for count, weight in zip(self.kinds, weights, strict=True)) / self.seconds

    @property
    def refusals(self) -> float:
        """Refusals a second."""
        return self.all.refusals / self.seconds


class _Kind(msgspec.Struct):
    outcomes: dict[str, int]
    last_refusal: float
    answered: list[tuple[int, int]]
    refused: list[tuple[int, int]]
    told: list[int]

    def tally(self) -> Tally:
        return Tally(
            Counter(self.outcomes),
            Counter({took / 1e6: count for took, count in self.answered}),
            Counter({took / 1e6: count for took, count in self.refused}),
            Counter(dict(enumerate(self.told))),
            self.last_refusal,
        )


class _Line(msgspec.Struct):
    seconds: float
    cpu: float
    unanswered: int
    answered: list[int]
    refused: list[int]
    kinds: list[_Kind]


def spec(host: str, port: int, crowds: Sequence[Crowd], seconds: Sequence[float], patience: float) -> bytes:
    """What the generator reads; the format is written at the head of ``closedloop.c``."""
    parts = [f"server {host} {port}\npatience {patience}\n".encode()]
    for crowd in crowds:
        parts.append(f"group {crowd.pause} {int(crowd.obeys)} {crowd.times}\n".encode())
        parts += [f"source {source}\n".encode() for source in crowd.sources]
        for kind in crowd.kinds:
            asked = (
                kind if crowd.keep else msgspec.structs.replace(kind, headers={**kind.headers, "Connection": "close"})
            )
            data = request_bytes(asked, host, port)
            parts.append(f"request {kind.weight} {len(data)}\n".encode() + data + b"\n")
    for number, length in enumerate(seconds):
        clients = " ".join(str(crowd.clients[number]) for crowd in crowds)
        parts.append(f"phase {length} {clients}\n".encode())
    return b"".join(parts)


@functools.cache
def generator() -> list[str]:
    """The command of the generator: in C, compiled now, where there is a compiler; else in Python."""
    compiler = shutil.which("cc")
    if compiler is None:
        return [sys.executable, str(SOURCE.with_suffix(".py"))]
    _folders.append(tempfile.TemporaryDirectory(prefix="penstock-bench-"))
    program = Path(_folders[-1].name) / "closedloop"
    subprocess.run([compiler, "-std=gnu11", "-O2", "-o", program, SOURCE, "-lm"], check=True)
    return [str(program)]


def is_compiled() -> bool:
    """The generator is the one in C."""
    return len(generator()) == 1


def play(target: Target, crowds: Sequence[Crowd], seconds: Sequence[float], patience: float = 30.0) -> list[Phase]:
    """Phases of so many seconds, without a gap between them. Raises RuntimeError if the generator fails."""
    return run(spec("127.0.0.1", target.port, crowds, seconds, patience), crowds, target.own_cpu)


def run(
    data: bytes, crowds: Sequence[Crowd], supervisor: Callable[[], float], command: Sequence[str] = ()
) -> list[Phase]:
    """Run the generator (``command``, or the usual one) with this input. ``supervisor`` tells CPU seconds so far."""
    process = subprocess.Popen(command or generator(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    phases: list[Phase] = []
    with process:
        process.stdin.write(data)
        process.stdin.close()
        process.stdout.readline()
        used = supervisor()
        for text in process.stdout:
            line = msgspec.json.decode(text, type=_Line)
            before, used = used, supervisor()
            phases.append(_phase(line, crowds, used - before))
    if process.returncode != 0:
        raise RuntimeError(f"the generator ended with status {process.returncode}")
    return phases


def _phase(line: _Line, crowds: Sequence[Crowd], supervisor: float) -> Phase:
    each = [kind.tally() for kind in line.kinds]
    kinds = iter(each)
    tallies = [sum((next(kinds) for _ in crowd.kinds), Tally()) for crowd in crowds]
    turns = list(zip(line.answered, line.refused, strict=True))
    return Phase(line.seconds, tallies, line.cpu, supervisor, line.unanswered, [tally.answers for tally in each], turns)


def constant(crowd: Crowd, phases: int) -> Crowd:
    """A crowd that is as large as in its first phase in so many."""
    return replace(crowd, clients=crowd.clients[:1] * phases)


_LUA: Final = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [[{body}]]\n'


def wrk(target: Target, kind: Kind, clients: int, seconds: int) -> tuple[float, float] | None:
    """What ``wrk`` finds of keep-alive clients: answers and other statuses a second. None where it is not installed."""
    program = shutil.which("wrk")
    if program is None:
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_LUA.replace("{body}", kind.body))
        script.flush()
        url = f"http://127.0.0.1:{target.port}/v1/agents/{kind.agent}"
        command = [program, "-t1", f"-c{clients}", f"-d{seconds}s", "-s", script.name, url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+) requests in ([0-9.]+)s", said)
    if found is None:
        raise RuntimeError(f"the output of wrk is not understood: {said}")
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    failed = int(other[1]) if other else 0
    return (int(found[1]) - failed) / float(found[2]), failed / float(found[2])
