"""The bundled agents in a daemon as it comes: with its embedded PostgreSQL, and without any database."""

from __future__ import annotations

import json

import psutil
import pytest

from tests.fix_daemon import Daemon, DaemonFactory, eventually
from tests.fix_processes import family, gone

DEMO = "penstock.workers.demo"


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    return daemons(DEMO, settings={"database.dsn": ""})


def servers(daemon: Daemon) -> list[psutil.Process]:
    found = family(daemon.pid, "postgres")
    assert found
    return found


def test_it_shows_how_the_index_comes_along(daemon: Daemon) -> None:
    assert daemon.log.count("indexing the standard library: reading its documentation") == 1
    assert daemon.log.count("indexed the standard library") == 1


def test_all_agents_answer(daemon: Daemon) -> None:
    daemon.wait_workers(2)
    assert daemon.call("echo", {"a": [1, None]}).json == {"a": [1, None]}
    assert daemon.call("sleep", {"seconds": 0.01}).json == {"slept": 0.01}
    assert daemon.call("primes", {"below": 100}).json == {"count": 25, "largest": 97}
    hits = daemon.call("search", {"text": "temporary directory", "limit": 3}).json
    assert len(hits) == 3
    assert set(hits[0]) == {"name", "module", "kind", "headline", "rank"}
    found = daemon.call("answer", {"question": "How do I copy a directory tree?"}).json
    assert found["sources"][0]["name"] == "shutil.copytree"
    lines = daemon.call("research", {"question": "How do I copy a directory tree?"}).body.splitlines()
    findings = {each["agent"]: each["found"] for each in map(json.loads, lines)}
    assert findings["answer"] == found
    assert "shutil" in {each["module"] for each in findings["search"]}
    assert findings["similar"] == daemon.call("similar", {"name": findings["search"][0]["name"]}).json


@pytest.mark.parametrize(
    ("agent", "body", "path"),
    [
        ("search", {"text": ""}, "$.text"),
        ("search", {"text": "x", "limit": 101}, "$.limit"),
        ("primes", {"below": 10**9}, "$.below"),
        ("answer", {"question": " "}, "$.question"),
    ],
)
def test_what_does_not_fit_is_refused(daemon: Daemon, agent: str, body: object, path: str) -> None:
    reply = daemon.call(agent, body)
    assert (reply.status, reply.problem) == (422, "invalid-body")
    assert path in reply.json["detail"]


def test_ten_clients_are_answered_within_half_a_second(daemon: Daemon) -> None:
    daemon.wait_workers(2)
    question = {"question": "How do I read a CSV file?"}
    daemon.calls("answer", [question] * 20, at_once=10)
    replies = daemon.calls("answer", [question] * 50, at_once=10)
    assert {reply.status for reply in replies} == {200}
    assert max(reply.seconds for reply in replies) < 0.5


def test_the_index_is_made_once_and_the_server_ends_with_the_daemon(fresh: DaemonFactory) -> None:
    daemon = fresh(DEMO, settings={"database.dsn": "", "pools.default.workers": 1})
    family = servers(daemon)
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    eventually(lambda: gone(family), "the server has ended with the killed daemon")
    daemon.start()
    daemon.wait_ready()
    assert daemon.call("search", {"text": "csv"}).status == 200
    assert daemon.log.count("indexed the standard library") == 1
    family = servers(daemon)
    assert daemon.stop() == 0
    assert gone(family)


@pytest.mark.parametrize("dsn", ["off", "host=/nowhere dbname=none"])
def test_without_a_database_the_other_agents_serve(fresh: DaemonFactory, dsn: str) -> None:
    daemon = fresh(DEMO, settings={"database.dsn": dsn, "database.acquire_timeout": 0.2, "pools.default.workers": 1})
    assert daemon.call("echo", [1]).json == [1]
    assert daemon.call("primes", {"below": 10}).json == {"count": 4, "largest": 7}
    for agent, body in (("search", {"text": "csv"}), ("answer", {"question": "csv"})):
        reply = daemon.call(agent, body)
        assert (reply.status, reply.problem) == (503, "database-unavailable")
    findings = [json.loads(line) for line in daemon.call("research", {"question": "csv"}).body.splitlines()]
    assert {each["problem"]["type"] for each in findings} == {"urn:penstock:problem:database-unavailable"}
