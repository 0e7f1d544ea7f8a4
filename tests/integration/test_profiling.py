"""Diagnostics: the stacks and recordings of workers and of the supervisor, over HTTP and by the commands."""

from __future__ import annotations

import ctypes.util
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fix_daemon import AGENTS, PATIENCE, Daemon, DaemonFactory, Reply, eventually
from tests.fix_processes import family

SPEEDSCOPE = "https://www.speedscope.app/file-format-schema.json"


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons("basic", "stuck")
    made.wait_workers(2)
    return made


@pytest.fixture(autouse=True)
def at_rest(daemon: Daemon) -> Iterator[None]:
    yield
    eventually(lambda: daemon.in_flight() == 0 and not spies(daemon), "nothing is left running")


def spies(daemon: Daemon) -> list[psutil.Process]:
    """The py-spy processes of a daemon."""
    return family(daemon.pid, "py-spy")


@contextmanager
def busy(daemon: Daemon, agent: str) -> Iterator[str]:
    """Have a daemon at rest work for an agent; the name of the worker that does. At the end the client goes."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    connection.request("POST", f"/v1/agents/{agent}", b'{"seconds": 25}', {"X-Request-Id": f"this-{agent}"})
    try:
        yield eventually(lambda: [each["name"] for each in daemon.workers() if each["in_flight"]], "the call runs")[0]
    finally:
        connection.close()


def penstock(daemon: Daemon, *arguments: str, cwd: Path = AGENTS) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "penstock.daemon", *arguments],
        cwd=cwd,
        env={**os.environ, "PENSTOCK_URL": f"http://127.0.0.1:{daemon.port}"},
        capture_output=True,
        timeout=60,
    )


# Stacks


def test_the_stack_of_a_busy_worker_shows_the_function_the_agent_and_the_call(daemon: Daemon) -> None:
    with busy(daemon, "count") as name:
        path = f"/v1/workers/{name}/stack"
        text = eventually(
            lambda: shown if "counting (stuck.py:" in (shown := daemon.get(path).body.decode()) else "", "it computes"
        )
        plain, asked = daemon.get(path), daemon.get(path, Accept="application/json")
    head = f"{name} (pid {daemon.worker(name)['pid']}): its loop turns\n\n1 call in flight:\n    count  sync, runs "
    assert text.startswith(head)
    assert "s left  [request this-count]\n" in text
    assert '"penstock-agent-1 count"\n    counting (stuck.py:' in text
    assert '"MainThread"\n    _run_to_the_end (workers/run.py:' in text
    assert plain.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert asked.headers["Content-Type"] == "application/json"
    said = asked.json
    assert (said["worker"], said["health"], said["stopped"]) == (name, "healthy", False)
    (call,) = said["calls"]
    assert (call["agent"], call["state"], call["request_id"]) == ("count", "running", "this-count")
    frames = {frame["name"]: frame for thread in said["threads"] for frame in thread["frames"]}
    assert frames["counting"]["short_filename"] == "stuck.py"
    eventually(lambda: '"penstock-agent-1"\n' in daemon.get(path).body.decode(), "the thread has its own name again")


def test_a_coroutine_that_waits_is_in_the_list_though_on_no_stack(daemon: Daemon) -> None:
    with busy(daemon, "wait") as name:
        path = f"/v1/workers/{name}/stack"
        text = eventually(lambda: shown if "awaits" in (shown := daemon.get(path).body.decode()) else "", "it waits")
    assert "    wait  async, runs " in text
    assert "and awaits something: it is on no stack" in text
    assert "wait (basic.py" not in text


def test_the_supervisor_shows_itself(daemon: Daemon) -> None:
    text = daemon.get("/v1/workers/supervisor/stack").body.decode()
    assert text.startswith(f"supervisor (pid {daemon.pid}): its loop turns\n")
    assert "run (daemon/run.py:" in text
    assert str(daemon.state) not in text, "its command line may have secrets, and is not shown"


def test_many_who_ask_at_once_are_all_answered(daemon: Daemon) -> None:
    replies = [daemon.begin_get("/v1/workers/default:0/stack") for _ in range(20)]
    assert {future.result().status for future in replies} == {200}


# Recordings


def profile(daemon: Daemon, name: str, query: str) -> Reply:
    reply = daemon.get(f"/v1/workers/{name}/profile?{query}")
    assert reply.status == 200, reply.body
    return reply


def test_recordings_in_three_forms(daemon: Daemon) -> None:
    with busy(daemon, "spin") as name:
        file = name.replace(":", "-")

        graph = profile(daemon, name, "seconds=0.4")
        assert graph.headers["Content-Type"] == "image/svg+xml"
        assert graph.headers["Content-Disposition"] == f'inline; filename="{file}.svg"'
        root = ElementTree.fromstring(graph.body)
        titles = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}title")]
        assert any(title.startswith("spin (basic.py:") for title in titles)
        (title,) = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text") if each.get("id") == "title"]
        assert str(title).startswith(f"{name}, 0.4 s, ")

        scope = profile(daemon, name, "seconds=0.4&format=speedscope")
        assert scope.headers["Content-Type"] == "application/json"
        assert scope.headers["Content-Disposition"] == f'attachment; filename="{file}.speedscope.json"'
        assert scope.json["$schema"] == SPEEDSCOPE
        assert {each["type"] for each in scope.json["profiles"]} == {"sampled"}
        assert "spin" in {frame["name"] for frame in scope.json["shared"]["frames"]}

        raw = profile(daemon, name, "seconds=0.4&format=raw")
        assert raw.headers["Content-Type"] == "text/plain; charset=utf-8"
        for line in raw.body.decode().splitlines():
            stack, _, count = line.rpartition(" ")
            assert stack
            assert int(count) > 0
        assert ";spin (basic.py:" in raw.body.decode()


def test_an_idle_worker_has_a_flame_graph_too(daemon: Daemon) -> None:
    for _ in range(3):
        root = ElementTree.fromstring(profile(daemon, "default:0", "seconds=0.1").body)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_supervisor_is_recorded(daemon: Daemon) -> None:
    recording = daemon.begin_get("/v1/workers/supervisor/profile?seconds=0.5&format=raw")
    while not recording.done():
        assert daemon.call("echo", 1).status == 200
    assert "run (daemon/run.py:" in recording.result().body.decode()


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("seconds=0", "seconds='0' must be a number from 0.1 to 60"),
        ("seconds=60.1", "must be a number from 0.1 to 60"),
        ("seconds=nan", "must be a number"),
        ("seconds=-1", "must be a number"),
        ("seconds=1e1", "must be a number"),
        ("seconds=%D9%A1", "must be a number"),
        ("seconds=", "must be a number"),
        ("seconds=1&seconds=2", "seconds is there twice"),
        ("format=pdf", "format='pdf' must be one of flamegraph, speedscope, raw"),
        ("second=1", "there is no parameter 'second' here; there are: seconds, format"),
    ],
)
def test_bad_parameters(daemon: Daemon, query: str, says: str) -> None:
    reply = daemon.get(f"/v1/workers/default:0/profile?{query}")
    assert (reply.status, reply.problem) == (400, "bad-parameter")
    assert says in reply.json["detail"]


def test_unknown_workers_and_methods(daemon: Daemon) -> None:
    for verb in ("stack", "profile"):
        reply = daemon.get(f"/v1/workers/default:9/{verb}")
        assert (reply.status, reply.problem) == (404, "unknown-worker")
        assert daemon.request("POST", f"/v1/workers/default:0/{verb}").problem == "method-not-allowed"
    assert daemon.get("/v1/workers/default:0/stack?all=1").problem == "bad-parameter"
    assert daemon.get("/v1/workers/default:0/heap").problem == "not-found"


def test_two_recordings_of_one_worker_are_refused_and_a_stack_beside_one_is_not(daemon: Daemon) -> None:
    first = daemon.begin_get("/v1/workers/default:0/profile?seconds=1.5&format=raw")
    eventually(lambda: spies(daemon), "the first is made")
    second = daemon.get("/v1/workers/default:0/profile?seconds=0.1")
    assert (second.status, second.problem) == (503, "overloaded")
    assert 1 <= int(second.headers["Retry-After"]) <= 2
    assert daemon.get("/v1/workers/default:0/stack").status == 200
    assert daemon.get("/v1/workers/default:1/profile?seconds=0.1&format=raw").status == 200
    assert first.result().status == 200
    assert daemon.get("/v1/workers/default:0/profile?seconds=0.1&format=raw").status == 200


def test_a_client_that_goes_ends_its_recording(daemon: Daemon) -> None:
    pid = daemon.worker("default:0")["pid"]
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    connection.request("GET", "/v1/workers/default:0/profile?seconds=60")
    (spy,) = eventually(lambda: spies(daemon), "it is made")
    connection.close()
    eventually(lambda: not spy.is_running(), "py-spy has ended, and was reaped")
    assert psutil.Process(pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    assert profile(daemon, "default:0", "seconds=0.1&format=raw").status == 200


def test_a_stop_ends_recordings_with_an_answer(fresh: DaemonFactory) -> None:
    daemon = fresh("basic")
    recording = daemon.begin_get("/v1/workers/supervisor/profile?seconds=60")
    (spy,) = eventually(lambda: spies(daemon), "it is made")
    assert daemon.stop() == 0
    reply = recording.result()
    assert (reply.status, reply.problem) == (503, "unavailable")
    assert not spy.is_running()


def test_a_worker_that_does_not_run_cannot_be_looked_into(fresh: DaemonFactory, tmp_path: Path) -> None:
    (tmp_path / "doomed.py").write_text("raise RuntimeError\n")
    daemon = fresh.prepare(
        "doomed", environment={"PYTHONPATH": str(tmp_path)}, settings={"supervision.start_retries": 0}
    )
    daemon.start()

    def given_up() -> bool:
        try:
            return {each["state"] for each in daemon.workers()} == {"FATAL"}
        except OSError:
            return False

    eventually(given_up, "the workers are given up")
    reply = daemon.get("/v1/workers/default:0/stack")
    assert (reply.status, reply.problem) == (503, "unavailable")
    assert reply.json["worker"] == "default:0"
    assert reply.json["detail"] == "the worker default:0 has no process now, it is FATAL"


# Permission

FORBIDDEN = """
import ctypes, os, sys
library = ctypes.CDLL("libseccomp.so.2")
library.seccomp_init.restype = ctypes.c_void_p
filter = ctypes.c_void_p(library.seccomp_init(0x7FFF0000))
for name in (b"ptrace", b"process_vm_readv"):
    assert library.seccomp_rule_add(filter, 0x00050000 | 1, library.seccomp_syscall_resolve_name(name), 0) == 0
assert library.seccomp_load(filter) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Runs a program that may not trace others, as containers are run."""


class Forbidden(Daemon):
    def command(self) -> list[str]:
        return [sys.executable, "-c", FORBIDDEN, *super().command()[1:]]


@pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="needs libseccomp")
def test_where_it_is_not_allowed_it_is_said_what_to_do(tmp_path: Path) -> None:
    daemon = Forbidden(tmp_path / "state", ["pools.default.workers=1", "database.dsn=off"], ["basic"])
    try:
        daemon.start()
        daemon.wait_ready()
        for path in ("stack", "profile?seconds=0.1"):
            reply = daemon.get(f"/v1/workers/default:0/{path}")
            assert (reply.status, reply.problem) == (503, "unavailable")
            assert "a seccomp filter on the daemon forbids ptrace or process_vm_readv" in reply.json["detail"]
            assert "--cap-add=SYS_PTRACE" in reply.json["detail"]
    finally:
        daemon.end()


# Commands


def test_the_command_stack(daemon: Daemon) -> None:
    with busy(daemon, "spin") as name:
        done = penstock(daemon, "stack", name)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"spin (basic.py:" in done.stdout
        assert json.loads(penstock(daemon, "stack", "--json", name).stdout)["worker"] == name
        assert b"supervisor (pid " in penstock(daemon, "stack", "supervisor").stdout
        done = penstock(daemon, "stack", "default:9")
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"penstock: unknown-worker (404): there is no worker 'default:9'")


def test_the_command_profile(daemon: Daemon, tmp_path: Path) -> None:
    with busy(daemon, "spin") as name:
        done = penstock(daemon, "profile", name, "-d", "0.3", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        written = tmp_path / f"{name.replace(':', '-')}.svg"
        assert done.stdout.decode() == f"{written.name}: open it in a browser\n"
        ElementTree.parse(written)
        done = penstock(
            daemon, "profile", name, "-d", "300ms", "--format", "speedscope", "-o", str(tmp_path / "x.json")
        )
        assert json.loads((tmp_path / "x.json").read_bytes())["$schema"] == SPEEDSCOPE
        done = penstock(daemon, "profile", name, "-d", "0.3", "--format", "raw", "-o", "-")
        assert b";spin (basic.py:" in done.stdout
        assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["default:9", "-d", "1"], 1, "unknown-worker (404)"),
        (["default:0", "-d", "61"], 2, "'61' must be at most 60 seconds"),
        (["default:0", "-d", "0"], 2, "'0' must be "),
        (["default:0", "--format", "pdf"], 2, "invalid choice: 'pdf'"),
        (["default:0", "-o", "no/such/file"], 1, "no/such/file: there is no such directory"),
        ([], 2, "WORKER"),
    ],
)
def test_the_command_profile_says_what_is_wrong(
    daemon: Daemon, tmp_path: Path, arguments: list[str], status: int, says: str
) -> None:
    done = penstock(daemon, "profile", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, b"")
    assert says in done.stderr.decode()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_gives_the_recording_up(daemon: Daemon, tmp_path: Path) -> None:
    command: Any = subprocess.Popen(
        [sys.executable, "-m", "penstock.daemon", "profile", "default:0", "-d", "60"],
        cwd=tmp_path,
        env={**os.environ, "PENSTOCK_URL": f"http://127.0.0.1:{daemon.port}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    eventually(lambda: spies(daemon), "it is made")
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=30)
    assert command.returncode == 130
    assert b"Traceback" not in said
    eventually(lambda: not spies(daemon), "py-spy has ended")
    assert list(tmp_path.iterdir()) == []


def test_a_daemon_that_cannot_be_reached_is_said_so(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = Daemon(tmp_path, [], [])
        nowhere.port = probe.getsockname()[1]
        for arguments in (["stack", "default:0"], ["profile", "default:0"]):
            done = penstock(nowhere, *arguments, cwd=tmp_path)
            assert done.returncode == 1
            assert b"no daemon answers at 127.0.0.1:" in done.stderr
