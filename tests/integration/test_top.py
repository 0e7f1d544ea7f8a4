"""``penstock top`` against real daemons: by Textual's own driver, and in a real terminal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pexpect
import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from penstock.daemon.__main__ import parse
from penstock.daemon.cli.live.app import Page, Question, Stack, Top
from tests.fix_daemon import PATIENCE, Daemon, DaemonFactory, until


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons("basic")
    made.wait_workers(2)
    return made


def options(daemon: Daemon, *more: str) -> argparse.Namespace:
    return parse(["top", "--url", f"http://127.0.0.1:{daemon.port}", "-i", "0.1", *more])


@contextlib.asynccontextmanager
async def shown(daemon: Daemon, size: tuple[int, int] = (120, 40)) -> AsyncIterator[Pilot[Any]]:
    """The screen, once it shows the daemon's workers."""
    async with Top(options(daemon)).run_test(size=size, notifications=True) as pilot:
        await until(lambda: "default:0" in screen(pilot), "the workers are there")
        yield pilot


def screen(pilot: Pilot[Any]) -> str:
    """All characters on it."""
    return "\n".join(strip.text for strip in pilot.app.screen._compositor.render_strips())


def shows_agents(pilot: Pilot[Any], wanted: bool) -> bool:
    """Whether the agents are shown or not, as is wanted: they are where there is room."""
    return ("agents, by AGENT" in screen(pilot)) == wanted


def workers(pilot: Pilot[Any]) -> list[str]:
    """The names in the table, from above."""
    return re.findall(r"^ *(default:\d+) ", screen(pilot), re.MULTILINE)


def words(pilot: Pilot[Any]) -> str:
    return str(pilot.app.screen.query_one("#words", Static).content)


def test_it_shows_what_there_is(daemon: Daemon) -> None:
    async def look() -> None:
        async with shown(daemon) as pilot:
            text = screen(pilot)
            assert re.search(r"^penstock \S+ at 127.0.0.1:\d+: ready, up \d+s", text)
            assert len(re.findall(r"default:[01] +RUNNING +0/16 ", text)) == 2
            assert "marks 768, 1024" in text
            assert re.search(r"^ echo ", text, re.MULTILINE)
            calls = [daemon.begin("wait", {"seconds": 30}, {"Request-Timeout": "2"}) for _ in range(3)]
            await until(lambda: re.search(r"RUNNING +[12]/16 ", screen(pilot)), "calls are in flight")
            for call in calls:
                assert (await asyncio.to_thread(call.result)).status == 504

    asyncio.run(look())


def test_keys_go_to_the_table_that_is_marked(daemon: Daemon) -> None:
    async def look() -> None:
        async with shown(daemon) as pilot:
            assert "2 workers, by WORKER" in screen(pilot)
            await pilot.press("s")
            await until(lambda: "2 workers, by STATE" in screen(pilot), "they are sorted by another column")
            await pilot.press("S", "S")
            await until(lambda: "2 workers, by REASON" in screen(pilot), "it goes the other way")
            await pilot.press("tab", "s")
            await until(lambda: "agents, by POOL" in screen(pilot), "the agents are sorted")
            await pilot.press("enter", "r")
            await pilot.pause()
            assert len(pilot.app.screen_stack) == 1
            await pilot.press("question_mark", "tab", "s")
            assert isinstance(pilot.app.screen, Page)
            assert "quit" in screen(pilot)
            await pilot.press("escape", "shift+tab", "down")
            assert isinstance(pilot.app, Top)
            assert pilot.app._panels[0].selected == "default:1"
            await pilot.press("q")
            await until(lambda: not pilot.app.is_running, "it has ended")

    asyncio.run(look())


def test_it_fits_into_terminals_of_all_sizes(daemon: Daemon) -> None:
    async def look() -> None:
        async with shown(daemon, (80, 24)) as pilot:
            for width, height in ((60, 14), (30, 8), (200, 60), (80, 24)):
                await pilot.resize_terminal(width, height)
                await until(partial(shows_agents, pilot, height >= 36), "it has its form")
                assert workers(pilot)[0] == "default:0"
                await pilot.press("tab")
                await until(lambda: "agents, by AGENT" in screen(pilot), "the agents are there")
                assert ("2 workers" in screen(pilot)) == (height >= 36)
                await pilot.press("shift+tab")
                await until(lambda: workers(pilot), "the workers are there again")

    asyncio.run(look())


def test_a_worker_is_restarted_after_a_question(daemon: Daemon) -> None:
    async def look() -> None:
        async with shown(daemon) as pilot:
            pids = {name: daemon.worker(name)["pid"] for name in ("default:0", "default:1")}
            await pilot.press("down", "r")
            await until(lambda: isinstance(pilot.app.screen, Question), "it asks")
            await pilot.press("n", "r", "y")
            await until(
                lambda: daemon.worker("default:1")["pid"] not in (0, pids["default:1"]), "it is another process"
            )
            assert daemon.worker("default:0")["pid"] == pids["default:0"]
            await until(lambda: "default:1 restarts when it has drained" in screen(pilot), "it says so")

    asyncio.run(look())


def test_what_the_daemon_refuses_is_explained(
    fresh: DaemonFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokens").write_text(f"caller:call:{hashlib.sha256(b'secret').hexdigest()}")
    guarded = fresh("basic", settings={"http.tokens_file": str(tmp_path / "tokens"), "pools.default.workers": 1})

    async def look() -> None:
        async with shown(guarded) as pilot:
            await pilot.press("enter")
            await until(
                lambda: isinstance(pilot.app.screen, Stack) and "forbidden (403)" in words(pilot), "it is refused"
            )
            assert "scope 'admin'" in words(pilot)
            await pilot.press("escape", "r", "y")
            await until(lambda: "forbidden (403)" in screen(pilot), "this is, too")

    monkeypatch.setenv("PENSTOCK_TOKEN", "secret")
    asyncio.run(look())


def test_a_daemon_may_go_and_come_back(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", settings={"pools.default.workers": 1})

    daemon.wanted = daemon.port  # it will be looked for there

    async def look() -> None:
        async with shown(daemon) as pilot:
            daemon.send(signal.SIGINT)
            daemon.send(signal.SIGINT)
            await until(lambda: "No answer for" in screen(pilot), "it is missed")
            assert "default:0" in screen(pilot)
            await asyncio.to_thread(daemon.stop)
            daemon.start()
            await until(lambda: "No answer for" not in screen(pilot), "it is back")

    asyncio.run(look())
    daemon.wait_workers(1)


def test_leaving_does_not_wait_for_a_daemon_that_hangs(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", settings={"pools.default.workers": 1})
    begun = 0.0

    async def look() -> None:
        nonlocal begun
        async with shown(daemon) as pilot:
            daemon.send(signal.SIGSTOP)
            await asyncio.sleep(0.3)
            begun = time.monotonic()
            await pilot.press("q")

    try:
        asyncio.run(look())
        assert time.monotonic() - begun < 5
    finally:
        daemon.send(signal.SIGCONT)


# As a command


def penstock(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock.daemon", *arguments]
    environment = {**os.environ, "PENSTOCK_CONFIG": os.devnull}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, **more)


def test_without_a_terminal_it_says_what_to_do(daemon: Daemon) -> None:
    done = penstock("top", "--url", f"http://127.0.0.1:{daemon.port}", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (2, "")
    assert "penstock status" in done.stderr
    assert done.stderr.count("\n") == 1


def test_intervals_are_checked(daemon: Daemon) -> None:
    for wrong in ("0", "0.01", "x", "-1"):
        done = penstock("top", "-i", wrong)
        assert done.returncode == 2
        assert "seconds from 0.1 up" in done.stderr or "expected one argument" in done.stderr


def terminal(daemon: Daemon, **environment: str) -> pexpect.spawn:
    variables = {**os.environ, "TERM": "xterm-256color", "PENSTOCK_CONFIG": os.devnull, **environment}
    arguments = ["-m", "penstock.daemon", "top", "--url", f"http://127.0.0.1:{daemon.port}"]
    return pexpect.spawn(sys.executable, arguments, env=variables, dimensions=(24, 100), timeout=PATIENCE)


@pytest.mark.parametrize("color", [{}, {"NO_COLOR": "1"}], ids=["colours", "none"])
def test_it_runs_in_a_real_terminal(daemon: Daemon, color: dict[str, str]) -> None:
    child = terminal(daemon, **color)
    try:
        child.expect("default:0")
        written = child.before
        child.expect("RUNNING")
        child.send("q")
        child.expect(pexpect.EOF)
        child.wait()
        assert (child.exitstatus, child.signalstatus) == (0, None)
        assert b"\x1b[?1049l" in child.before  # the terminal is as it was
        coloured = re.search(
            rb"\x1b\[(?:[0-9]+;)*(?:3[0-7]|4[0-7]|9[0-7]|10[0-7]|[34]8;[25];[0-9;]+)(?:;[0-9]+)*m", written
        )
        assert (coloured is None) == bool(color)
    finally:
        child.close(force=True)


def test_the_terminal_is_restored_when_it_is_told_to_end(daemon: Daemon) -> None:
    child = terminal(daemon)
    try:
        child.expect("default:0")
        child.kill(signal.SIGTERM)
        child.expect(re.escape("\x1b[?1049l"))
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0
    finally:
        child.close(force=True)


def test_what_is_wrong_from_the_start_is_said_on_the_terminal(fresh: DaemonFactory) -> None:
    absent = fresh.prepare("basic")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        absent.port = probe.getsockname()[1]
        child = terminal(absent)
        child.expect("no daemon answers at")
        child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 1


def test_the_other_commands_do_not_load_it() -> None:
    code = "import sys, penstock.daemon.__main__ as m; m.parser(); sys.exit('textual' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
