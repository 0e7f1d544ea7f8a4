"""The commands that talk to a daemon, against a server that answers what the test says, over TCP and Unix sockets.

What they do with a real daemon is in ``tests/integration/test_commands.py``.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from penstock.daemon.__main__ import main
from penstock.daemon.cli.status import show, span
from penstock.daemon.config import settings as config
from penstock.daemon.config import sources


@dataclass
class Server:
    """What it was asked, and what it answers."""

    url: str
    status: int = 200
    content_type: str = "application/json"
    body: bytes = b"null"
    asked: list[tuple[str, str, bytes, dict[str, str]]] = field(default_factory=list)

    def answer(self, status: int, value: Any, content_type: str = "application/json") -> None:
        self.status, self.content_type = status, content_type
        self.body = value if isinstance(value, bytes) else json.dumps(value).encode()

    def problem(self, status: int, name: str, detail: str) -> None:
        value = {"type": f"urn:penstock:problem:{name}", "title": name, "status": status, "detail": detail}
        self.answer(status, {**value, "request_id": "r-1"}, "application/problem+json")


class TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            server.asked.append((self.command, self.path, self.rfile.read(length), dict(self.headers)))
            self.send_response(server.status)
            self.send_header("Content-Type", server.content_type)
            self.send_header("Content-Length", str(len(server.body)))
            self.end_headers()
            self.wfile.write(server.body)

        do_GET = do_POST = answer  # noqa: N815 - the names that http.server looks for

        def log_message(self, *_: Any) -> None:
            """Nothing: the test looks at ``asked``."""

    return Handler


@pytest.fixture(params=["tcp", "unix"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    found = Server("")
    listening: socketserver.BaseServer
    if request.param == "tcp":
        listening = TcpServer(("127.0.0.1", 0), handler(found))
        found.url = f"http://127.0.0.1:{listening.server_address[1]}"
    else:
        listening = UnixServer(str(tmp_path / "http.sock"), handler(found))
        found.url = f"unix:{tmp_path}/http.sock"
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    yield found
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this host's configuration."""
    monkeypatch.setattr(sources, "DEFAULT_PATH", str(tmp_path / "none.toml"))
    for name in ("PENSTOCK_CONFIG", "PENSTOCK_URL", "PENSTOCK_TOKEN"):
        monkeypatch.delenv(name, raising=False)


Output = pytest.CaptureFixture[str]


def one_line(captured: Output) -> str:
    """What standard error says, which must be one line, and nothing on standard output."""
    out, err = captured.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.startswith("penstock: ")
    return err.removeprefix("penstock: ").rstrip("\n")


def usage(captured: Output, *arguments: str) -> str:
    """What is said about wrong usage."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return captured.readouterr().err


# call


@pytest.mark.parametrize(
    ("arguments", "body"),
    [([], b""), (['{"a": 1}'], b'{"a": 1}'), ([" [1, 2] "], b" [1, 2] "), (['"ä"'], '"ä"'.encode())],
)
def test_call_sends_the_body_as_it_is_given(server: Server, arguments: list[str], body: bytes, capsys: Output) -> None:
    server.answer(200, {"got": "ä"})
    assert main(["call", "--url", server.url, "echo", *arguments]) == 0
    method, path, sent, headers = server.asked.pop()
    assert (method, path, sent) == ("POST", "/v1/agents/echo", body)
    assert "Request-Timeout" not in headers
    assert json.loads(capsys.readouterr().out) == {"got": "ä"}


def test_call_sends_files_and_standard_input_unchanged(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"\x00 no JSON \xff")
    assert main(["call", "--url", server.url, "echo", f"@{path}"]) == 0
    assert server.asked.pop()[2] == b"\x00 no JSON \xff"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from \xfe stdin")))
    assert main(["call", "--url", server.url, "echo", "-"]) == 0
    assert server.asked.pop()[2] == b"from \xfe stdin"


def test_call_prints_what_is_not_json_byte_by_byte(server: Server, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    server.answer(200, b"\x00\xff\n\x01", "application/octet-stream")
    assert main(["call", "--url", server.url, "raw"]) == 0
    assert capfdbinary.readouterr().out == b"\x00\xff\n\x01"


def test_call_shows_json_in_lines_on_a_terminal(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    server.answer(200, {"a": ["ä"]})
    assert main(["call", "--url", server.url, "echo"]) == 0
    assert capsys.readouterr().out == '{\n  "a": [\n    "ä"\n  ]\n}\n'


@pytest.mark.parametrize(("given", "sent"), [("2", 2.0), ("0.25", 0.25), ("250ms", 0.25), ("1m", 60.0)])
def test_call_sends_its_timeout(server: Server, given: str, sent: float) -> None:
    assert main(["call", "--url", server.url, "--timeout", given, "echo"]) == 0
    assert float(server.asked.pop()[3]["Request-Timeout"]) == sent


@pytest.mark.parametrize("body", ["5", "-", "@/dev/null"])
def test_the_body_may_come_after_options(
    server: Server, body: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"stdin")))
    assert main(["call", "echo", "--timeout", "1", body, "--url", server.url]) == 0
    assert server.asked.pop()[2] == {"5": b"5", "-": b"stdin", "@/dev/null": b""}[body]


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "1e3", "1e-9", "0.0001", "x", "", "400d", "9" * 400])
def test_call_refuses_what_is_no_timeout(given: str, capsys: Output) -> None:
    assert "seconds from 0.001" in usage(capsys, "call", "--url", "127.0.0.1:9", f"--timeout={given}", "echo")


def test_an_agents_name_is_one_part_of_the_path(server: Server) -> None:
    for name in ("a/b", "../status", "a b", "ä", "a?b", "a#b", "\udcff"):
        main(["call", "--url", server.url, name])
    assert [path for _, path, _, _ in server.asked] == [
        "/v1/agents/a%2Fb", "/v1/agents/..%2Fstatus", "/v1/agents/a%20b", "/v1/agents/%C3%A4",
        "/v1/agents/a%3Fb", "/v1/agents/a%23b", "/v1/agents/%FF",
    ]  # fmt: skip


def test_a_problem_is_one_line_with_its_detail_and_the_requests_id(server: Server, capsys: Output) -> None:
    server.problem(422, "invalid-body", "Expected `int`, got `str` -\n at `$.limit`")
    assert main(["call", "--url", server.url, "search", "{}"]) == 1
    assert one_line(capsys) == "invalid-body (422): Expected `int`, got `str` -  at `$.limit` [request r-1]"


@pytest.mark.parametrize("body", [b"<html>\nBad Gateway", b"\xff", b"[]", b"{}", b""])
def test_an_error_that_is_no_problem_is_one_line_too(server: Server, body: bytes, capsys: Output) -> None:
    server.answer(502, body, "text/html")
    assert main(["call", "--url", server.url, "search"]) == 1
    assert one_line(capsys).startswith("status 502: ")


@pytest.mark.parametrize(
    ("given", "why"),
    [('{"a": ', "char 6"), ("", "char 0"), ("nonsense", "char 0"), ("NaN", "NaN is not"), ("[-Infinity]", "-Infinity is not"),
     ("1 2", "char 2"), ("\udcff", "char 0")],
)  # fmt: skip
def test_a_body_that_is_not_json_is_not_sent(given: str, why: str, capsys: Output) -> None:
    assert main(["call", "--url", "127.0.0.1:9", "echo", given]) == 2
    line = one_line(capsys)
    assert line.startswith("the body is not JSON: ")
    assert why in line


def test_json_too_deep_to_check_is_for_the_daemon_to_judge(server: Server) -> None:
    deep = "[" * 20_000 + "]" * 20_000
    assert main(["call", "--url", server.url, "echo", deep]) == 0
    assert server.asked.pop()[2] == deep.encode()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, capsys: Output) -> None:
    assert main(["call", "--url", "127.0.0.1:9", "echo", f"@{tmp_path}/x"]) == 1
    assert one_line(capsys) == f"{tmp_path}/x: No such file or directory"
    assert main(["call", "--url", "127.0.0.1:9", "echo", f"@{tmp_path}"]) == 1
    assert one_line(capsys) == f"{tmp_path}: Is a directory"


# Where the daemon is


def test_the_daemon_is_found_by_option_else_environment_else_configuration(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bind = server.url.removeprefix("http://")
    file = tmp_path / "penstock.toml"
    file.write_text(f'[http]\nbind = "{bind}"\n')
    monkeypatch.setenv("PENSTOCK_URL", "http://127.0.0.1:9")
    assert main(["call", "--url", server.url, "a"]) == 0
    assert main(["call", "b"]) == 1
    monkeypatch.setenv("PENSTOCK_URL", server.url)
    assert main(["call", "c"]) == 0
    monkeypatch.delenv("PENSTOCK_URL")
    assert main(["call", "-c", str(file), "d"]) == 0
    assert main(["call", "--set", f"http.bind={bind}", "e"]) == 0
    monkeypatch.setenv("PENSTOCK_HTTP__BIND", bind)
    assert main(["call", "f"]) == 0
    assert [path.rpartition("/")[2] for _, path, _, _ in server.asked] == ["a", "c", "d", "e", "f"]


@pytest.mark.parametrize("server", ["tcp"], indirect=True)
def test_a_daemon_that_binds_all_interfaces_is_asked_on_the_loopback(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    assert main(["call", "--set", f"http.bind=0.0.0.0:{port}", "echo"]) == 0
    assert main(["call", "--url", f"127.0.0.1:{port}", "echo"]) == 0


def test_a_daemon_on_ipv6_is_found() -> None:
    found = Server("")
    server_class = type("V6", (TcpServer,), {"address_family": socket.AF_INET6})
    try:
        listening = server_class(("::1", 0), handler(found))
    except OSError:
        pytest.skip("this host has no IPv6")
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    port = listening.server_address[1]
    try:
        assert main(["call", "--url", f"http://[::1]:{port}", "a"]) == 0
        assert main(["call", "--set", f"http.bind=[::1]:{port}", "b"]) == 0
        assert main(["call", "--set", f"http.bind=[::]:{port}", "c"]) == 0
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
    assert len(found.asked) == 3


def test_the_token_of_the_environment_is_brought_along(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["call", "--url", server.url, "echo"]) == 0
    assert "Authorization" not in server.asked.pop()[3]
    monkeypatch.setenv("PENSTOCK_TOKEN", "secret")
    assert main(["call", "--url", server.url, "echo"]) == 0
    assert server.asked.pop()[3]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("command", [["call", "echo"], ["status"], ["reload"]])
def test_without_a_daemon_it_says_where_it_looked_and_what_to_do(
    command: list[str], tmp_path: Path, capsys: Output
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}", f"unix:{tmp_path}/none"):
            assert main([command[0], "--url", url, *command[1:]]) == 1
            line = one_line(capsys)
            assert url.removeprefix("http://") in line
            assert "penstock serve" in line


@pytest.mark.parametrize(
    "garbage", [b"", b"HTTP/1.1 x\r\n", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"]
)
def test_what_does_not_speak_http_is_one_line(garbage: bytes, capsys: Output) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(65536)
                client.sendall(garbage)

        thread = threading.Thread(target=answer)
        thread.start()
        assert main(["status", "--url", f"127.0.0.1:{listening.getsockname()[1]}"]) == 1
        thread.join()
    assert "no daemon answers at" in one_line(capsys)


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://h:99999", "http://h:port", "unix:relative", "http://[::1", "//", ""]
)
def test_a_url_that_names_nothing_is_wrong_usage(url: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "write it as http://HOST:PORT" in usage(capsys, "status", f"--url={url}")
    if url:
        monkeypatch.setenv("PENSTOCK_URL", url)
        assert main(["status"]) == 78
        assert one_line(capsys).startswith("PENSTOCK_URL: ")


# status and reload

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "state": "ready",
    "uptime": 3723.4,
    "workers": [
        {"name": "default:0", "pool": "default", "pid": 4242, "state": "RUNNING", "generation": 1, "in_flight": 3,
         "slots": 16, "load": 0.0125, "restarts": 2, "since": 61.0, "answered": 77, "reason": "",
         "cpu": 0.974, "rss": 61_865_984, "p95": 0.01234},
        {"name": "default:1", "pool": "default", "pid": 0, "state": "FATAL", "generation": 6, "in_flight": 0,
         "slots": 16, "load": 0.0, "restarts": 5, "since": 5.0, "answered": 0, "reason": "it exited with status 1",
         "cpu": None, "rss": None, "p95": None},
    ],
    "queue": {"requests": 5, "bytes": 640, "high_water": 1024, "low_water": 768, "max_bytes": 4096, "refusing": True},
    "throttle": {"enabled": True, "overloaded": True, "refused": {"queue": 40, "share": 2}, "held": 3, "paced": 30},
    "database": {"mode": "embedded", "max_connections": 20, "granted": 18},
    "agents": [{"name": "echo"}, {"name": "search"}],
}  # fmt: skip


def test_status_shows_the_workers_the_queue_and_the_database(server: Server, capsys: Output) -> None:
    server.answer(200, STATUS)
    assert main(["status", "--url", server.url]) == 0
    assert server.asked.pop()[:2] == ("GET", "/v1/status")
    text = capsys.readouterr().out
    assert "penstock 0.1.0: ready, up 1h02m" in text
    assert "throttle  overloaded, 42 refused so far, 30 of them held back, 3 now" in text
    assert "5 of 1024 requests, 640 of 4096 bytes, refusing" in text
    assert "embedded, 18 of 20 connections granted" in text
    assert "echo, search" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("default:")]
    assert rows[0] == ["default:0", "RUNNING", "4242", "3/16", "12.5", "97", "59", "MiB", "12.3", "77", "2", "1m01s"]
    assert rows[1] == [
        "default:1",
        "FATAL",
        "-",
        "0/16",
        "0.0",
        *["-", "-", "-"],
        "0",
        "5",
        "5s",
        *["it", "exited", "with", "status", "1"],
    ]


def test_status_without_workers_agents_and_database() -> None:
    text = show({**STATUS, "workers": [], "agents": [], "database": {**STATUS["database"], "mode": "off"}})
    assert "none yet" in text
    assert "granted" not in text


def test_status_as_json_is_what_the_daemon_said(server: Server, capsys: Output) -> None:
    server.answer(200, STATUS)
    assert main(["status", "--json", "--url", server.url]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b"null", b'{"queue": 1, "database": 2}'])
def test_status_of_something_else_is_one_line(server: Server, body: bytes, capsys: Output) -> None:
    server.answer(200, body)
    assert main(["status", "--url", server.url]) == 1
    assert "not Penstock" in one_line(capsys)


def test_status_that_is_refused_says_why(server: Server, capsys: Output) -> None:
    server.problem(401, "unauthorized", "a token is needed")
    assert main(["status", "--url", server.url]) == 1
    assert one_line(capsys) == "unauthorized (401): a token is needed [request r-1]"


def test_reload_says_that_it_is_under_way_or_why_not(server: Server, capsys: Output) -> None:
    server.answer(202, {})
    assert main(["reload", "--url", server.url]) == 0
    assert server.asked.pop()[:2] == ("POST", "/v1/reload")
    assert "reloading" in capsys.readouterr().out
    server.problem(409, "reload-failed", "http.bind: 'x' must be ...")
    assert main(["reload", "--url", server.url]) == 1
    assert one_line(capsys) == "reload-failed (409): http.bind: 'x' must be ... [request r-1]"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (86399, "23h59m"), (90000, "1d01h")],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


# The command line as a whole


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["call"],
        ["status", "x"],
        ["serve", "--workers", "two"],
        ["call", "a", "1", "2"],
        ["call", "a", "1", "--timeout", "1", "2"],
        ["call", "a", "--nonsense"],
        ["call", "a", "--nonsense", "1"],
        ["-x"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: Output) -> None:
    assert "usage: penstock" in usage(capsys, *arguments)


@pytest.mark.parametrize(
    "command", [["serve"], ["check"], ["call", "x"], ["status"], ["reload"]], ids=lambda command: command[0]
)
@pytest.mark.parametrize(
    ("options", "start"),
    [
        (["--set", "http.bind=x"], "http.bind: 'x' must be "),
        (["--set", "nonsense=1"], "--set: nonsense = 1: there is no such setting"),
        (["-c", "/none"], "/none: No such file or directory"),
        (["-c", "/two\nlines"], "/two lines: No such file or directory"),
    ],
)
def test_wrong_configuration_is_78_and_one_line(
    command: list[str], options: list[str], start: str, capsys: Output
) -> None:
    assert main([command[0], *options, *command[1:]]) == 78
    assert one_line(capsys).startswith(start)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        (["--workers", "-1"], "pools.default.workers: -1 must be "),
        (["--bind", "8080"], "http.bind: '8080' must be "),
        (["--agents", ""], "agents.modules: [''] must be "),
    ],
)
def test_options_of_serve_are_checked_like_settings(options: list[str], start: str, capsys: Output) -> None:
    assert main(["serve", *options]) == 78
    assert one_line(capsys).startswith(start)


def test_serve_hands_over_its_configuration_and_how_to_read_it_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from penstock.daemon import run
    from penstock.daemon.host import guard

    seen: list[config.Config] = []

    def serve(now: config.Config, again: Callable[[], config.Config], door: int, observe: object) -> int:
        assert (door, observe) == (7, None)
        file.write_text("[agents]\ntimeout = 2\n")
        seen.extend([now, again()])
        return 41

    file = tmp_path / "penstock.toml"
    file.write_text("[agents]\ntimeout = 1\n")
    monkeypatch.setattr(run, "run", serve)
    monkeypatch.setattr(guard, "start", lambda: 7)
    options = ["-c", str(file), "--agents", "a", "b", "--agents", "c", "--workers", "3", "--bind", "h:1"]
    assert main(["serve", *options, "--set", "log.level=debug"]) == 41
    assert [each.agents.timeout for each in seen] == [1.0, 2.0]
    for each in seen:
        assert each.agents.modules == ["a", "b", "c"]
        assert each.pools["default"].workers == 3
        assert each.http.bind == "h:1"
        assert each.log.level == "debug"


def test_the_version_is_that_of_the_installed_package(capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"penstock {importlib.metadata.version('penstock')}\n"


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.daemon.cli.status.request", interrupted)
    assert main(["status"]) == 130


def test_the_help_of_a_command_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("serve", "call", "ctl", "profile"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert "``" not in capsys.readouterr().out
