"""The outside of a running daemon: calls, problems, headers, views."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any

import pytest

from tests.fix_daemon import PATIENT, Daemon, DaemonFactory, eventually


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons("basic", settings={"http.max_body": "1MiB", "agents.timeout": 20})
    made.wait_workers(2)
    return made


@pytest.mark.parametrize("value", [{"a": 1}, [1, "zwei", None, True], "text", 0, -1.5, None, 2**70, {"ü": "🙂"}])
def test_echo_gives_every_value_back(daemon: Daemon, value: Any) -> None:
    reply = daemon.call("echo", value)
    assert (reply.status, reply.json) == (200, value)
    assert reply.headers["Content-Type"] == "application/json"


def test_large_bodies_go_both_ways(daemon: Daemon) -> None:
    value = "x" * 900_000
    assert daemon.call("echo", value).json == value


def test_bytes_are_taken_and_given_raw(daemon: Daemon) -> None:
    body = bytes(range(256))
    reply = daemon.request("POST", "/v1/agents/raw", body, {"Content-Type": "image/png"})
    assert (reply.status, reply.body) == (200, body[::-1])
    assert reply.headers["Content-Type"] == "application/octet-stream"


def test_a_response_says_its_own_status_and_headers(daemon: Daemon) -> None:
    reply = daemon.call("teapot")
    assert (reply.status, reply.body) == (418, b"short and stout")
    assert reply.headers["X-Spout"] == "yes"
    assert reply.headers["Content-Type"] == "text/plain"


@pytest.mark.parametrize(
    ("agent", "body", "headers", "status", "name", "detail"),
    [
        ("echo", b"{", {}, 400, "malformed-body", ""),
        ("echo", b"[NaN]", {}, 400, "malformed-body", ""),
        ("echo", b"[Infinity]", {}, 400, "malformed-body", ""),
        ("echo", b'"\xff"', {}, 400, "malformed-body", ""),
        ("order", b'{"text": "a", "limit": "b"}', {}, 422, "invalid-body", "$.limit"),
        ("order", b"{}", {}, 422, "invalid-body", "text"),
        ("echo", b"1", {"Request-Timeout": "0"}, 400, "bad-header", "Request-Timeout"),
        ("echo", b"1", {"Content-Type": "text/plain"}, 415, "unsupported-media-type", "text/plain"),
        ("echo", b"1", {"Content-Encoding": "gzip"}, 415, "unsupported-media-type", "gzip"),
        ("echo", b"1" * (1024 * 1024 + 1), {}, 413, "body-too-large", "1048576"),
        ("nobody", b"1", {}, 404, "unknown-agent", "nobody"),
        ("fail", b"1", {}, 500, "agent-error", ""),
        ("split", b"1", {}, 500, "agent-error", ""),
    ],
)
def test_problems_name_what_was_wrong(
    daemon: Daemon, agent: str, body: bytes, headers: dict[str, str], status: int, name: str, detail: str
) -> None:
    reply = daemon.call(agent, body, headers)
    assert (reply.status, reply.problem) == (status, name)
    problem = reply.json
    assert problem["status"] == status
    assert problem["title"]
    assert detail in problem["detail"]
    assert problem["request_id"] == reply.headers["X-Request-Id"]
    if name != "unknown-agent":
        assert problem["agent"] == agent


def test_deep_nesting_is_refused_and_harms_nobody(daemon: Daemon) -> None:
    pids = {worker["pid"] for worker in daemon.workers()}
    assert daemon.call("echo", b"[" * 100_000 + b"]" * 100_000).status in (400, 422)
    assert daemon.call("echo", 1).json == 1
    assert {worker["pid"] for worker in daemon.workers()} == pids


def test_an_agents_failure_tells_the_client_nothing_and_the_log_everything(daemon: Daemon) -> None:
    reply = daemon.call("fail", "nobody may know", {"X-Request-Id": "find-me"})
    assert b"secret" not in reply.body
    assert b"Traceback" not in reply.body
    eventually(lambda: "a secret: nobody may know" in daemon.log, "the log has the exception's message")
    assert "find-me" in daemon.log


def test_unknown_paths_and_methods(daemon: Daemon) -> None:
    assert daemon.get("/nope").problem == "not-found"
    assert daemon.get("/v1/workers/default:9").problem == "unknown-worker"
    assert daemon.get("/v1/agents/nobody").problem == "unknown-agent"
    reply = daemon.request("PUT", "/v1/agents")
    assert (reply.status, reply.problem, reply.headers["Allow"]) == (405, "method-not-allowed", "GET, HEAD")
    reply = daemon.request("DELETE", "/v1/agents/echo")
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD, POST")


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz", "/v1/agents", "/v1/status", "/v1/workers"])
def test_head_is_answered_wherever_get_is(daemon: Daemon, path: str) -> None:
    got, head = daemon.get(path), daemon.request("HEAD", path)
    assert (got.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]


def test_agents_are_described_with_their_schemas(daemon: Daemon) -> None:
    listed = {each["name"]: each for each in daemon.get("/v1/agents").json["agents"]}
    order = daemon.get("/v1/agents/order").json
    assert listed["order"] == order
    assert order["pool"] == "default"
    assert order["timeout"] == 20
    assert not order["idempotent"]
    assert "limit" in json.dumps(order["body_schema"])
    assert listed["brief"]["timeout"] == 0.3
    assert listed["echo"]["idempotent"]


def test_context_knows_who_asks_and_how_long_there_is(daemon: Daemon) -> None:
    headers = {"X-Request-Id": "mine-1", "X-Test": "seen", "Request-Timeout": "7"}
    reply = daemon.call("about", None, headers)
    about = reply.json
    assert about["request_id"] == reply.headers["X-Request-Id"] == "mine-1"
    assert about["client"] == "127.0.0.1"
    assert about["agent-header"] == "seen"
    assert 0 < about["remaining"] <= 7


def test_server_timing_tells_where_the_time_went(daemon: Daemon) -> None:
    reply = daemon.call("wait", {"seconds": 0.1})
    assert re.fullmatch(r"queue;dur=[0-9.]+, agent;dur=[0-9.]+", reply.headers["Server-Timing"])
    assert reply.timing["agent"] >= 0.095


def test_server_timing_of_what_waits_and_of_what_is_refused(daemon: Daemon) -> None:
    first = [daemon.begin("alone", {"seconds": 0.3}) for _ in range(2)]
    eventually(lambda: daemon.in_flight() == 2, "both workers have one")
    late = daemon.begin("alone", {"seconds": 0.0}, {"Request-Timeout": "0.1"})
    waited = daemon.call("alone", {"seconds": 0.0})
    assert waited.timing["queue"] > 10 * waited.timing["agent"]
    assert late.result().problem == "deadline-exceeded"
    assert late.result().timing["queue"] >= 0.1
    assert [reply.result().status for reply in first] == [200, 200]
    running = daemon.call("wait", {"seconds": 20.0}, {"Request-Timeout": "0.2"})
    assert running.problem == "deadline-exceeded"
    assert list(running.timing) == ["queue"]
    invalid = daemon.call("order", [])
    assert (invalid.status, list(invalid.timing)) == (422, ["queue", "agent"])


def test_garbage_is_answered_with_a_problem(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
        client.sendall(b"NOT HTTP AT ALL\r\n\r\n")
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"urn:penstock:problem:http-error" in answer


def test_pipelined_requests_are_answered_in_order(daemon: Daemon) -> None:
    request = b"POST /v1/agents/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
        client.sendall(b"".join(request + str(n).encode() for n in range(8)) + b"GET /livez HTTP/1.0\r\n\r\n")
        answers = client.makefile("rb").read()
    assert re.findall(rb"\r\n\r\n(\d)", answers) == [str(n).encode() for n in range(8)]


BAD = [
    b"NOT HTTP AT ALL\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n",
    b"POST /v1/agents/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n",
    b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("good", range(4))
@pytest.mark.parametrize("split", [0, 20, 75])
def test_what_came_before_a_request_that_cannot_be_read_is_answered(
    daemon: Daemon, good: int, bad: bytes, split: int
) -> None:
    request = b"POST /v1/agents/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n"
    sent = b"".join(request + str(n).encode() for n in range(good)) + bad
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # In one segment, and in two that begin and end within a request.
        for part in (sent[:split], sent[split:]):
            client.sendall(part)
        with client.makefile("rb") as file:
            answers = file.read()
    statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)
    assert statuses[:-1] == [b"200"] * good
    assert statuses[-1] in (b"400", b"431")
    assert re.findall(rb"\r\n\r\n(\d)", answers) == [str(n).encode() for n in range(good)]


@pytest.mark.parametrize("scheme", ["http", "HTTP", "hTTps"])
@pytest.mark.parametrize(
    ("method", "rest", "status"),
    [
        ("GET", "host/livez", 200),
        ("GET", "host:8080/v1/agents/echo?x=/y", 200),
        ("GET", "user@[::1]:80/v1/workers", 200),
        ("GET", "host/docs", 200),
        ("GET", "host", 200),
        ("GET", "host?x", 200),
        ("GET", "host/none", 404),
        ("POST", "host/v1/agents/echo", 200),
        ("POST", "host/v1/agents/none", 404),
    ],
)
def test_an_absolute_target_is_the_same_as_its_path(
    daemon: Daemon, scheme: str, method: str, rest: str, status: int
) -> None:
    length = 1 if method == "POST" else 0
    head = f"{method} {scheme}://{rest} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
        client.sendall(head.encode() + b"7" * length)
        answer = client.makefile("rb").read()
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


def test_a_client_that_shuts_down_its_writing_side_counts_as_gone(daemon: Daemon) -> None:
    body = b'{"seconds": 15}'
    head = b"POST /v1/agents/wait HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
        client.sendall(head + body)
        eventually(lambda: daemon.in_flight() == 1, "it runs")
        client.shutdown(socket.SHUT_WR)
        eventually(lambda: daemon.in_flight() == 0, "its work is cancelled")
        assert client.recv(1) == b""


def test_expect_continue_is_obeyed(daemon: Daemon) -> None:
    head = b"POST /v1/agents/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
        client.sendall(head)
        assert client.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"7")
        assert client.makefile("rb").read().endswith(b"\r\n\r\n7")


@pytest.mark.parametrize(("chunks", "status"), [([b"[1,", b"2]"], b"200"), ([b"x" * 700_000] * 2, b"413")])
def test_chunked_bodies_are_taken_up_to_the_limit(daemon: Daemon, chunks: list[bytes], status: bytes) -> None:
    head = b"POST /v1/agents/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
        client.sendall(head + body)
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert status != b"200" or answer.endswith(b"\r\n\r\n[1,2]")


def test_many_at_once_are_all_answered_and_shared_out(daemon: Daemon) -> None:
    replies = daemon.calls("wait", [{"seconds": 0.05}] * 200)
    assert [reply.status for reply in replies] == [200] * 200
    assert len({reply.json["pid"] for reply in replies}) == 2


def test_waiting_calls_do_not_hold_up_others(daemon: Daemon) -> None:
    long = [daemon.begin("wait", {"seconds": 1.0}) for _ in range(8)]
    eventually(lambda: daemon.in_flight() >= 8, "the long calls run")
    assert daemon.call("echo", 1).seconds < 0.9
    assert [future.result().status for future in long] == [200] * 8


def test_a_limit_of_one_per_worker_is_kept(daemon: Daemon) -> None:
    begun = time.monotonic()
    replies = daemon.calls("alone", [{"seconds": 0.2}] * 6, PATIENT)
    assert [reply.status for reply in replies] == [200] * 6
    assert time.monotonic() - begun >= 0.6


def test_urgent_requests_go_first(daemon: Daemon) -> None:
    hold = [daemon.hold("alone", {"seconds": 25}) for _ in range(2)]
    eventually(lambda: daemon.in_flight() >= 2, "both workers are held")
    ended: list[str] = []
    last = daemon.begin("alone", {"seconds": 0.1}, {"Priority": "u=7", **PATIENT})
    last.add_done_callback(lambda _: ended.append("last"))
    eventually(lambda: daemon.status()["queue"]["requests"] >= 1, "the first waits")
    more = [daemon.begin("alone", {"seconds": 0.1}, {"Priority": "u=6", **PATIENT}) for _ in range(2)]
    eventually(lambda: daemon.status()["queue"]["requests"] >= 3, "all wait")
    first = daemon.begin("alone", {"seconds": 0.1}, {"Priority": "u=0", **PATIENT})
    first.add_done_callback(lambda _: ended.append("first"))
    eventually(lambda: daemon.status()["queue"]["requests"] >= 4, "it waits, too")
    for connection in hold:
        connection.close()
    for future in [*more, first, last]:
        assert future.result().status == 200
    assert ended == ["first", "last"]


def test_status_shows_workers_queue_and_database(daemon: Daemon) -> None:
    status = daemon.status()
    assert status["state"] == "ready"
    assert {worker["name"] for worker in status["workers"]} == {"default:0", "default:1"}
    assert status["queue"]["high_water"] == 1024
    assert status["database"]["mode"] == "off"
    worker = daemon.worker("default:0")
    assert worker["state"] == "RUNNING"
    assert worker["in_flight"] == 0
    assert worker["load"] == 0
    assert worker["pid"] > 0
