"""Commands whose standard input, output or error is closed or full: one line, a status, and an end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from penstock.daemon.cli.foreground import Foreground
from tests.fix_daemon import PATIENCE, Daemon, DaemonFactory, eventually

FULL = "penstock: standard output cannot be written: No space left on device\n"
CLOSED = "penstock: standard output cannot be written: it is closed\n"


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons("basic", "talking", settings={"pools.default.workers": 1})
    made.call("say", {"text": "hello"})
    eventually(lambda: "hello" in (made.state / "log" / "default-0.log").read_text(), "there is something to follow")
    return made


def run(daemon: Daemon, redirections: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command, with what a shell makes of its streams."""
    settings = {"PENSTOCK_HTTP__BIND": f"127.0.0.1:{daemon.port}", "PENSTOCK_SUPERVISION__STATE_DIR": str(daemon.state)}
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "penstock.daemon", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
        env={**os.environ, "PENSTOCK_CONFIG": os.devnull, "PENSTOCK_DATABASE__DSN": "off", **settings},
    )


COMMANDS = [
    ("call", "echo", "1"),
    ("call", "echo", json.dumps("x" * 100_000)),
    ("status",),
    ("status", "--json"),
    ("stack", "supervisor"),
    ("profile", "supervisor", "-d", "0.1", "--format", "speedscope", "-o", "-"),
    ("check", "--set", "agents.modules=penstock.workers.demo"),
    ("reload",),
    ("ctl", "status"),
    ("ctl", "maintail"),
    ("ctl", "tail", "-f", "default:0"),
    ("ctl",),
    ("--version",),
    ("call", "--help"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_output_that_is_full_is_one_line_and_status_1(daemon: Daemon, words: tuple[str, ...]) -> None:
    done = run(daemon, "> /dev/full", *words)
    lines = done.stderr.splitlines(keepends=True)
    # supervisorctl, which follows a log, has a line of its own for a reader that fails.
    assert lines[-1] == FULL, done.stderr
    assert len(lines) == 1 or words[:3] == ("ctl", "tail", "-f")
    assert done.returncode == 1


@pytest.mark.parametrize("words", [("call", "echo", "1"), ("ctl", "status"), ("--version",)], ids=" ".join)
def test_so_is_one_that_is_closed(daemon: Daemon, words: tuple[str, ...]) -> None:
    done = run(daemon, ">&-", *words)
    assert (done.returncode, done.stderr) == (1, CLOSED)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("call", "echo", "-"), "penstock: standard input: it is closed\n"),
        (("ctl",), "penstock: standard input: it is closed\n"),
        (("top",), "penstock: top needs a terminal; `penstock status` prints the status once\n"),
    ],
)
def test_an_input_that_is_closed_is_one_line(daemon: Daemon, words: tuple[str, ...], said: str) -> None:
    done = run(daemon, "<&-", *words)
    assert (done.returncode, done.stderr) == (2 if words == ("top",) else 1, said)


@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full"])
def test_without_standard_error_the_status_says_it_and_the_output_is_no_error(
    daemon: Daemon, redirections: str
) -> None:
    for words, status in ((("call", "none"), 1), (("status", "--set", "http.bind=1"), 78), (("nonsense",), 2)):
        done = run(daemon, redirections, *words)
        assert (done.returncode, done.stdout) == (status, "")
    # What is opened by the command does not get the number of what is closed.
    done = run(daemon, "<&- >&- 2>&-", "call", "echo", "1")
    assert done.returncode == 1


def test_characters_that_the_output_has_not_are_escaped(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert run(daemon, "", "call", "echo", '"é"').returncode == 0
    daemon.call("say", {"text": "schön"})
    eventually(lambda: "schön" in (daemon.state / "log" / "default-0.log").read_text(), "it is written")
    done = run(daemon, "", "ctl", "tail", "default:0")
    assert done.returncode == 0, done.stderr
    assert r"sch\xf6n" in done.stdout


@pytest.mark.parametrize("redirections", ["", "<&-"])
def test_the_foreground_ends_with_its_input(daemon: Daemon, redirections: str) -> None:
    daemon.call("say", {"text": "shown in the foreground"})
    done = run(daemon, redirections, "ctl", "fg", "default:0")
    assert done.stdout.startswith("==> Press Ctrl-C to exit <==\n")
    if redirections:
        assert done.returncode == 1
        assert "it is closed" in done.stdout + done.stderr
    else:
        assert "Exiting foreground\n" in done.stdout
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_foreground_can_be_ended_while_its_socket_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    options = SimpleNamespace(username=None, password=None, serverurl="unix:///none")
    foreground = Foreground("default:0", SimpleNamespace(options=options))
    monkeypatch.setattr(foreground, "join", lambda patience: None)
    made = foreground.output_handler.socket = socket.socket()
    foreground.kill()
    assert made.fileno() == -1
