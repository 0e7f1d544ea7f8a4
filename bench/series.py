"""What became of requests: a row each, and the figures that are computed from the rows."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec


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
