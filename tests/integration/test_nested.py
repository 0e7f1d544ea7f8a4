"""Agents that call agents: what they get, what is inherited, what ends with what."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fix_daemon import PATIENT, Daemon, DaemonFactory, eventually

pytestmark = pytest.mark.usefixtures("empty")

ONE: dict[str, Any] = {
    "pools.default.workers": 1,
    "pools.default.concurrency": 1,
    "pools.default.threads": 1,
    "log.format": "json",
}


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    """One worker with one slot and one thread: whatever needs a second place at once would hang."""
    return daemons("calling", settings=ONE)


@pytest.fixture
def empty(daemon: Daemon) -> Iterator[None]:
    """After each test no call is left, and none had to be ended with its worker."""
    before = [worker["pid"] for worker in daemon.wait_workers(1)]
    yield
    eventually(lambda: daemon.in_flight() == 0, "nothing is left running")
    assert [worker["pid"] for worker in daemon.workers()] == before


def test_result(daemon: Daemon) -> None:
    reply = daemon.call("ask", {"agent": "leaf", "body": [1, {"a": None}]})
    assert reply.status == 200, reply.body
    assert reply.json["value"] == [1, {"a": None}]


def test_what_is_inherited(daemon: Daemon) -> None:
    headers = {"X-Request-Id": "root", "Request-Timeout": "7"}
    found = daemon.call("ask", {"agent": "ask", "body": {"agent": "leaf", "body": 0}}, headers).json
    assert found["id"] == "root.1.1"
    assert found["client"] == "127.0.0.1"
    assert 0 < found["left"] <= 7


@pytest.mark.parametrize("agent", ["chain", "chain_sync"])
def test_eight_levels_need_one_slot(daemon: Daemon, agent: str) -> None:
    reply = daemon.call(agent, {"levels": 8}, {"X-Request-Id": "r", **PATIENT})
    assert reply.status == 200, reply.body
    assert reply.json == ["r" + ".1" * level for level in range(7, -1, -1)]


def test_ninth_level(daemon: Daemon) -> None:
    body: dict[str, Any] = {"agent": "chain", "body": {"levels": 8}}
    assert daemon.call("caught", body, PATIENT).json["name"] == "agent-error"
    assert daemon.call("endless", None, PATIENT).json == "call-limit"


def test_sixteen_at_once(daemon: Daemon) -> None:
    assert daemon.call("fan", {"count": 16}, PATIENT).json == list(range(16))
    assert daemon.call("fan", {"count": 17}, PATIENT).json == [*range(16), "call-limit"]


def test_tree(daemon: Daemon) -> None:
    replies = daemon.calls("tree", [{"levels": 4, "width": 3}] * 4, PATIENT)
    assert [reply.json for reply in replies] == [40] * 4


def test_problem(daemon: Daemon) -> None:
    found = daemon.call("caught", {"agent": "broken"}, {"X-Request-Id": "r"}).json
    assert (found["name"], found["status"]) == ("agent-error", 500)
    assert found["problem"] == {
        "type": "urn:penstock:problem:agent-error",
        "title": "The agent failed",
        "status": 500,
        "detail": found["detail"],
        "request_id": "r.1",
        "agent": "broken",
        "worker": "default:0",
    }


def test_problem_that_nobody_catches(daemon: Daemon) -> None:
    reply = daemon.call("ask", {"agent": "broken"})
    assert (reply.status, reply.problem, reply.json["agent"]) == (500, "agent-error", "ask")


@pytest.mark.parametrize(
    ("agent", "body", "name", "status"),
    [
        ("nobody", None, "unknown-agent", 404),
        ("chain", {"levels": "x"}, "invalid-body", 422),
        ("sleep", {"seconds": 30}, "deadline-exceeded", 504),
        ("teapot", None, "about:blank", 418),
    ],
)
def test_other_problems(daemon: Daemon, agent: str, body: Any, name: str, status: int) -> None:
    found = daemon.call("caught", {"agent": agent, "body": body, "timeout": 0.3}).json
    assert (found["name"], found["status"], found["problem"]["status"]) == (name, status, status)


def test_bytes_and_text(daemon: Daemon) -> None:
    assert daemon.call("ask", {"agent": "raw", "body": "abc"}).body == b'"cba"'
    assert daemon.call("ask", {"agent": "text"}).json == "Grüße"


def test_streams(daemon: Daemon) -> None:
    assert daemon.call("ask", {"agent": "count", "body": {"below": 20000}}, PATIENT).json == list(range(20000))
    assert daemon.call("ask", {"agent": "count", "body": {"below": 0}}).json == []
    assert daemon.call("ask", {"agent": "pieces", "body": {"count": 3}}).body == b"0;1;2;"


def test_stream_as_it_comes(daemon: Daemon) -> None:
    assert daemon.call("streamed", {"agent": "count", "body": {"below": 20000}}, PATIENT).json == list(range(20000))
    assert daemon.call("streamed", {"agent": "count", "body": {"below": 10**9}, "most": 2}, PATIENT).json == [0, 1]
    assert "".join(daemon.call("streamed", {"agent": "pieces", "body": {"count": 3}}).json) == "0;1;2;"
    assert daemon.call("streamed", {"agent": "fails_late"}).json == [1, "agent-error"]
    assert daemon.call("streamed", {"agent": "pid"}).json == [daemon.workers()[0]["pid"]]


def test_generators_call_others(daemon: Daemon) -> None:
    passed = daemon.call("passing", {"agent": "count", "body": {"below": 5}})
    assert [json.loads(line) for line in passed.body.splitlines()] == list(range(5))
    assert daemon.call("numbers_sync", {"below": 3}, PATIENT).body == b"0\n1\n2\n"


def test_sync_within_async_within_sync(daemon: Daemon) -> None:
    body = {"agent": "ask", "body": {"agent": "ask_sync", "body": {"agent": "leaf", "body": 1}}}
    assert daemon.call("ask_sync", body, {"X-Request-Id": "r"}).json["id"] == "r.1.1.1"


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_own_timeout_cancels_the_child(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert daemon.call("impatient", {"path": str(path)}, PATIENT).json == "too late"
    eventually(lambda: lines(path) == ["begun", "cancelled"], "the child was cancelled")


def test_end_of_the_parent_cancels_the_child(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert daemon.call("forgetful", {"path": str(path)}, PATIENT).json == "False"
    eventually(lambda: lines(path) == ["begun", "cancelled"], "the child was cancelled")


@pytest.mark.parametrize("agent", ["ask", "ask_sync"])
def test_deadline_goes_down(daemon: Daemon, tmp_path: Path, agent: str) -> None:
    path = tmp_path / "log"
    body = {"agent": agent, "body": {"agent": "sleep", "body": {"seconds": 60, "path": str(path)}}}
    assert daemon.call("ask", body, {"Request-Timeout": "1"}).problem == "deadline-exceeded"
    eventually(lambda: lines(path) == ["begun", "cancelled"], "the grandchild was cancelled")


@pytest.mark.parametrize("agent", ["ask", "ask_sync"])
def test_disconnect_goes_down(daemon: Daemon, tmp_path: Path, agent: str) -> None:
    path = tmp_path / "log"
    body = {"agent": agent, "body": {"agent": "sleep", "body": {"seconds": 60, "path": str(path)}}}
    connection = daemon.hold("ask_sync", body)
    eventually(lambda: lines(path), "the grandchild runs")
    connection.close()
    eventually(lambda: lines(path) == ["begun", "cancelled"], "the grandchild was cancelled")


def test_bookkeeping(daemon: Daemon) -> None:
    before = daemon.get("/metrics").body.decode()
    reply = daemon.call("ask", {"agent": "block", "body": {"seconds": 0.2}}, {"X-Request-Id": "timed"})
    assert reply.timing["calls"] >= 0.2 > reply.timing["agent"]
    after = daemon.get("/metrics").body.decode()
    name = 'penstock_calls_nested_total{agent="block"}'
    assert value(after, name) == value(before, name) + 1


def value(text: str, name: str) -> float:
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)), 0.0)


def test_request_id_in_the_log(daemon: Daemon) -> None:
    daemon.call("caught", {"agent": "broken"}, {"X-Request-Id": "seen"})
    eventually(lambda: '"seen.1"' in daemon.log, "the child's line carries its id")


def test_deaths_of_children(fresh: DaemonFactory, tmp_path: Path) -> None:
    daemon = fresh("calling", settings={"pools.default.workers": 1, "pools.others.workers": 1, **POOLS})
    daemon.wait_workers(2)
    assert daemon.call("ask", {"agent": "dies_once", "body": {"path": str(tmp_path / "a")}}, PATIENT).status == 200
    found = daemon.call("caught", {"agent": "dies", "body": {"path": str(tmp_path / "b")}}, PATIENT).json
    assert (found["name"], found["status"]) == ("worker-died", 502)


POOLS = {
    "pools.others.agents": '["dies*", "sleep"]',
    "pools.default.agents": '["ask", "caught", "pid"]',
}


@pytest.mark.parametrize("agent", ["held", "held_sync"])
def test_connections_of_ancestors(fresh: DaemonFactory, agent: str) -> None:
    """A parent keeps its connection, so a child that could only get that one is refused without waiting for it."""
    # One is the supervisor's, and two are for each kind of pool.
    settings = {**ONE, "pools.default.concurrency": 4, "database.dsn": "", "database.max_connections": 5}
    daemon = fresh("calling", settings=settings)
    assert daemon.call(agent, {"levels": 1}, PATIENT).json == "got one"
    assert daemon.call(agent, {"levels": 2}, PATIENT).json == "got one"
    reply = daemon.call(agent, {"levels": 3}, PATIENT)
    assert (reply.json, reply.status) == ("database-unavailable", 200)
    assert reply.seconds < 10, "it did not wait until a deadline"


def test_death_of_the_parent(fresh: DaemonFactory, tmp_path: Path) -> None:
    daemon = fresh("calling", settings={"pools.default.workers": 1, "pools.others.workers": 1, **POOLS})
    daemon.wait_workers(2)
    path = tmp_path / "log"
    parent = daemon.begin("ask", {"agent": "sleep", "body": {"seconds": 60, "path": str(path)}}, PATIENT)
    eventually(lambda: lines(path), "the child runs")
    os.kill(daemon.worker("default:0")["pid"], signal.SIGKILL)
    assert parent.result().problem == "worker-died"
    eventually(lambda: lines(path) == ["begun", "cancelled"], "the child was cancelled")


def test_calls_that_were_let_in_may_ask_while_the_daemon_stops(fresh: DaemonFactory, tmp_path: Path) -> None:
    daemon = fresh("calling", settings=ONE)
    path = tmp_path / "go"
    reply = daemon.begin("later", {"path": str(path)}, PATIENT)
    eventually(lambda: daemon.in_flight() == 1, "it runs")
    daemon.send(signal.SIGTERM)
    eventually(lambda: "draining" in daemon.log, "it stops")
    path.touch()
    assert reply.result().json["value"] == "late"
