"""What is exposed, and to whom: tokens, the admin listener, TLS, and limits on what clients may do to the daemon."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from penstock.daemon.front.tokens import load
from tests.fix_daemon import PATIENCE, Daemon, DaemonFactory, Reply, eventually

ONE: dict[str, Any] = {"pools.default.workers": 1}


def line(name: str, scope: str, secret: str) -> str:
    return f"{name}:{scope}:{hashlib.sha256(secret.encode()).hexdigest()}\n"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def cli(daemon: Daemon, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command of ``penstock`` with the daemon's own configuration."""
    where = (f"supervision.state_dir={daemon.state}", "http.bind=127.0.0.1:0")
    options = [f"--set={each}" for each in (*daemon.settings, *where)]
    return subprocess.run(
        [sys.executable, "-m", "penstock.daemon", words[0], *options, *words[1:]],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PENSTOCK_CONFIG": os.devnull, **(environment or {})},
    )


# Tokens


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text("# who may do what\n\n" + line("alice", "call", "a-secret") + line("root", "admin", "r-secret"))
    return file


@pytest.fixture(scope="module")
def guarded(daemons: DaemonFactory, tokens: Path) -> Daemon:
    daemon = daemons.prepare("basic", settings={**ONE, "http.tokens_file": str(tokens)})
    daemon.start()
    daemon.wait_ready()
    return daemon


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
def test_the_health_routes_are_open(guarded: Daemon, path: str) -> None:
    assert guarded.get(path).status == 200


WRONG = [
    {},
    bearer("wrong"),
    bearer(""),
    {"Authorization": "Basic YTpi"},
    {"Authorization": "a-secret"},
    bearer(hashlib.sha256(b"a-secret").hexdigest()),
    bearer("a-secret r-secret"),
    {"Authorization": "Bearer \xe4"},
]


@pytest.mark.parametrize("headers", WRONG, ids=str)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/agents/echo"), ("GET", "/v1/status"), ("GET", "/nothing"), ("POST", "/v1/reload")],
)
def test_all_else_wants_a_token(guarded: Daemon, method: str, path: str, headers: dict[str, str]) -> None:
    reply = guarded.request(method, path, b"1" if method == "POST" else None, headers)
    assert (reply.status, reply.problem) == (401, "unauthorized")
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert reply.headers["X-Request-Id"] == reply.json["request_id"]


def test_a_token_is_its_holders_name(guarded: Daemon) -> None:
    assert guarded.call("about", None, bearer("a-secret")).json["client"] == "alice"
    assert guarded.call("about", None, {"Authorization": "bearer  r-secret "}).json["client"] == "root"
    assert guarded.request("GET", "/v1/agents", headers=bearer("a-secret")).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/workers"),
        ("HEAD", "/v1/workers"),
        ("GET", "/v1/workers?x=1"),
        ("GET", "/v1/workers/default:0"),
        ("POST", "/v1/workers/default:0/restart"),
        ("POST", "/v1/reload"),
    ],
)
def test_admin_routes_want_the_scope(guarded: Daemon, method: str, path: str) -> None:
    reply = guarded.request(method, path, headers=bearer("a-secret"))
    assert reply.status == 403
    assert method == "HEAD" or reply.problem == "forbidden"
    if method != "POST":
        assert guarded.request(method, path, headers=bearer("r-secret")).status == 200


BESIDE = [
    *("//v1/workers", "/v1//workers", "/./v1/workers", "/x/../v1/workers", "/v1/agents/../workers", "/v1%2Fworkers"),
    *("/v1/%77orkers", "/v1/workers;x", "/v1/workers.", "/v1/workers%00", "/v1/workers%3Fx", "/V1/workers"),
    *(
        "/v1/workers#x",
        "/v1/reload/",
        "/%2F/v1/reload",
        "*",
        "http://x//v1/workers",
    ),
]


@pytest.mark.parametrize("target", BESIDE)
def test_no_other_spelling_leads_to_an_admin_route(guarded: Daemon, target: str) -> None:
    for method in ("GET", "POST"):
        assert sent(guarded, method, target, "r-secret") in (400, 404)
        assert sent(guarded, method, target, "a-secret") in (400, 403, 404)


def test_an_absolute_target_is_its_path(guarded: Daemon) -> None:
    assert sent(guarded, "GET", "http://x/v1/workers?y", "a-secret") == 403
    assert sent(guarded, "GET", "https://x:1/v1/workers?y", "r-secret") == 200
    assert sent(guarded, "GET", "http://x/healthz", "wrong") == 200
    assert sent(guarded, "GET", "http://healthz", "wrong") == 401
    assert sent(guarded, "GET", "http://x?/v1/workers", "a-secret") == 200, "that is the page at /"
    assert sent(guarded, "POST", "http://x?/v1/workers", "r-secret") == 405


def sent(daemon: Daemon, method: str, target: str, secret: str) -> int:
    """The status for a target as it is, which clients' libraries would put in order."""
    with connect(daemon) as connection:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {secret}\r\n\r\n"
        connection.sendall(head.encode())
        return int(everything(connection).split()[1])


def test_the_commands_bring_a_token(guarded: Daemon) -> None:
    said = cli(guarded, "call", "echo", "1")
    assert said.returncode == 1
    assert "unauthorized (401)" in said.stderr
    said = cli(guarded, "call", "echo", "1", environment={"PENSTOCK_TOKEN": "a-secret"})
    assert (said.returncode, said.stdout) == (0, "1\n")


def test_tokens_are_read_again_at_a_reload(guarded: Daemon, tokens: Path) -> None:
    before = tokens.read_text()
    tokens.write_text(before + line("carol", "call", "c-secret").replace("call", "owner"))
    reply = guarded.request("POST", "/v1/reload", headers=bearer("r-secret"))
    assert (reply.status, reply.problem) == (409, "reload-failed")
    assert reply.json["detail"] == f"http.tokens_file: {tokens}, line 5: the scope must be call or admin"
    tokens.write_text(line("carol", "call", "c-secret") + line("root", "admin", "r-secret"))
    assert guarded.request("POST", "/v1/reload", headers=bearer("r-secret")).status == 202
    assert guarded.call("about", None, bearer("c-secret")).json["client"] == "carol"
    assert guarded.call("echo", 1, bearer("a-secret")).status == 401


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "has no token"),
        ("secret\n", "line 1: must be NAME:SCOPE:SHA256HEX"),
        ("a b:call:00\n", "line 1: must be NAME:SCOPE:SHA256HEX"),
        ("\na:call:1234\n", "line 2: the SHA-256 must be 64 hexadecimal digits"),
        (line("a", "call", "x") + line("a", "admin", "y"), "line 2: the name a is there twice"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_configuration_error(tmp_path: Path, content: str | None, reason: str) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_text(content)
    settings = ("--set", f"http.tokens_file={file}", "--set", f"supervision.state_dir={tmp_path}/state")
    done = subprocess.run(
        [sys.executable, "-m", "penstock.daemon", "serve", *settings, "--bind", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PENSTOCK_CONFIG": os.devnull},
    )
    assert done.returncode == 78
    assert done.stderr.splitlines()[-1].startswith(f"penstock: http.tokens_file: {file}")
    assert reason in done.stderr
    assert "secret" not in done.stderr


def test_a_file_may_have_been_written_on_another_system(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(
        ("\ufeff" + line("alice", "call", "a") + line("root", "admin", "r")).replace("\n", "\r\n").encode()
    )
    found = load(str(file))
    assert found is not None
    assert [token and token.name for token in map(found.bearer, (bearer("a"), bearer("r"), bearer("x")))] == [
        "alice",
        "root",
        None,
    ]


@pytest.mark.parametrize(("mode", "said"), [(0o644, False), (0o640, False), (0o660, True), (0o602, True)])
def test_that_others_may_make_tokens_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, said: bool
) -> None:
    file = tmp_path / "tokens"
    file.write_text(line("alice", "call", "a"))
    file.chmod(mode)
    load(str(file))
    assert (f"http.tokens_file: {file} has mode {mode:04o}: other users can write to it" in caplog.text) == said


# The admin listener


def test_with_an_admin_listener_the_first_does_not_know_admin_routes(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", settings={**ONE, "http.admin_bind": "127.0.0.1:0"})
    for method, path in (("GET", "/v1/workers"), ("GET", "/v1/workers/default:0"), ("POST", "/v1/reload")):
        reply = daemon.request(method, path)
        assert (reply.status, reply.problem) == (404, "not-found")
    assert daemon.call("echo", 1).status == 200
    assert cli(daemon, "status").returncode == 0
    daemon.port = daemon.admin_port
    assert daemon.get("/v1/workers").status == 200
    assert daemon.call("echo", 1).status == 200
    assert daemon.request("POST", "/v1/reload").status == 202


# TLS


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    made, key = directory / f"{name}.pem", directory / f"{name}.key"
    kind = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -addext subjectAltName=IP:127.0.0.1"
    command = ["openssl", "req", "-x509", *kind.split(), "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


def over_tls(daemon: Daemon, trusted: Path) -> Reply:
    context = ssl.create_default_context(cafile=str(trusted))
    connection = http.client.HTTPSConnection("127.0.0.1", daemon.port, timeout=PATIENCE, context=context)
    try:
        connection.request("POST", "/v1/agents/about", b"null")
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read(), 0.0)
    finally:
        connection.close()


def test_tls_with_a_certificate_that_is_renewed_by_a_reload(fresh: DaemonFactory, tmp_path: Path) -> None:
    first, first_key = certificate(tmp_path, "first")
    second, second_key = certificate(tmp_path, "second")
    used, key = tmp_path / "used.pem", tmp_path / "used.key"
    used.write_bytes(first.read_bytes())
    key.write_bytes(first_key.read_bytes())
    daemon = fresh.prepare("basic", settings={**ONE, "http.tls_certificate": str(used), "http.tls_key": str(key)})
    daemon.start()
    eventually(lambda: "is ready with" in daemon.log, "a worker is ready")
    assert over_tls(daemon, first).json["client"] == "127.0.0.1"
    with socket.create_connection(("127.0.0.1", daemon.port), PATIENCE) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in plain.recv(4096)
    # The commands take the certificate that is configured for the right one, and no other.
    assert cli(daemon, "call", "echo", "1").stdout == "1\n"
    used.write_bytes(second.read_bytes())
    said = cli(daemon, "call", "echo", "1")
    assert said.returncode == 1
    assert "certificate verify failed" in said.stderr.lower()
    # A reload with a pair that does not fit changes nothing; one with a pair that fits does.
    daemon.send(signal.SIGHUP)
    eventually(lambda: "reload failed" in daemon.log, "it is refused")
    assert over_tls(daemon, first).status == 200
    key.write_bytes(second_key.read_bytes())
    daemon.send(signal.SIGHUP)
    eventually(lambda: "are proven" in daemon.log, "it is taken")
    assert over_tls(daemon, second).status == 200


def test_connections_count_before_they_have_shaken_hands(fresh: DaemonFactory, tmp_path: Path) -> None:
    made, key = certificate(tmp_path, "made")
    key.chmod(0o644)
    pair = {"http.tls_certificate": str(made), "http.tls_key": str(key)}
    # So much patience that none of the silent ones is parted with for its silence.
    daemon = fresh.prepare(
        "basic", settings={**ONE, **pair, "http.max_connections": 8, "http.header_timeout": 2 * PATIENCE}
    )
    daemon.start()
    eventually(lambda: "is ready with" in daemon.log, "a worker is ready")
    assert f"http.tls_key: {key} has mode 0644: all users of this host can read the key" in daemon.log
    silent = [connect(daemon) for _ in range(8)]
    with connect(daemon) as one_more:
        assert everything(one_more) == b""
    silent.pop().close()
    eventually(lambda: _answered(daemon, made), "there is room again")
    for connection in silent:
        connection.close()


def _answered(daemon: Daemon, trusted: Path) -> bool:
    try:
        return over_tls(daemon, trusted).status == 200
    except OSError:
        return False


def test_tls_that_cannot_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    made, _ = certificate(tmp_path, "alone")
    state = f"supervision.state_dir={tmp_path / 'state'}"
    for settings, reason in (
        ((f"http.tls_key={made}",), "http.tls_key: "),
        ((f"http.tls_certificate={made}",), "http.tls_certificate: "),
        ((f"http.tls_certificate={tmp_path / 'nothing'}",), "No such file"),
    ):
        command = [sys.executable, "-m", "penstock.daemon", "check", *(f"--set={each}" for each in (*settings, state))]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PENSTOCK_CONFIG": os.devnull}
        )
        assert done.returncode == 78
        assert reason in done.stderr


# Slow clients


LIMITED: dict[str, Any] = {
    **ONE,
    "http.header_timeout": 0.3,
    "http.body_timeout": 0.5,
    "http.stall_timeout": 0.5,
    "http.max_connections": 8,
}


@pytest.fixture(scope="module")
def limited(daemons: DaemonFactory) -> Daemon:
    return daemons("basic", settings=LIMITED)


def connect(daemon: Daemon) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE)


def everything(connection: socket.socket) -> bytes:
    """What comes until the connection is closed."""
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def is_problem(answer: bytes, status: int, name: str) -> bool:
    head, _, body = answer.rpartition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert b"Connection: close" in lines
    return bool(json.loads(body)["type"] == f"urn:penstock:problem:{name}")


def test_a_slow_header_is_a_timeout(limited: Daemon) -> None:
    with connect(limited) as connection:
        connection.sendall(b"POST /v1/agents/echo HTTP/1.1\r\nHost: x\r\n")
        begun = time.monotonic()
        assert is_problem(everything(connection), 408, "request-timeout")
        assert 0.2 < time.monotonic() - begun < 1.5


def test_a_header_that_trickles_is_a_timeout(limited: Daemon) -> None:
    with connect(limited) as connection:
        connection.settimeout(0.05)
        begun = time.monotonic()
        answer = b""
        for byte in b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 1000:
            try:
                connection.send(bytes([byte]))
                answer += connection.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if answer:
                break
        assert is_problem(answer, 408, "request-timeout")
        assert time.monotonic() - begun < 2.0


def test_a_slow_header_on_a_kept_connection_is_a_timeout_and_an_idle_one_is_not(limited: Daemon) -> None:
    with connect(limited) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        until = time.monotonic() + 0.6
        eventually(lambda: time.monotonic() > until, "it is idle for longer than that")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /healthz HT")
        assert is_problem(everything(connection), 408, "request-timeout")


def test_a_slow_body_is_a_timeout_and_a_slow_agent_is_not(limited: Daemon) -> None:
    with connect(limited) as connection:
        connection.sendall(b"POST /v1/agents/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n123")
        begun = time.monotonic()
        assert is_problem(everything(connection), 408, "request-timeout")
        assert 0.4 < time.monotonic() - begun < 2.0
    assert limited.call("wait", {"seconds": 0.8}).status == 200


def test_many_slow_clients_do_not_keep_others_out(limited: Daemon) -> None:
    slow = [connect(limited) for _ in range(8)]
    for connection in slow:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
    full = limited.get("/healthz")
    assert (full.status, full.problem) == (503, "overloaded")
    assert full.headers["Retry-After"] == "1"
    eventually(lambda: limited.get("/healthz").status == 200, "the slow ones are gone")
    for connection in slow:
        connection.close()


def test_who_does_not_read_is_parted_with(limited: Daemon) -> None:
    def connections() -> int:
        found = psutil.Process(limited.pid).net_connections("tcp")
        return sum(each.status == psutil.CONN_ESTABLISHED for each in found)

    eventually(lambda: not connections(), "nobody else is there")
    with connect(limited) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        body = json.dumps("x" * 7_000_000).encode()
        head = f"POST /v1/agents/echo HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection.sendall(head + body)
        # Its own end tells: what the kernel holds for it no longer has a process behind it.
        eventually(lambda: not connections(), "its connection is gone")
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                received += len(piece)
        assert received < len(body)


@pytest.mark.parametrize(
    ("header", "status", "detail"),
    [
        (b"X: " + b"y" * 9000, 431, "the request line, or a field of the header, has more than 8190 bytes"),
        (b"\r\n".join(b"X-%d: y" % n for n in range(200)), 431, "the header has more than 100 fields"),
        (b"X: a\r\n b\0", 400, "Unexpected whitespace after header value"),
    ],
    ids=["long", "many", "folded"],
)
def test_headers_have_limits(limited: Daemon, header: bytes, status: int, detail: str) -> None:
    with connect(limited) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
        answer = everything(connection)
    assert is_problem(answer, status, "http-error")
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["detail"] == detail


def test_a_target_that_is_no_url_is_refused_without_being_repeated(limited: Daemon) -> None:
    with connect(limited) as connection:
        connection.sendall(b"GET http://[::1/secret HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = everything(connection)
    assert is_problem(answer, 400, "http-error")
    assert b"secret" not in answer


def test_a_client_that_pipelines_takes_turns_with_others(limited: Daemon) -> None:
    answered = threading.Event()
    count = 100_000

    def pipeline() -> None:
        with connect(limited) as connection:
            requests = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * count
            sender = threading.Thread(target=connection.sendall, args=(requests,))
            sender.start()
            found = 0
            while found < count and (piece := connection.recv(1 << 20)):
                found += piece.count(b'"alive"')
            answered.set()
            sender.join()

    thread = threading.Thread(target=pipeline)
    thread.start()
    try:
        with connect(limited) as other:
            for _ in range(40):
                other.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert other.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert not answered.is_set()
    finally:
        thread.join()


def test_a_line_of_the_log_cannot_be_forged_by_a_client(limited: Daemon) -> None:
    limited.get("/v1/agents/x%0A2026-01-01%20ERROR%20penstock:%20forged")
    limited.call("fail", "x\n2026-01-01 ERROR penstock: forged", {"X-Request-Id": "a\tb"})
    eventually(lambda: "forged" in limited.log, "the traceback is in the log")
    assert not any(each.startswith("2026-01-01") for each in limited.log.splitlines())
