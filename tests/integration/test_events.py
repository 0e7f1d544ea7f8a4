"""``GET /v1/events`` of a running daemon."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from penstock.daemon.front.events import MOST
from tests.fix_daemon import PATIENCE, Daemon, DaemonFactory, eventually


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    return daemons("basic", settings={"pools.default.workers": 1})


@dataclass
class Reader:
    """A connection that reads the stream."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse

    def block(self) -> list[bytes]:
        """The lines up to the next empty one; none at the end of the stream."""
        lines: list[bytes] = []
        while (line := self.response.readline()) not in (b"", b"\n"):
            lines.append(line.rstrip(b"\n"))
        return lines

    def event(self) -> bytes:
        """The data of the next status event."""
        while block := self.block():
            if block[0] == b"event: status":
                assert len(block) == 2
                return block[1].removeprefix(b"data: ")
        pytest.fail("the stream has ended")

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.event()))


@contextmanager
def reading(daemon: Daemon) -> Iterator[Reader]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    try:
        connection.request("GET", "/v1/events")
        yield Reader(connection, connection.getresponse())
    finally:
        connection.close()


def test_the_status_comes_whole_and_then_each_second(daemon: Daemon) -> None:
    with reading(daemon) as reader:
        assert reader.response.status == 200
        assert reader.response.headers["Content-Type"] == "text/event-stream"
        assert reader.response.headers["Cache-Control"] == "no-store"
        assert reader.block() == [b"retry: 1000"]
        statuses = [reader.status() for _ in range(3)]
        asked = daemon.status()
        for status in statuses:
            assert set(status) == set(asked)
            assert [worker["name"] for worker in status["workers"]] == ["default:0"]
        uptimes = [status["uptime"] for status in statuses]
        assert uptimes[2] - uptimes[1] == pytest.approx(1.0, abs=0.9)
        assert uptimes == sorted(uptimes)


def test_readers_get_the_same_text(daemon: Daemon) -> None:
    with reading(daemon) as one, reading(daemon) as other:
        one.event()
        other.event()
        texts = [{reader.event() for _ in range(3)} for reader in (one, other)]
        assert len(texts[0] & texts[1]) >= 2


def test_calls_are_served_meanwhile_and_seen(daemon: Daemon) -> None:
    with reading(daemon) as reader:
        before = reader.status()["workers"][0]["answered"]
        assert [reply.status for reply in daemon.calls("echo", list(range(50)))] == [200] * 50
        eventually(lambda: reader.status()["workers"][0]["answered"] >= before + 50, "the calls are seen")


def test_head_is_answered_without_a_stream(daemon: Daemon) -> None:
    reply = daemon.request("HEAD", "/v1/events")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Content-Type"] == "text/event-stream"
    assert daemon.request("POST", "/v1/events").problem == "method-not-allowed"


def test_there_are_only_so_many_readers_and_who_goes_leaves_room(daemon: Daemon) -> None:
    connections = [http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE) for _ in range(MOST)]
    try:
        for connection in connections:
            connection.request("GET", "/v1/events")
        readers = [Reader(connection, connection.getresponse()) for connection in connections]
        for reader in readers:
            assert reader.status()["version"]
        refused = daemon.get("/v1/events")
        assert (refused.status, refused.problem) == (503, "overloaded")
        assert str(MOST) in refused.json["detail"]
        assert int(refused.headers["Retry-After"]) > 0
        assert daemon.call("echo", 1).status == 200
    finally:
        for connection in connections:
            connection.close()
    with reading(daemon) as reader:
        eventually(lambda: daemon.request("HEAD", "/v1/events").status == 200, "there is room again")


def test_a_stop_is_seen_and_ends_the_stream(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", settings={"pools.default.workers": 1})
    with reading(daemon) as reader:
        assert reader.status()["state"] == "ready"
        held = daemon.begin("wait", {"seconds": 2.5})
        eventually(lambda: daemon.in_flight() == 1, "a call runs")
        daemon.send(signal.SIGTERM)
        eventually(lambda: reader.status()["state"] == "the daemon is stopping", "the stream says that it stops")
        assert held.result().status == 200
        while reader.block():
            pass
        # http.client raises IncompleteRead if the last chunk is missing.
        assert reader.response.read() == b""
    assert daemon.stop() == 0
