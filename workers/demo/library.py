"""``search`` and ``answer``: questions to the documentation of Python's standard library.

``search`` is work for the database alone. ``answer`` is mixed work, as much real work is: the database finds entries,
and Python ranks their sentences.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec
import psycopg
from psycopg.rows import class_row

from penstock.workers import agent, on_start, on_stop
from penstock.workers.database import dsn

from .index import Keeper
from .sentences import Document, Sentence, rank

Text = Annotated[
    str, msgspec.Meta(min_length=1, max_length=1000, pattern=r"\S", description="words, with something to see")
]

READ: Final = 300
"""Entries whose sentences ``answer`` ranks."""
GIVEN: Final = 3
"""Sentences that it answers with."""


class Query(msgspec.Struct, frozen=True):
    """``text`` as one types it into a search engine: words, "a phrase", ``or``, ``-not``."""

    text: Text
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10


class Hit(msgspec.Struct, frozen=True):
    """An entry that was found. ``kind`` is module, class, function or method."""

    name: str
    module: str
    kind: str
    headline: str
    rank: float


class Source(msgspec.Struct, frozen=True):
    """Where a sentence of an answer is from, and how well it fits."""

    name: str
    module: str
    signature: str
    sentence: str
    score: float


class Answer(msgspec.Struct, frozen=True):
    """The best sentences in one text (empty if nothing was found), and each with its source."""

    question: str
    answer: str
    sources: list[Source]


# All words first; any of them only where no entry has all. Weights: D, C, B, A.
_ALL: Final = "websearch_to_tsquery('english', %(text)s)"
_ANY: Final = "CAST(replace(plainto_tsquery('english', %(text)s)::text, ' & ', ' | ') AS tsquery)"
_FOUND: Final = """
    SELECT {columns}, ts_rank('{{0.1, 0.2, 0.5, 1.0}}', document, query, 1) AS rank, query
    FROM penstock_demo.entry, {query} AS query
    WHERE document @@ query
    ORDER BY rank DESC, name
    LIMIT %(limit)s
"""
_SEARCH: Final = """
WITH found AS (SELECT * FROM ({found}) AS best)
SELECT name, module, kind, rank,
    ts_headline('english', left(coalesce(nullif(doc, ''), signature), 2000), query,
        'StartSel=**, StopSel=**, MinWords=8, MaxWords=25') AS headline
FROM found ORDER BY rank DESC, name
"""
_READ: Final = "SELECT name, module, signature, doc FROM ({found}) AS best ORDER BY rank DESC, name"
_SEARCHES: Final = tuple(
    _SEARCH.format(found=_FOUND.format(columns="name, module, kind, signature, doc", query=query))
    for query in (_ALL, _ANY)
)
_READS: Final = tuple(
    _READ.format(found=_FOUND.format(columns="name, module, signature, left(doc, 8000) AS doc", query=query))
    for query in (_ALL, _ANY)
)
_JOINED: Final = re.compile(r"(?<=\w)[./(_]+(?=\w)|[()\x00]")

_keeper: Keeper | None = None


@on_start
async def open_index() -> None:
    """Make the index if there is a database and it has none yet."""
    global _keeper
    access = dsn()
    if access is not None:
        _keeper = Keeper()
        await _keeper.begin(access)


@on_stop
def close_index() -> None:
    """Give up what could not be made."""
    if _keeper is not None:
        _keeper.end()


@agent(idempotent=True)
async def search(query: Query, db: psycopg.AsyncConnection[Any]) -> list[Hit]:
    """Find entries of Python's documentation; the best first."""
    for statement in _SEARCHES:
        async with db.cursor(row_factory=class_row(Hit)) as cursor:
            await cursor.execute(statement, {"text": words(query.text), "limit": query.limit})
            if hits := await cursor.fetchall():
                return hits
    return []


@agent(idempotent=True)
def answer(question: Text, db: psycopg.Connection[Any]) -> Answer:
    """Answer a question about Python's standard library with the sentences of its documentation that fit best."""
    best = rank(question, find(question, db), GIVEN)
    return Answer(question, " ".join(each.text for each in best), [_source(each) for each in best])


def find(question: str, db: psycopg.Connection[Any]) -> list[Document]:
    """The entries to read for a question. Few have all its words: the rest is filled up with those that have some."""
    found: dict[str, Document] = {}
    for statement in _READS:
        with db.cursor(row_factory=class_row(Document)) as cursor:
            cursor.execute(statement, {"text": words(question), "limit": READ})
            for each in cursor:
                found.setdefault(each.name, each)
        if len(found) >= READ:
            break
    return list(found.values())


def words(text: str) -> str:
    """What the database's parser is to see: ``os.path.join()`` is three words, as in the index."""
    return _JOINED.sub(" ", text)


def _source(sentence: Sentence) -> Source:
    document = sentence.document
    return Source(document.name, document.module, document.signature, sentence.text, round(sentence.score, 3))
