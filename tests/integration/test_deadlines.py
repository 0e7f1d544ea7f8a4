"""Deadlines from admission to answer, clients that go, and the marks of the queue."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.fix_daemon import PATIENCE, Daemon, DaemonFactory, eventually

pytestmark = pytest.mark.usefixtures("at_rest")


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons(
        "basic",
        settings={
            "agents.hard_timeout_grace": 0.5,
            "pools.default.concurrency": 4,
            "pools.default.threads": 2,
            "queue.high_water": 8,
            "queue.low_water": 4,
        },
    )
    made.wait_workers(2)
    return made


@pytest.mark.parametrize("agent", ["wait", "spin"])
def test_504_at_the_deadline_and_the_slot_is_free_again(daemon: Daemon, agent: str) -> None:
    pids = {worker["pid"] for worker in daemon.workers()}
    reply = daemon.call(agent, {"seconds": 20}, {"Request-Timeout": "0.3"})
    assert (reply.status, reply.problem) == (504, "deadline-exceeded")
    assert (reply.json["agent"], reply.json["worker"]) in {(agent, "default:0"), (agent, "default:1")}
    assert reply.seconds >= 0.3
    eventually(lambda: daemon.in_flight() == 0, "the call was interrupted")
    assert {worker["pid"] for worker in daemon.workers()} == pids, "nobody had to be killed for it"


def test_an_agents_own_timeout_is_a_deadline(daemon: Daemon) -> None:
    assert daemon.call("brief", {"seconds": 20}, {"Request-Timeout": "10"}).problem == "deadline-exceeded"
    assert daemon.call("brief", {"seconds": 0}).status == 200


def test_a_worker_that_does_not_yield_is_killed_and_replaced(daemon: Daemon) -> None:
    before = {worker["name"]: worker["pid"] for worker in daemon.workers()}
    reply = daemon.call("stubborn", {"seconds": 20}, {"Request-Timeout": "0.2"})
    assert reply.problem == "deadline-exceeded"

    def replaced() -> bool:
        now = {worker["name"]: worker["pid"] for worker in daemon.workers() if worker["state"] == "RUNNING"}
        return len(now) == 2 and now != before

    eventually(replaced, "the worker was replaced")
    assert daemon.call("echo", 1).status == 200


def test_a_request_that_waits_ends_at_its_deadline_unseen_by_workers(daemon: Daemon) -> None:
    hold = [daemon.begin("alone", {"seconds": 1.0}) for _ in range(2)]
    eventually(lambda: daemon.in_flight() == 2, "both workers are held")
    answered = sum(worker["answered"] for worker in daemon.workers())
    reply = daemon.call("alone", {"seconds": 0}, {"Request-Timeout": "0.2"})
    assert reply.problem == "deadline-exceeded"
    assert "worker" not in reply.json, "none has had it"
    assert reply.seconds < 0.9
    assert [future.result().status for future in hold] == [200, 200]
    assert sum(worker["answered"] for worker in daemon.workers()) == answered + 2


@pytest.mark.parametrize("agent", ["wait", "spin"])
def test_a_client_that_goes_has_its_work_cancelled(daemon: Daemon, agent: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    connection.request("POST", f"/v1/agents/{agent}", json.dumps({"seconds": 25}))
    eventually(lambda: daemon.in_flight() == 1, "the call runs")
    connection.close()
    begun = time.monotonic()
    eventually(lambda: daemon.in_flight() == 0, "the call was cancelled")
    assert time.monotonic() - begun < 10


def test_a_client_that_goes_leaves_the_queue(daemon: Daemon) -> None:
    hold = [daemon.begin("alone", {"seconds": 0.8}) for _ in range(2)]
    eventually(lambda: daemon.in_flight() == 2, "both workers are held")
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    connection.request("POST", "/v1/agents/alone", json.dumps({"seconds": 25}))
    eventually(lambda: daemon.status()["queue"]["requests"] == 1, "it waits")
    connection.close()
    eventually(lambda: daemon.status()["queue"]["requests"] == 0, "it waits no more")
    assert [future.result().status for future in hold] == [200, 200]


def test_refusing_starts_at_the_high_mark_and_ends_at_the_low_one(daemon: Daemon) -> None:
    running = [daemon.begin("wait", {"seconds": 1.0}) for _ in range(8)]
    eventually(lambda: daemon.in_flight() == 8, "all slots are taken")
    waiting = [daemon.begin("wait", {"seconds": 0.3}) for _ in range(8)]
    eventually(lambda: daemon.status()["queue"]["refusing"], "the high-water mark is reached")
    reply = daemon.call("wait", {"seconds": 0})
    assert (reply.status, reply.problem) == (503, "overloaded")
    assert int(reply.headers["Retry-After"]) >= 1
    assert daemon.get("/readyz").status == 503
    assert daemon.get("/healthz").status == 200
    eventually(lambda: daemon.get("/readyz").status == 200, "requests are taken again")
    assert daemon.status()["queue"]["requests"] <= 4
    assert [future.result().status for future in [*running, *waiting]] == [200] * 16


CHUNKED = b"POST /v1/agents/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def announced(size: int) -> bytes:
    return f"POST /v1/agents/echo HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("kind", ["announced", "chunked"])
def test_bodies_that_arrive_slowly_count_as_far_as_they_have_arrived(fresh: DaemonFactory, kind: str) -> None:
    large = 2 * 2**20
    daemon = fresh("basic", settings={"queue.max_bytes": "3MiB", "http.max_body": "2MiB"})
    wrap = chunk if kind == "chunked" else bytes
    head = CHUNKED if kind == "chunked" else announced(large)
    end = b"0\r\n\r\n" if kind == "chunked" else b""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as slow:
        slow.sendall(head + wrap(b'"'))
        eventually(lambda: daemon.status()["queue"]["bytes"] == 1, "one byte has arrived")
        assert daemon.call("echo", "x" * (large - 2)).status == 200
        slow.sendall(wrap(b"x" * (large * 3 // 4)))
        eventually(lambda: daemon.status()["queue"]["bytes"] > large * 3 // 4, "most of it has arrived")
        assert daemon.call("echo", "x" * (large - 2)).problem == "overloaded"
        assert daemon.call("echo", 1).status == 200
        slow.sendall(wrap(b"x" * (large // 4 - 2) + b'"') + end)
        assert slow.recv(64).startswith(b"HTTP/1.1 200")
    assert daemon.status()["queue"]["bytes"] == 0


def test_who_finds_no_room_for_more_is_refused_and_gives_back_what_it_had(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", settings={"queue.max_bytes": "1MiB", "http.max_body": "1MiB"})
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=30)) for _ in range(2)
        ]
        for client in clients:
            client.sendall(CHUNKED + chunk(b'"' + b"x" * 500_000))
        eventually(lambda: daemon.status()["queue"]["bytes"] == 1_000_002, "both have sent half of theirs")
        clients[0].sendall(chunk(b"x" * 100_000))
        assert clients[0].recv(64).startswith(b"HTTP/1.1 503")
        eventually(lambda: daemon.status()["queue"]["bytes"] == 500_001, "it has given its bytes back")
        assert not daemon.status()["queue"]["refusing"]
        clients[1].sendall(chunk(b"x" * 400_000 + b'"') + b"0\r\n\r\n")
        assert clients[1].recv(64).startswith(b"HTTP/1.1 200")
    assert daemon.status()["queue"]["bytes"] == 0


def test_bodies_that_arrive_on_several_listeners_share_one_mark(fresh: DaemonFactory) -> None:
    settings = {"queue.max_bytes": "1MiB", "http.max_body": "1MiB", "http.admin_bind": "127.0.0.1:0"}
    daemon = fresh("basic", settings=settings)
    admin = daemon.admin_port
    queue = admin_status(admin)
    half = chunk(b'"' + b"x" * 400_000)
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for port in (daemon.port, admin)
        )
        for client in (first, second):
            client.sendall(CHUNKED + half)
        eventually(lambda: queue()["bytes"] == 800_002, "half of each has arrived")
        first.sendall(chunk(b"x" * 240_000))
        eventually(lambda: queue()["bytes"] == 1_040_002, "nearly all of the room is taken")
        second.sendall(chunk(b"x" * 10_000))
        refusal = second.recv(4096)
        assert refusal.startswith(b"HTTP/1.1 503")
        assert re.search(rb"\r\nRetry-After: [1-9]", refusal)
        eventually(lambda: queue()["bytes"] == 640_001, "it has given its bytes back")
        first.sendall(chunk(b"x" * 300_000))
        eventually(lambda: queue()["bytes"] == 940_001, "there is no room for another such body")
        third = stack.enter_context(socket.create_connection(("127.0.0.1", admin), timeout=30))
        third.sendall(announced(200_000))
        assert third.recv(64).startswith(b"HTTP/1.1 503")
        # From the high mark until the low one everything is refused, on whichever listener.
        assert queue()["refusing"]
        assert daemon.call("echo", 1).problem == "overloaded"
        first.sendall(chunk(b'"') + b"0\r\n\r\n")
        assert first.recv(64).startswith(b"HTTP/1.1 200")
    assert queue() | {"oldest": 0.0} == queue() | {"oldest": 0.0, "bytes": 0, "refusing": False}
    assert daemon.call("echo", 1).status == 200


def test_many_slow_uploads_of_little_shut_out_nobody(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", settings={"queue.max_bytes": "8MiB", "http.admin_bind": "127.0.0.1:0"})
    admin = daemon.admin_port
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(60):
            # Of both listeners: they share the mark.
            port = (daemon.port, admin)[number % 2]
            clients.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)))
            clients[-1].sendall(CHUNKED + chunk(b"[1,") if number % 3 else announced(5) + b"[1,")
        queue = admin_status(admin)
        eventually(lambda: queue()["bytes"] == 180, "all three bytes of each have arrived")
        assert not queue()["refusing"]
        for number, client in enumerate(clients):
            client.sendall(chunk(b"2]") + b"0\r\n\r\n" if number % 3 else b"2]")
            answer = client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"[1,2]")
        assert queue()["bytes"] == 0


def admin_status(port: int) -> Callable[[], dict[str, Any]]:
    """The queue, as the listener on this port shows it."""

    def queue() -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/v1/status")
        found: dict[str, Any] = json.loads(connection.getresponse().read())["queue"]
        connection.close()
        return found

    return queue
