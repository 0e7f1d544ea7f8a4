"""The bundled agents as functions, on the documentation of this Python and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from penstock.workers.agent import registry
from penstock.workers.binding import BadBody
from penstock.workers.demo import basic, extract, index, library, sentences, similar
from tests.fix_postgres import query, serving, short_directory

T = TypeVar("T")
TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'penstock_demo'"


@pytest.fixture(scope="module")
def empty() -> Iterator[str]:
    """A database of the module's own, without an index at first."""
    with serving() as dsn:
        yield dsn


@pytest.fixture(scope="module")
def dsn(empty: str) -> str:
    """A database with the index."""
    asyncio.run(index.ensure(empty))
    return empty


@pytest.fixture
def bare(empty: str) -> str:
    """The database, with whatever index it has taken away."""
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS penstock_demo CASCADE")
    return empty


def ask(dsn: str, function: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]]) -> T:
    async def work() -> T:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            return await function(connection)

    return asyncio.run(work())


def search(dsn: str, text: str, limit: int = 10) -> list[library.Hit]:
    return ask(dsn, lambda db: library.search(library.Query(text, limit), db))


def answer(dsn: str, question: str) -> library.Answer:
    with psycopg.connect(dsn) as db:
        return library.answer(question, db)


def decode(agent: str, body: Any) -> dict[str, Any]:
    """What the worker makes of a body for this agent."""
    return registry[agent].binding.decode(json.dumps(body).encode())


# What needs nothing


@pytest.mark.parametrize("body", [{"a": [1, 2.5, None]}, [], "text", 0, None, True])
def test_echo_gives_any_body_back(body: Any) -> None:
    assert asyncio.run(basic.echo(**decode("echo", body))) == body


def test_sleep_waits_and_says_how_long() -> None:
    begun = time.monotonic()
    assert asyncio.run(basic.sleep(**decode("sleep", {"seconds": 0.05}))) == basic.Slept(0.05)
    assert time.monotonic() - begun >= 0.05


def test_primes_are_those_that_have_no_divisor() -> None:
    for below in range(200):
        known = [n for n in range(2, below) if all(n % divisor for divisor in range(2, n))]
        assert basic.primes(below) == basic.Primes(len(known), known[-1] if known else None)
    assert basic.primes(1_000_000) == basic.Primes(78_498, 999_983)


@pytest.mark.parametrize(
    ("agent", "body", "path"),
    [
        ("primes", {"below": 10_000_001}, "$.below"),
        ("primes", {"below": -1}, "$.below"),
        ("primes", {"below": 1.5}, "$.below"),
        ("primes", {}, "below"),
        ("sleep", {"seconds": -0.1}, "$.seconds"),
        ("sleep", {"seconds": "1"}, "$.seconds"),
        ("search", {"text": ""}, "$.text"),
        ("search", {"text": " \n"}, "$.text"),
        ("search", {"text": "x" * 1001}, "$.text"),
        ("search", {"text": "x", "limit": 0}, "$.limit"),
        ("search", {"text": "x", "limit": 101}, "$.limit"),
        ("search", {"text": "x", "limit": "many"}, "$.limit"),
        ("answer", {"question": ""}, "$.question"),
        ("answer", {}, "question"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(agent: str, body: Any, path: str) -> None:
    with pytest.raises(BadBody) as caught:
        decode(agent, body)
    assert caught.value.problem == "invalid-body"
    assert path in caught.value.detail


@pytest.mark.parametrize("text", ["", "one", " two  words\n", "How do I read a CSV file?"])
def test_tokens_are_the_words_of_the_text(text: str) -> None:
    async def items() -> list[str]:
        return [each async for each in basic.tokens(text)]

    found = asyncio.run(items())
    assert "".join(found) == text
    assert len(found) == len(text.split())


def test_all_may_be_tried_again() -> None:
    mine = {name: each for name, each in registry.items() if each.module.startswith("penstock.workers.demo")}
    assert set(mine) == {"echo", "sleep", "primes", "tokens", "search", "answer", "similar", "research"}
    assert all(each.settings.idempotent for each in mine.values())
    assert {name for name, each in mine.items() if each.binding.kind == "sync"} == {"primes", "answer", "similar"}
    assert {name: each.binding.database for name, each in mine.items() if each.binding.database} == {
        "search": "async",
        "answer": "sync",
        "similar": "sync",
    }


# The documentation


def test_the_documentation_is_read_without_side_effects() -> None:
    command = [sys.executable, "-I", "-S", extract.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0
    assert done.stderr == ""
    first, *lines = done.stdout.splitlines()
    entries = [json.loads(line) for line in lines]
    assert int(first) == len(entries)
    assert 5_000 < len(entries) < 20_000
    names = [name for name, *_ in entries]
    assert len(set(names)) == len(names)
    kinds = {name: kind for name, _, kind, _, _ in entries}
    assert kinds["csv"] == "module"
    assert kinds["csv.DictReader"] == "class"
    assert kinds["os.path.join"] == "function"
    assert kinds["builtins.open"] == "function"
    assert kinds["socket.socket.bind"] == "method"
    assert not any(part.startswith("_") for name in names for part in name.split("."))
    assert not {"antigravity", "this", "idlelib", "test"} & kinds.keys()


def test_an_unreadable_documentation_is_an_error(bare: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(index.ExtractError, match="status 1"):
        asyncio.run(index.ensure(bare))
    assert query(bare, TABLES) == 0


# The index


def test_of_many_workers_one_makes_the_index(bare: str, caplog: pytest.LogCaptureFixture) -> None:
    async def many() -> list[bool]:
        return await asyncio.gather(*(index.ensure(bare) for _ in range(6)))

    with caplog.at_level(logging.INFO, "penstock.demo"):
        assert sorted(asyncio.run(many())) == [False] * 5 + [True]
    count = query(bare, "SELECT count(*) FROM penstock_demo.entry")
    assert query(bare, "SELECT entries FROM penstock_demo.edition") == count
    said = [record.getMessage() for record in caplog.records]
    assert f"indexing the standard library: 2000 of {count} entries" in said
    assert said[-1].startswith(f"indexed the standard library: {count} entries in ")
    assert asyncio.run(index.ensure(bare)) is False


def test_an_index_that_was_interrupted_is_not_there(bare: str) -> None:
    async def interrupted() -> None:
        making = asyncio.create_task(index.ensure(bare))
        async with await psycopg.AsyncConnection.connect(bare, autocommit=True) as watch:
            copying = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%%' AND state = 'active'"
            while await (await watch.execute(copying)).fetchone() == (0,):
                assert not making.done()
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making

    asyncio.run(interrupted())
    assert query(bare, TABLES) == 0
    assert asyncio.run(index.ensure(bare)) is True


def test_another_edition_is_replaced(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(index.ensure(dsn))
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE penstock_demo.edition SET edition = '0/2.7'")
        connection.execute("DELETE FROM penstock_demo.entry WHERE name <> 'csv'")
    assert [hit.name for hit in search(dsn, "csv")] == ["csv"]
    assert asyncio.run(index.ensure(dsn)) is True
    assert len(search(dsn, "csv")) > 1
    assert query(dsn, "SELECT count(*) FROM penstock_demo.edition") == 1


def test_without_a_database_it_goes_on_trying(bare: str, caplog: pytest.LogCaptureFixture) -> None:
    """The database comes up only after the worker has begun: a link to its socket appears."""
    settings = psycopg.conninfo.conninfo_to_dict(bare)

    async def late() -> None:
        with short_directory() as made:
            keeper = index.Keeper(retry=0.02)
            await keeper.begin(psycopg.conninfo.make_conninfo(bare, host=str(made)))
            socket = f".s.PGSQL.{settings['port']}"
            (made / socket).symlink_to(Path(str(settings["host"])) / socket)
            assert keeper.trying is not None
            await asyncio.wait_for(keeper.trying, 30)

    asyncio.run(late())
    assert "search and answer do not work yet" in caplog.text
    assert query(bare, "SELECT count(*) FROM penstock_demo.entry") > 0


# Search


def test_hits_are_ranked_and_shown(dsn: str) -> None:
    hits = search(dsn, "temporary directory", 5)
    assert len(hits) == 5
    assert [hit.rank for hit in hits] == sorted((hit.rank for hit in hits), reverse=True)
    assert "tempfile.TemporaryDirectory" in [hit.name for hit in hits]
    first = next(hit for hit in hits if hit.name == "tempfile.TemporaryDirectory")
    assert (first.module, first.kind) == ("tempfile", "class")
    assert "**directory**" in first.headline.lower()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("os.path.join", "os.path.join"),
        ("os.path.join()", "os.path.join"),
        ("NamedTemporaryFile", "tempfile.NamedTemporaryFile"),
        ("read_text", "pathlib.Path.read_text"),
        ('"directory tree" -tkinter', "shutil.copytree"),
        ("heap queue", "heapq"),
    ],
)
def test_entries_are_found_by_what_people_type(dsn: str, text: str, name: str) -> None:
    assert name in [hit.name for hit in search(dsn, text)]


def test_any_word_is_enough_where_no_entry_has_all(dsn: str) -> None:
    assert "zipfile" in [hit.module for hit in search(dsn, "zipfile xyzzyplugh")]
    assert search(dsn, "xyzzyplugh") == []
    assert search(dsn, "the") == []


@pytest.mark.parametrize("text", ['"', "a\0b", "!!", "a & | b", "-", ":*", "'", "\\", "%s %(x)s", "é" * 1000, "(((("])
def test_no_text_is_an_error(dsn: str, text: str) -> None:
    assert isinstance(search(dsn, text), list)
    assert isinstance(answer(dsn, text), library.Answer)


def test_the_limit_is_kept(dsn: str) -> None:
    assert len(search(dsn, "file", 1)) == 1
    assert len(search(dsn, "file", 100)) == 100


# Answers


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("How do I copy a directory tree?", "shutil.copytree"),
        ("How do I read a CSV file?", "csv"),
        ("How can I create a temporary file?", "tempfile.TemporaryFile"),
        ("How do I compress data with gzip?", "gzip.compress"),
        ("Run a subprocess and capture its output", "subprocess.run"),
    ],
)
def test_questions_are_answered_from_where_the_answer_is(dsn: str, question: str, name: str) -> None:
    given = answer(dsn, question)
    assert given.question == question
    assert given.sources[0].name == name
    assert [source.score for source in given.sources] == sorted((each.score for each in given.sources), reverse=True)
    assert given.answer == " ".join(source.sentence for source in given.sources)
    assert 1 <= len(given.sources) <= library.GIVEN


def test_what_cannot_be_answered_is_not(dsn: str) -> None:
    assert answer(dsn, "xyzzyplugh?") == library.Answer("xyzzyplugh?", "", [])


def test_sentences_are_ranked_by_what_they_cover() -> None:
    def document(name: str, doc: str) -> sentences.Document:
        return sentences.Document(name, name, "", doc)

    documents = [
        document("one", "Copy the files. Nothing about anything else here."),
        document("two", "Copy a file to another directory of yours."),
        document("three", "This sentence speaks of the weather and of rain."),
    ]
    best = sentences.rank("copying files to directories", documents, 2)
    assert best[0].document.name == "two"
    assert len(best) <= 2
    assert sentences.rank("copying", [], 3) == []
    assert sentences.rank("of the", documents, 3) == []


# Nearest entries


def nearest(dsn: str, *names: str, limit: int = 5) -> list[list[str]]:
    with psycopg.connect(dsn) as db:
        found = similar.similar([similar.Name(name, limit) for name in names], db)
    for each in found:
        assert [one.score for one in each] == sorted((one.score for one in each), reverse=True)
        assert all(0.0 < one.score <= 1.0 for one in each)
    return [[one.name for one in each] for each in found]


def test_similar_entries_share_words(dsn: str) -> None:
    reader, loads, lock = nearest(dsn, "csv.reader", "json.loads", "threading.Lock", limit=8)
    assert "csv.writer" in reader
    assert "json.load" in loads
    assert any("Lock" in name for name in lock)
    assert [len(each) for each in (reader, loads, lock)] == [8, 8, 8]


def test_a_batch_finds_what_each_would_find_alone(dsn: str) -> None:
    names = ("csv.reader", "json.loads", "no.such.entry", "json.loads", "gzip.compress")
    together = nearest(dsn, *names)
    assert together == [nearest(dsn, name)[0] for name in names]
    assert together[2] == []
    assert all(name not in found for name, found in zip(names, together, strict=True))


def test_words_that_most_have_say_nothing() -> None:
    entries = [(f"common.x{at}", f"same words everywhere {'special' if at < 2 else f'other{at}'}") for at in range(40)]
    vectors = similar.Vectors(entries)
    assert [each.name for each in vectors.nearest(similar.Name("common.x0", 5))] == ["common.x1"]
