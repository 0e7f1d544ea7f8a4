"""``similar``: the entries of the documentation that are nearest to one of them, by the words that they share.

Which entries have a word, and what it weighs there, is in flat arrays that are made from the database at first use. So
each name is the work of a millisecond, of which a call of its own would be a good part: in a batch all names share one
call, one thread and one connection.
"""

from __future__ import annotations

import heapq
import math
import threading
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec
import psycopg

from penstock.workers import agent

from .sentences import terms

READ: Final = 2000
"""Characters of a docstring that count."""
WORDS: Final = 24
"""Words of an entry that count: those that weigh most."""
COMMON: Final = 0.1
"""Of the entries: a word that more of them have says nothing."""
NAMED: Final = 3
"""Times that a word of the name counts."""


class Name(msgspec.Struct, frozen=True):
    """The full name of an entry, such as ``os.path.join``."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5


class Neighbour(msgspec.Struct, frozen=True):
    """An entry, and how near it is: 1 if it has the same words, 0 if it has none of them."""

    name: str
    score: float


class Vectors:
    """Entries as vectors of length 1, each with the words that weigh most in it, kept by word."""

    def __init__(self, entries: Iterable[tuple[str, str]]) -> None:
        """``entries``: names and texts."""
        self._names: list[str] = []
        counts: list[Counter[str]] = []
        for name, text in entries:
            self._names.append(name)
            counts.append(Counter(terms(name) * NAMED + terms(text)))
        self._places = {name: place for place, name in enumerate(self._names)}
        spread = Counter(word for count in counts for word in count)
        most = max(1.0, COMMON * len(counts))
        rare = {word: math.log(len(counts) / number) for word, number in spread.items() if number <= most}
        self._vectors = [_vector(count, rare) for count in counts]
        self._having: defaultdict[str, array[int]] = defaultdict(lambda: array("I"))
        self._weights: defaultdict[str, array[float]] = defaultdict(lambda: array("f"))
        for place, vector in enumerate(self._vectors):
            for word, weight in vector.items():
                self._having[word].append(place)
                self._weights[word].append(weight)

    def nearest(self, asked: Name) -> list[Neighbour]:
        """Its neighbours, the nearest first; none of a name that there is not."""
        place = self._places.get(asked.name)
        if place is None:
            return []
        scores: defaultdict[int, float] = defaultdict(float)
        for word, weight in self._vectors[place].items():
            for other, its_weight in zip(self._having[word], self._weights[word], strict=True):
                scores[other] += weight * its_weight
        scores.pop(place, None)
        best = heapq.nsmallest(asked.limit, ((-score, self._names[other]) for other, score in scores.items()))
        return [Neighbour(name, round(-score, 4)) for score, name in best]


def _vector(counts: Counter[str], rare: dict[str, float]) -> dict[str, float]:
    weights = {word: (1.0 + math.log(count)) * rare[word] for word, count in counts.items() if word in rare}
    best = heapq.nlargest(WORDS, weights.items(), key=lambda pair: (pair[1], pair[0]))
    length = math.sqrt(sum(weight * weight for _, weight in best)) or 1.0
    return {word: weight / length for word, weight in best}


_vectors: Vectors | None = None
_making = threading.Lock()


@agent(idempotent=True, batch=32, batch_wait=0.002)
def similar(names: list[Name], db: psycopg.Connection[Any]) -> list[list[Neighbour]]:
    """Find the entries of Python's documentation that are nearest to one of them."""
    return [_made(db).nearest(each) for each in names]


def _made(db: psycopg.Connection[Any]) -> Vectors:
    """The vectors of all entries; made once in a process, while other calls wait."""
    global _vectors
    with _making:
        if _vectors is None:
            rows = db.execute("SELECT name, left(doc, %s) FROM penstock_demo.entry ORDER BY id", [READ])
            _vectors = Vectors((str(name), str(doc)) for name, doc in rows)
        return _vectors
