"""Workers that are stuck: found and named with their stack, and killed only where a deadline and the grace are over."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from penstock.daemon.host import pyspy
from tests.fix_daemon import Daemon, DaemonFactory, eventually, until
from tests.fix_fleet import configuration, play, standing
from tests.fix_processes import family


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    return daemons("basic", "stuck", settings={"agents.hard_timeout_grace": 0.6})


@pytest.fixture(autouse=True)
def at_rest(daemon: Daemon) -> Iterator[None]:
    daemon.wait_workers(2)
    yield
    eventually(lambda: daemon.in_flight() == 0, "nothing is left running")


def since(daemon: Daemon, begun: int, pattern: str) -> re.Match[str] | None:
    return re.search(pattern, daemon.log[begun:])


@pytest.mark.parametrize("agent", ["block", "block_in_task"])
def test_a_blocked_loop_is_found_while_it_is_blocked(daemon: Daemon, agent: str) -> None:
    begun = len(daemon.log)
    older = [daemon.begin("wait", {"seconds": 3.0}) for _ in range(2)]
    eventually(lambda: daemon.in_flight() == 2, "each worker has another call, which is older")
    call = daemon.begin(agent, {"seconds": 3.0}, {"X-Request-Id": f"the-{agent}"})
    where = r"block \(stuck.py:15\)" if agent == "block" else r"block_in_task.<locals>.work \(stuck.py:24\)"
    found = eventually(
        lambda: since(daemon, begun, rf".*worker=(default:\d) .*is stuck: its loop has not turned .*, at {where}\n"),
        "the log says where it is stuck",
    )
    assert not call.done(), "it is said while it is so"
    name = found[1]
    assert since(daemon, begun, r"\n    Thread \d+ \(.*\): \"MainThread\"\n        (block|work|block_in_task)"), (
        "the stack"
    )
    if agent == "block_in_task":
        # In a task of the agent's own making the loop is in no call that can be known, and none is accused.
        assert "not in the coroutine of a call; its oldest is a call of 'wait' that began " in found[0]
        assert "agent=" not in found[0]
    else:
        assert "request_id=the-block " in found[0]
        assert "agent=block " in found[0]
    before = daemon.worker(name)
    assert before["health"] == "stuck"
    stack = daemon.get(f"/v1/workers/{name}/stack").body.decode()
    assert "stuck, its loop has not turned for" in stack.splitlines()[0]
    assert call.result().status == 200
    eventually(lambda: since(daemon, begun, r"its loop turns again, after \d"), "its end is told too")
    eventually(lambda: daemon.worker(name)["health"] == "healthy", "it is healthy again")
    assert daemon.worker(name)["pid"] == before["pid"], "nobody is killed for that"
    assert [future.result().status for future in older] == [200, 200]


def test_a_worker_that_was_stopped_by_a_signal_is_stuck_too(daemon: Daemon) -> None:
    begun, pid = len(daemon.log), daemon.worker("default:1")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(
            lambda: since(daemon, begun, rf"default:1/\d+ \(pid {pid}\) is stuck: .*`kill -CONT {pid}` lets it go on"),
            "the log says so and what to do",
        )
        assert psutil.Process(pid).status() == psutil.STATUS_STOPPED, "looking at it did not let it go on"
        stack = daemon.get("/v1/workers/default:1/stack").body.decode()
        assert f"`kill -CONT {pid}`" in stack.splitlines()[0]
        assert "MainThread" in stack
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: daemon.worker("default:1")["health"] == "healthy", "it is healthy again")
    assert daemon.worker("default:1")["pid"] == pid


def test_a_standstill_of_everything_is_no_standstill_of_a_worker(daemon: Daemon) -> None:
    begun = len(daemon.log)
    everything = [psutil.Process(daemon.pid), *family(daemon.pid)]
    for process in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    ends = time.monotonic() + 1.8
    try:
        eventually(lambda: time.monotonic() > ends, "a while has passed")
    finally:
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    ends = time.monotonic() + 0.7
    eventually(lambda: time.monotonic() > ends and daemon.get("/healthz").status == 200, "it has looked since")
    assert "is stuck" not in daemon.log[begun:]


def test_a_worker_that_is_killed_for_a_late_call_leaves_its_stack(daemon: Daemon) -> None:
    begun = len(daemon.log)
    headers = {"Request-Timeout": "0.3", "X-Request-Id": "the-late-one"}
    assert daemon.call("hash", {"seconds": 20}, headers).problem == "deadline-exceeded"
    found = eventually(
        lambda: since(
            daemon, begun, r".* is killed: a call of 'hash' did not yield after its deadline, at digest .*\n"
        ),
        "the worker is killed, and the log says for what",
    )
    line = found[0]
    assert "request_id=the-late-one " in line
    assert "agent=hash " in line
    after = daemon.log[begun:].partition(line)[2]
    assert after.startswith("    Thread ")
    assert '"penstock-agent-1 hash"\n        digest (stuck.py:' in after
    name = re.search(r"worker=(\S+)", line)
    assert name is not None
    eventually(lambda: "digest (stuck.py:" in daemon.worker(name[1])["reason"], "people can still see why")
    daemon.wait_workers(2)


@pytest.mark.parametrize("program", ["exec sleep 60", "exit 1"])
def test_the_kill_comes_even_if_py_spy_hangs_or_fails(
    program: str, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = tmp_path / "py-spy"
    spy.write_text(f"#!/bin/sh\n{program}\n")
    spy.chmod(0o755)
    monkeypatch.setattr(pyspy, "program", lambda: str(spy))

    async def scenario() -> None:
        async with standing(configuration("basic", agents__hard_timeout_grace=0.2)) as stand:
            pids = await stand.all_run()
            assert await stand.call("stubborn", {"seconds": 30}, timeout=0.2) == "deadline-exceeded"
            await until(lambda: stand.pids() != pids and set(stand.states().values()) == {"RUNNING"}, "it is replaced")
            reasons = [each.reason for each in stand.fleet.workers() if each.reason]
            assert len(reasons) == 1
            assert "'stubborn' did not yield after its deadline (its stack could not be captured: " in reasons[0]

    play(scenario())


def test_a_call_that_ends_as_its_worker_is_about_to_be_killed_saves_it(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spy = tmp_path / "py-spy"
    spy.write_text("#!/bin/sh\nexec sleep 60\n")
    spy.chmod(0o755)
    monkeypatch.setattr(pyspy, "program", lambda: str(spy))

    async def scenario() -> None:
        async with standing(configuration("basic", agents__hard_timeout_grace=0.2)) as stand:
            pids = await stand.all_run()
            assert await stand.call("stubborn", {"seconds": 0.6}, timeout=0.2) == "deadline-exceeded"
            await until(lambda: "as its worker was about to be killed" in caplog.text, "it is spared")
            assert stand.pids() == pids

    play(scenario())
