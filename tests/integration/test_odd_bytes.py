"""Requests with bytes that are not text, and answers in ways that people think of: what an agent gets, what goes out."""

from __future__ import annotations

import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fix_daemon import PATIENCE, Daemon, DaemonFactory, eventually

SLOTS = 8


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    settings = {"pools.default.concurrency": 4, "pools.default.balance": "hash", "log.format": "json"}
    made = daemons("odd", settings=settings)
    made.wait_workers(2)
    return made


def connect(daemon: Daemon) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE)


def post(agent: str, body: bytes, *lines: bytes) -> bytes:
    """A request as bytes."""
    head = [b"POST /v1/agents/%b HTTP/1.1" % agent.encode(), b"Host: x", b"Connection: close", *lines]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", body])


def send(daemon: Daemon, agent: str, body: bytes, *lines: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer."""
    with connect(daemon) as client:
        client.sendall(post(agent, body, *lines))
        answer = client.makefile("rb").read()
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head[9:12]), head, rest


def rests(daemon: Daemon) -> bool:
    status = daemon.status()
    return not status["queue"]["requests"] and not any(worker["in_flight"] for worker in status["workers"])


@pytest.mark.parametrize("agent", ["look", "look_in_thread"])
def test_a_header_arrives_with_each_byte_that_http_allows(daemon: Daemon, agent: str) -> None:
    values = [bytes([each]) for each in (9, *range(32, 127), *range(128, 256))] + [b"caf\xc3\xa9", b"\xed\xa0\x80"]
    lines = [b"X-Note-%d: a%bz" % (at, value) for at, value in enumerate(values)]
    seen: dict[str, str] = {}
    for at in range(0, len(lines), 80):
        status, _, body = send(daemon, agent, b"", *lines[at : at + 80])
        assert status == 200
        seen |= json.loads(body)["headers"]
    assert [bytes.fromhex(seen[f"x-note-{at}"]) for at in range(len(values))] == [b"a%bz" % each for each in values]


def test_no_odd_header_costs_a_slot(daemon: Daemon) -> None:
    before = {worker["pid"] for worker in daemon.workers()}
    for name in (
        b"X-Note",
        b"Affinity-Key",
        b"X-Request-Id",
        b"traceparent",
        b"tracestate",
        b"Priority",
        b"User-Agent",
    ):
        for _ in range(SLOTS + 1):
            assert send(daemon, "look", b"x", name + b": caf\xe9")[0] == 200
    eventually(lambda: rests(daemon), "no slot is taken")
    replies = daemon.calls("wait", [{"seconds": 0.05}] * SLOTS, at_once=SLOTS)
    assert [reply.status for reply in replies] == [200] * SLOTS
    assert {worker["pid"] for worker in daemon.workers()} == before


@pytest.mark.parametrize("name", [b"Request-Timeout", b"X-Request-Timeout-Seconds", b"grpc-timeout"])
def test_an_odd_header_that_is_read_is_named(daemon: Daemon, name: bytes) -> None:
    status, _, body = send(daemon, "look", b"", name + b": 1\xe9")
    found = json.loads(body)
    assert (status, found["type"]) == (400, "urn:penstock:problem:bad-header")
    assert name.decode() in found["detail"]


def test_any_bytes_are_an_affinity_key_also_at_the_head_of_a_queue(daemon: Daemon, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    held = [daemon.begin("compute", {"path": str(stop)}) for _ in range(SLOTS)]
    eventually(lambda: daemon.in_flight() >= 2, "the workers compute")
    answers: list[int] = []
    keys = (b"caf\xe9", b"\xff", b"plain", b"")
    body = json.dumps({"path": str(stop)}).encode()
    threads = [
        threading.Thread(
            target=lambda key=key: answers.append(send(daemon, "compute", body, b"Affinity-Key: " + key)[0])
        )
        for key in keys
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: daemon.status()["queue"]["requests"] >= len(keys), "they wait")
    stop.touch()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == [200] * len(keys)
    assert [each.result().status for each in held] == [200] * SLOTS
    eventually(lambda: rests(daemon), "nothing is left")


def test_an_odd_key_keeps_its_worker(daemon: Daemon) -> None:
    eventually(lambda: rests(daemon), "nothing runs")
    bodies = [send(daemon, "look", b"", b"Affinity-Key: caf\xe9\xff")[2] for _ in range(6)]
    assert len({json.loads(body)["pid"] for body in bodies}) == 1


def test_odd_paths_and_methods_are_problems_in_json(daemon: Daemon) -> None:
    for target in (b"/v1/agents/caf%e9", b"/v1/agents/%ed%a0%80", b"/v1/workers/%ff/stack", b"/caf\xe9", b"/?a=\xff"):
        with connect(daemon) as client:
            client.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % target)
            answer = client.makefile("rb").read()
        assert answer[9:12] in (b"400", b"404", b"405")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"].startswith("urn:penstock:problem:")


def test_what_an_agent_logs_of_odd_bytes_is_a_line_of_json(daemon: Daemon) -> None:
    assert send(daemon, "look", b"the mark\xff", b"X-Note: caf\xe9")[0] == 200
    line = eventually(
        lambda: next((each for each in daemon.log.splitlines() if "the mark" in each), ""), "the agent's line is there"
    )
    assert "caf\udce9" in json.loads(line[line.index("{") :])["message"]


# Answers


def fields(head: bytes, name: str) -> list[str]:
    return [
        found[1].decode("latin-1") for found in re.finditer(rb"(?im)^%b: ([^\r]*)\r?$" % name.encode(), head + b"\r\n")
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Type", "text/csv; charset=latin-1"),
        ("content-type", "text/csv"),
        ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("X-Request-Id", "theirs"),
        ("Server-Timing", "mine;dur=1"),
        ("server-timing", "mine;dur=1"),
        ("Retry-After", "7"),
        ("Cache-Control", "no-store"),
        ("Content-Length", "4"),
        ("X-Note", "caf\xe9"),
    ],
)
def test_of_each_header_there_is_one_and_it_is_the_agents(daemon: Daemon, name: str, value: str) -> None:
    status, head, body = send(daemon, "answer_with", json.dumps({"headers": [[name, value]]}).encode())
    assert (status, body) == (200, b"text")
    assert fields(head, name) == [value]
    for ours in ("Content-Type", "Content-Length", "Date", "X-Request-Id", "Server-Timing"):
        assert len(fields(head, ours)) == 1


@pytest.mark.parametrize(
    "name", ["Transfer-Encoding", "connection", "Keep-Alive", "Upgrade", "Trailer", "Content-Length"]
)
def test_what_frames_the_message_is_refused_and_the_log_says_so(daemon: Daemon, name: str) -> None:
    status, head, body = send(daemon, "answer_with", json.dumps({"headers": [[name, "5"]]}).encode())
    assert (status, json.loads(body)["type"]) == (500, "urn:penstock:problem:agent-error")
    assert fields(head, "Content-Length") == [str(len(body))]
    assert not fields(head, "Transfer-Encoding")
    eventually(lambda: f"the header {name} " in daemon.log, "the log names the header")


@pytest.mark.parametrize(
    ("what", "value"),
    [("status", None), ("status", "x"), ("headers", [["X-One", 5]]), ("content_type", 5), ("content_type", "a\r\nb")],
)
def test_an_answer_that_cannot_be_sent_ends_its_call_alone(daemon: Daemon, what: str, value: Any) -> None:
    for _ in range(SLOTS + 1):
        reply = daemon.call("unsendable", {"what": what, "value": value})
        assert (reply.status, reply.problem) == (500, "agent-error")
    eventually(lambda: rests(daemon), "no slot is taken")
    assert daemon.call("wait", {"seconds": 0}).status == 200


# Functions


@pytest.mark.parametrize(
    ("agent", "value", "result"),
    [
        ("counted", 3, 4),
        ("counted", {"number": 3}, 4),
        ("square", 5, 25),
        ("huge", {}, str(2**70)),
        ("begun_elsewhere", 0.01, "awaited"),
    ],
)
def test_decorated_functions_are_called_as_they_say(daemon: Daemon, agent: str, value: Any, result: Any) -> None:
    for _ in range(4):  # on both workers, and again where something was kept
        assert daemon.call(agent, value).json == result


@pytest.mark.parametrize("agent", ["counted", "counted_async", "square"])
def test_their_bodies_are_checked(daemon: Daemon, agent: str) -> None:
    reply = daemon.call(agent, "3")
    assert (reply.status, reply.problem) == (422, "invalid-body")
    assert daemon.get(f"/v1/agents/{agent}").json["kind"] == ("sync" if agent == "counted" else "async")


def test_what_a_plain_function_gives_to_be_awaited_ends_at_its_deadline(daemon: Daemon) -> None:
    before = {worker["pid"] for worker in daemon.workers()}
    assert daemon.call("begun_elsewhere", 20.0, {"Request-Timeout": "0.2"}).problem == "deadline-exceeded"
    eventually(lambda: rests(daemon), "its slot is free")
    assert {worker["pid"] for worker in daemon.workers()} == before
