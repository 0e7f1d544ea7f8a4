"""Agents that stream, over real connections: what clients get, how readers hold generators back, how streams end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fix_daemon import AGENTS, PATIENCE, PATIENT, Daemon, DaemonFactory, eventually, line_of
from tests.fix_metrics import Samples

MIB = 1 << 20
PROBLEM = "urn:penstock:problem:"


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons(
        "streaming",
        "basic",
        settings={"http.stall_timeout": 2.0, "http.max_body": MIB, "supervision.start_seconds": 0.1},
    )
    made.wait_workers(2)
    return made


@pytest.fixture(autouse=True)
def at_rest(daemon: Daemon) -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()
    daemon.wait_workers(2)
    eventually(lambda: daemon.in_flight() == 0, "nothing is left running")
    samples = Samples(daemon)
    assert samples("penstock_streams") == 0
    assert samples("penstock_queue_bytes") == 0


_open: list[Reader] = []


class Reader:
    """Reads an answer step by step, with as little taken from the socket as was asked for."""

    def __init__(self, daemon: Daemon, agent: str, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(("127.0.0.1", daemon.port))
        lines = "".join(f"{name}: {text}\r\n" for name, text in {**PATIENT, **(headers or {})}.items())
        head = f"POST /v1/agents/{agent} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        self._socket.sendall(head.encode() + body)
        self.response = http.client.HTTPResponse(self._socket, method="POST")
        _open.append(self)

    def begin(self) -> http.client.HTTPResponse:
        self.response.begin()
        return self.response

    def close(self) -> None:
        self.response.close()
        self._socket.close()


def lines(body: bytes) -> list[Any]:
    assert body.endswith(b"\n")
    return [json.loads(line) for line in body.splitlines()]


def problem_of(item: Any) -> str:
    assert isinstance(item, dict)
    assert str(item["type"]).startswith(PROBLEM), item
    return str(item["type"]).removeprefix(PROBLEM)


@pytest.mark.parametrize("agent", ["count", "count_plain", "count_returned", "count_listed"])
def test_items_are_lines_of_json(daemon: Daemon, agent: str) -> None:
    reply = daemon.call(agent, 1000)
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/x-ndjson"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["X-Accel-Buffering"] == "no"
    assert reply.headers["Vary"] == "Accept"
    assert "Content-Length" not in reply.headers
    assert lines(reply.body) == list(range(1000))


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("text/event-stream", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("*/*", "application/x-ndjson"),
        ("application/x-ndjson;q=0.5, text/event-stream;q=0.9", "text/event-stream"),
        ("application/x-ndjson, text/event-stream;q=0.9", "application/x-ndjson"),
        ("text/event-stream;q=0", "application/x-ndjson"),
        ("text/html", "application/x-ndjson"),
    ],
)
def test_the_client_chooses_between_events_and_lines(daemon: Daemon, accept: str, media_type: str) -> None:
    reply = daemon.call("count", 2, {"Accept": accept})
    assert reply.headers["Content-Type"] == media_type
    assert reply.body == (b"data: 0\n\ndata: 1\n\n" if media_type == "text/event-stream" else b"0\n1\n")


def test_a_stream_of_nothing_is_an_empty_body(daemon: Daemon) -> None:
    reply = daemon.call("count", 0)
    assert (reply.status, reply.body, reply.headers["Content-Type"]) == (200, b"", "application/x-ndjson")


@pytest.mark.parametrize("agent", ["fails", "fails_plain", "unfit"])
def test_what_fails_before_the_first_item_is_an_ordinary_problem(daemon: Daemon, agent: str) -> None:
    reply = daemon.call(agent, 0)
    assert (reply.status, reply.problem) == (500, "agent-error")
    assert b"secret" not in reply.body


@pytest.mark.parametrize("agent", ["fails", "fails_plain", "unfit"])
def test_what_fails_later_is_the_last_item(daemon: Daemon, agent: str) -> None:
    reply = daemon.call(agent, 3)
    *items, last = lines(reply.body)
    assert (reply.status, items, problem_of(last)) == (200, [0, 1, 2], "agent-error")
    assert b"secret" not in reply.body
    assert last["request_id"] == reply.headers["X-Request-Id"]
    event = daemon.call(agent, 1, {"Accept": "text/event-stream"}).body
    first, second, rest = event.split(b"\n\n")
    assert (first, rest) == (b"data: 0", b"")
    kind, data = second.split(b"\n")
    assert kind == b"event: error"
    assert problem_of(json.loads(data.removeprefix(b"data: "))) == "agent-error"


def test_an_item_over_the_limit_is_an_error(daemon: Daemon) -> None:
    assert len(daemon.call("huge", MIB - 2).body) > MIB
    *items, last = lines(daemon.call("huge", MIB - 1).body)
    assert (items, problem_of(last)) == (["small"], "agent-error")


def test_what_is_no_stream_is_an_error(daemon: Daemon) -> None:
    assert daemon.call("no_stream").problem == "agent-error"
    eventually(lambda: "return an iterator" in daemon.log, "the log says why")


def test_a_response_streams_bytes_as_they_are(daemon: Daemon) -> None:
    reply = daemon.call("pieces", {"count": 5, "status": 202})
    assert (reply.status, reply.headers["Content-Type"], reply.headers["X-Made"]) == (202, "text/x-pieces", "yes")
    assert reply.body == b"0;1;2;3;4;"
    plain = daemon.call("pieces_plain", 5)
    assert (plain.status, plain.headers["Content-Type"], plain.body) == (200, "application/octet-stream", reply.body)


def test_a_response_without_any_bytes_has_its_status_and_headers(daemon: Daemon) -> None:
    reply = daemon.call("pieces", {"count": 0, "status": 202})
    assert (reply.status, reply.headers["Content-Type"], reply.headers["X-Made"]) == (202, "text/x-pieces", "yes")
    assert reply.body == b""
    plain = daemon.call("pieces_plain", 0)
    assert (plain.status, plain.headers["Content-Type"], plain.body) == (200, "application/octet-stream", b"")


def test_bytes_that_fail_are_broken_off(daemon: Daemon) -> None:
    reader = Reader(daemon, "broken_pieces", None)
    with pytest.raises(http.client.IncompleteRead):
        reader.begin().read()
    reader.close()


def test_an_item_is_there_before_the_next_is_made(daemon: Daemon, tmp_path: Path) -> None:
    reader = Reader(daemon, "one_by_one", str(tmp_path))
    for number in range(3):
        (tmp_path / str(number)).touch()
        if not number:
            reader.begin()
        assert reader.response.readline() == b"%d\n" % number
    (tmp_path / "end").touch()
    (tmp_path / "3").touch()
    assert reader.response.read() == b""
    reader.close()


@pytest.mark.parametrize("agent", ["endless", "endless_plain"])
def test_a_slow_reader_holds_the_generator_back_and_nobody_else(daemon: Daemon, tmp_path: Path, agent: str) -> None:
    note = tmp_path / "ended"
    reader = Reader(daemon, agent, {"path": str(note)})
    reader.begin().read(1000)
    for _ in range(20):
        assert daemon.call("echo", 1).status == 200
    assert Samples(daemon)("penstock_queue_bytes") <= 256 * 1024
    reader.close()
    eventually(note.exists, "the generator is closed")
    made = eventually(note.read_text, "it says how far it came")
    # What Penstock keeps, and what the kernel does.
    assert int(made) * 1000 < MIB + 8 * MIB
    eventually(lambda: Samples(daemon)("penstock_stream_stalled_seconds_total", agent=agent) > 0, "it is counted")


@pytest.mark.parametrize("agent", ["endless", "endless_plain"])
@pytest.mark.parametrize("every", [0.0, 0.02])
def test_the_generator_is_closed_when_the_client_goes(daemon: Daemon, tmp_path: Path, agent: str, every: float) -> None:
    note = tmp_path / "ended"
    reader = Reader(daemon, agent, {"path": str(note), "every": every})
    reader.begin().read(100)
    reader.close()
    eventually(note.exists, "the generator is closed")


@pytest.mark.parametrize("agent", ["too_long", "too_long_plain"])
def test_the_deadline_is_for_the_whole_stream(daemon: Daemon, tmp_path: Path, agent: str) -> None:
    note = tmp_path / "ended"
    reply = daemon.call(agent, str(note))
    *items, last = lines(reply.body)
    assert len(items) >= 1
    assert problem_of(last) == "deadline-exceeded"
    eventually(note.exists, "the generator is closed")


def test_a_client_that_takes_nothing_is_cut(daemon: Daemon, tmp_path: Path) -> None:
    note = tmp_path / "ended"
    reader = Reader(daemon, "endless", {"path": str(note)})
    reader.begin()
    eventually(note.exists, "the generator is closed")
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        reader.response.read()
    reader.close()


def test_a_death_ends_a_stream_that_has_begun(daemon: Daemon, tmp_path: Path) -> None:
    reader = Reader(daemon, "tell_pid", {"path": str(tmp_path / "go"), "items": 1})
    pid = int(reader.begin().readline())
    os.kill(pid, signal.SIGKILL)
    rest = lines(reader.response.read())
    assert [problem_of(item) for item in rest] == ["worker-died"]
    reader.close()


def test_a_stream_is_tried_again_while_no_item_has_gone_out(daemon: Daemon, tmp_path: Path) -> None:
    reader = Reader(daemon, "tell_pid", {"path": str(tmp_path / "go"), "items": 0})
    busy = eventually(lambda: [each for each in daemon.workers() if each["in_flight"]], "it runs")
    os.kill(busy[0]["pid"], signal.SIGKILL)
    eventually(
        lambda: [each for each in daemon.workers() if each["in_flight"] and each["pid"] != busy[0]["pid"]],
        "it runs again",
    )
    (tmp_path / "go").touch()
    assert int(reader.begin().read()) != busy[0]["pid"]
    reader.close()


def test_a_context_is_handed_to_generators(daemon: Daemon) -> None:
    reply = daemon.call("called", None, {"X-Request-Id": "abc"})
    assert lines(reply.body) == ["abc", "127.0.0.1", True]


def test_an_old_client_gets_a_body_that_ends_with_the_connection(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), PATIENCE) as old:
        old.sendall(b"POST /v1/agents/count HTTP/1.0\r\nContent-Length: 1\r\n\r\n3")
        received = b"".join(iter(lambda: old.recv(4096), b""))
    assert received.endswith(b"\r\n\r\n0\n1\n2\n")
    assert b"chunked" not in received


def test_items_are_counted(daemon: Daemon) -> None:
    before = Samples(daemon)("penstock_stream_items_total", agent="count_listed")
    daemon.call("count_listed", 17)
    assert Samples(daemon)("penstock_stream_items_total", agent="count_listed") == before + 17


def test_many_streams_at_once_keep_apart(daemon: Daemon) -> None:
    replies = daemon.calls("count_plain", [5000 + number for number in range(16)], at_once=16)
    assert [lines(reply.body) for reply in replies] == [list(range(5000 + number)) for number in range(16)]


def test_the_command_prints_items_as_they_come(daemon: Daemon, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.daemon", "call", "one_by_one", json.dumps(str(tmp_path))],
        cwd=AGENTS,
        env={**os.environ, "PENSTOCK_CONFIG": os.devnull, "PENSTOCK_URL": f"http://127.0.0.1:{daemon.port}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for number in range(2):
        (tmp_path / str(number)).touch()
        assert line_of(process, f"item {number} is printed") == b"%d\n" % number
    (tmp_path / "end").touch()
    (tmp_path / "2").touch()
    assert process.communicate(timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 0


def test_the_command_says_that_a_stream_failed(daemon: Daemon) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock.daemon", "call", "fails", "2"],
        cwd=AGENTS,
        env={**os.environ, "PENSTOCK_CONFIG": os.devnull, "PENSTOCK_URL": f"http://127.0.0.1:{daemon.port}"},
        capture_output=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (1, b"0\n1\n")
    assert done.stderr.startswith(b"penstock: agent-error (500): ")


# With daemons of their own


def test_what_the_stop_cuts_off_ends_with_its_problem(fresh: DaemonFactory, tmp_path: Path) -> None:
    daemon = fresh("streaming", settings={"supervision.stop_timeout": 1.0})
    reader = Reader(daemon, "endless", {"path": str(tmp_path / "note"), "every": 0.05, "size": 10})
    reader.begin().readline()
    daemon.send(signal.SIGTERM)
    assert problem_of(lines(reader.response.read())[-1]) == "unavailable"
    reader.close()
    assert daemon.stop() == 0


def test_a_stop_waits_for_a_reader_that_is_behind(fresh: DaemonFactory) -> None:
    daemon = fresh("streaming", settings={"pools.default.workers": 1})
    reader = Reader(daemon, "count", 1_000_000)
    seen = reader.begin().read(100_000)
    daemon.send(signal.SIGTERM)
    while piece := reader.response.read(100_000):
        seen += piece
    assert lines(seen) == list(range(1_000_000))
    reader.close()
    assert daemon.stop() == 0


def test_a_reload_lets_a_stream_end(fresh: DaemonFactory, tmp_path: Path) -> None:
    daemon = fresh("streaming")
    reader = Reader(daemon, "tell_pid", {"path": str(tmp_path / "go"), "items": 1})
    pid = int(reader.begin().readline())
    assert daemon.request("POST", "/v1/reload").status == 202
    eventually(lambda: pid not in [each["pid"] for each in daemon.wait_workers(2)], "the workers are new ones")
    (tmp_path / "go").touch()
    assert reader.response.read() == b"%d\n" % pid
    reader.close()


@pytest.mark.parametrize("agent", ["noted", "noted_plain"])
def test_a_transaction_is_committed_before_the_body_ends(daemons: DaemonFactory, agent: str) -> None:
    daemon = _stored(daemons)
    for number in range(5):
        text = f"{agent} {number}"
        assert lines(daemon.call(agent, text).body) == [0, 1, 2]
        assert daemon.call("noted_count", text).json == 1


_made: list[Daemon] = []


def _stored(daemons: DaemonFactory) -> Daemon:
    if not _made:
        _made.append(daemons("streaming", settings={"database.dsn": ""}))
    return _made[0]
