"""Which sentences of some documents answer a question: BM25 over sentences, in plain Python.

A sentence counts by how much of the question it covers, together with the name of its entry: else a rare word twice
would beat all the words once.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

_SENTENCE: Final = re.compile(r"(?<=[.!?:])\s+(?=[A-Z0-9'\"`(])|\n\s*\n|\n\s*[-*]\s+")
_WORD: Final = re.compile(r"[A-Za-z][a-z]+|[A-Z]+(?![a-z])|\d+")
_SUFFIX: Final = re.compile(r"(?:ations?|ings?|ions?|ers?|ies|es|ed|s|e|y)$")
_STOP_WORDS: Final = (
    "a an and are as at be but by can do does for from get has have how i if in into is it its may my not of on one or "
    "should so some than that the their them then there these they this to use used using want was way we what when "
    "where which who why will with would you your python"
)
_STOP: Final = frozenset(_STOP_WORDS.split())

K1: Final = 1.2
B: Final = 0.6
"""BM25's usual constants: how soon a repeated word stops to count, and how much length counts against a sentence."""

NAME: Final = 0.7
"""What a word of the question in the entry's own name is worth, against one in the sentence."""

SHORTEST, LONGEST = 20, 400
"""Characters of what counts as a sentence."""


@dataclass(frozen=True, slots=True)
class Document:
    """An entry of the documentation."""

    name: str
    module: str
    signature: str
    doc: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, where it is from, and how well it fits (higher is better)."""

    text: str
    document: Document
    score: float


def terms(text: str) -> list[str]:
    """The words of a text in a common form: ``read_text`` and ``readText`` have two, ``files`` is ``file``."""
    found = (word.lower() for word in _WORD.findall(text))
    return [stem(word) for word in found if word not in _STOP]


def stem(word: str) -> str:
    """The word without its ending; never shorter than three letters."""
    ending = _SUFFIX.search(word)
    return word[: max(3, ending.start())] if ending else word


def sentences(document: Document) -> list[str]:
    """The sentences of a document, each on one line; examples and what is too short or long for one are left out."""
    pieces = (" ".join(piece.split()) for piece in _SENTENCE.split(document.doc))
    return [each for each in pieces if SHORTEST <= len(each) <= LONGEST and not each.startswith((">>>", "..."))]


def rank(question: str, documents: list[Document], limit: int) -> list[Sentence]:
    """The sentences that fit the question best, each text once, the best first."""
    asked = list(dict.fromkeys(terms(question)))
    read = [(text, document) for document in documents for text in sentences(document)]
    counted = [Counter(terms(text)) for text, _ in read]
    frequency = Counter(term for counts in counted for term in counts)
    worth = {term: math.log(1 + (len(read) - frequency[term] + 0.5) / (frequency[term] + 0.5)) for term in asked}
    whole = sum(worth.values())
    usual = sum(counts.total() for counts in counted) / max(1, len(counted))
    named = {document.name: worth.keys() & set(terms(document.name.replace("_", " "))) for document in documents}
    best: dict[str, Sentence] = {}
    for (text, document), counts in zip(read, counted, strict=True):
        score = _score(counts, worth, usual)
        if score:
            in_name = named[document.name]
            covered = sum(value for term, value in worth.items() if term in counts or term in in_name)
            score = (score + NAME * sum(worth[term] for term in in_name)) * (covered / whole) ** 2
            if text not in best or best[text].score < score:
                best[text] = Sentence(text, document, score)
    return sorted(best.values(), key=lambda each: (-each.score, each.text))[:limit]


def _score(counts: Counter[str], worth: dict[str, float], usual: float) -> float:
    length = K1 * (1 - B + B * counts.total() / usual) if usual else K1
    return sum(value * counts[term] * (K1 + 1) / (counts[term] + length) for term, value in worth.items())
