"""Real processes from real forkservers: asked for, signalled, killed, lost, and never left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from penstock.daemon.backends.local.forkserver import Server
from penstock.daemon.backends.local.process import Process, Spawner
from penstock.daemon.host.exits import describe
from penstock.ipc.outlets import Outlets
from penstock.ipc.scoreboard import Scoreboard
from tests.fix_daemon import PATIENCE, eventually, line_of, until
from tests.fix_processes import alive, family, gone
from tests.stand_in import perform


class Child:
    """A process that was asked for, its scoreboard, what it prints, and its end."""

    def __init__(self, spawner: Spawner, server: Server, order: str) -> None:
        self.ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.board = Scoreboard.create("test", 2)
        self._reading, writing = os.pipe2(os.O_CLOEXEC)
        outlets = Outlets(writing, os.dup(writing), os.dup(writing))
        self.process: Process = spawner.spawn(
            server, "test", order.encode(), self.board, outlets, self.ended.set_result
        )

    async def status(self) -> int | None:
        """Its exit status, once it has ended."""
        return await asyncio.wait_for(asyncio.shield(self.ended), PATIENCE)

    async def born(self) -> int:
        """Its pid, once it has one."""
        await until(lambda: self.process.pid, "the process was made")
        return self.process.pid

    def printed(self) -> str:
        """Everything that it printed. It has to have ended."""
        with os.fdopen(self._reading, "rb") as file:
            self._reading = -1
            return file.read().decode()

    def close(self) -> None:
        self.board.close()
        if self._reading >= 0:
            os.close(self._reading)


class Stand:
    """A spawner with one server, and the children of a test."""

    def __init__(self, directory: Path) -> None:
        self.spawner = Spawner(asyncio.get_running_loop(), directory, perform)
        self.server = self.spawner.server()
        self._children: list[Child] = []

    def child(self, order: str, server: Server | None = None) -> Child:
        self._children.append(Child(self.spawner, server or self.server, order))
        return self._children[-1]

    def close(self) -> None:
        for child in self._children:
            if not child.process.exited:
                child.process.kill()
            child.close()
        self.server.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """With a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="fork-", dir="/tmp") as made:
        yield Path(made)


@pytest.fixture
def run(directory: Path) -> Iterator[Callable[[Callable[[Stand], Coroutine[Any, Any, None]]], None]]:
    """Runs a test's coroutine with a stand, and sees to it that no child is left."""
    before = {each.pid for each in family(os.getpid())}

    def go(scenario: Callable[[Stand], Coroutine[Any, Any, None]]) -> None:
        async def play() -> None:
            stand = Stand(directory)
            try:
                await scenario(stand)
            finally:
                stand.close()
                left = [each for each in family(os.getpid()) if each.pid not in before]
                await until(lambda: gone(left), "all children are gone")

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(play())

    yield go
    assert list(directory.iterdir()) == []


Run = Callable[[Callable[[Stand], Coroutine[Any, Any, None]]], None]


@pytest.mark.parametrize(
    ("order", "status"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("fail", 1),
        (f"signal {int(signal.SIGKILL)}", -signal.SIGKILL),
        (f"signal {int(signal.SIGSEGV)}", -signal.SIGSEGV),
    ],
)
def test_the_status_of_a_process_is_known_when_it_has_ended(run: Run, order: str, status: int) -> None:
    async def scenario(stand: Stand) -> None:
        child = stand.child(order)
        assert await child.status() == status
        assert child.process.exited
        assert not alive(child.process.pid)

    run(scenario)


def test_the_parent_is_the_forkserver_and_the_scoreboard_is_shared(run: Run) -> None:
    async def scenario(stand: Stand) -> None:
        child = stand.child("take 41")
        await until(child.board.busy, "the call shows")
        await until(lambda: child.board.busy()[0].begun, "it has begun")
        assert child.board.busy()[0].call == 41
        assert psutil.Process(await child.born()).ppid() == stand.server.pid
        assert psutil.Process(stand.server.pid).ppid() == os.getpid()

    run(scenario)


def test_what_a_process_prints_goes_to_its_outlets(run: Run) -> None:
    async def scenario(stand: Stand) -> None:
        child = stand.child("print 5")
        assert await child.status() == 0
        assert child.printed() == f"{child.process.pid} says 5\n"

    run(scenario)


def test_the_server_imports_what_it_was_told_and_leaves_the_environment_clean(directory: Path, run: Run) -> None:
    async def scenario(stand: Stand) -> None:
        assert "this" not in sys.modules
        plain = stand.child("modules this")
        other = stand.spawner.server(["this", "no_such_module_anywhere"])
        child = stand.child("modules this", other)
        await plain.status()
        await child.status()
        other.close()
        assert plain.printed() == "0\n"
        assert child.printed() == "1\n"

    run(scenario)


def test_a_signal_that_is_sent_too_early_is_sent_later(run: Run) -> None:
    async def scenario(stand: Stand) -> None:
        child = stand.child("stay")
        assert not child.process.pid
        child.process.signal(signal.SIGKILL)
        assert await child.status() == -signal.SIGKILL

    run(scenario)


def test_a_stopped_process_can_be_killed(run: Run) -> None:
    async def scenario(stand: Stand) -> None:
        child = stand.child("stay")
        pid = await child.born()
        child.process.signal(signal.SIGSTOP)
        await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it is stopped")
        child.process.kill()
        assert await child.status() == -signal.SIGKILL

    run(scenario)


def test_signals_to_one_that_has_ended_go_nowhere(run: Run) -> None:
    async def scenario(stand: Stand) -> None:
        child = stand.child("exit 0")
        await child.status()
        child.process.signal(signal.SIGTERM)
        child.process.kill()
        assert await child.status() == 0

    run(scenario)


def test_a_server_that_hangs_holds_nobody_up_and_what_was_killed_never_runs(run: Run) -> None:
    async def scenario(stand: Stand) -> None:
        first = stand.child("stay")
        await first.born()
        os.kill(stand.server.pid, signal.SIGSTOP)
        second = stand.child("stay")
        second.process.kill()
        assert await second.status() == -signal.SIGKILL
        assert not second.process.pid
        os.kill(stand.server.pid, signal.SIGCONT)
        await until(lambda: second.process.pid, "the server made it after all")
        await until(lambda: not alive(second.process.pid), "it was killed as soon as it was there")
        assert alive(first.process.pid)

    run(scenario)


def test_with_the_server_its_processes_end_and_are_told_when_they_are_gone(run: Run) -> None:
    async def scenario(stand: Stand) -> None:
        children = [stand.child("stay") for _ in range(4)]
        pids = [await child.born() for child in children]
        dead_when_told: list[bool] = []

        def told(pid: int, _: asyncio.Future[int | None]) -> None:
            dead_when_told.append(not alive(pid))

        for child, pid in zip(children, pids, strict=True):
            child.ended.add_done_callback(partial(told, pid))
        os.kill(stand.server.pid, signal.SIGKILL)
        assert [await child.status() for child in children] == [None] * 4
        await until(lambda: len(dead_when_told) == 4, "all were told")
        assert all(dead_when_told)
        await until(lambda: stand.server.lost, "the server is known to be lost")
        with pytest.raises(OSError):
            stand.child("stay")

    run(scenario)


def test_a_request_that_the_server_died_over_ends_without_a_status(run: Run) -> None:
    async def scenario(stand: Stand) -> None:
        await stand.child("exit 0").status()
        os.kill(stand.server.pid, signal.SIGSTOP)
        child = stand.child("stay")
        os.kill(stand.server.pid, signal.SIGKILL)
        assert await child.status() is None

    run(scenario)


def test_a_closed_server_ends_with_its_last_process(run: Run) -> None:
    async def scenario(stand: Stand) -> None:
        child = stand.child("stay")
        await child.born()
        fresh = stand.spawner.server()
        stand.server.close()
        other = stand.child("stay", fresh)
        await other.born()
        assert alive(stand.server.pid)
        assert alive(child.process.pid)
        child.process.kill()
        await until(lambda: not alive(stand.server.pid), "the old server has ended")
        assert alive(other.process.pid)
        other.process.kill()
        await other.status()
        fresh.close()

    run(scenario)


def test_no_descriptor_is_left_behind(run: Run) -> None:
    async def scenario(stand: Stand) -> None:
        await stand.child("exit 0").status()
        gc.collect()  # what other tests have left is not to be closed meanwhile
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            child = stand.child("exit 0")
            await child.status()
            child.close()
            child._reading = -1
        assert len(os.listdir("/proc/self/fd")) == before

    run(scenario)


SUPERVISOR = """
import asyncio, os, sys
from pathlib import Path
import uvloop
from penstock.daemon.backends.local.process import Spawner
from penstock.ipc.outlets import Outlets
from penstock.ipc.scoreboard import Scoreboard
from tests.stand_in import perform

async def main():
    spawner = Spawner(asyncio.get_running_loop(), Path(sys.argv[1]), perform)
    server = spawner.server()
    def spawn():
        outlets = Outlets(os.dup(1), os.dup(1), os.dup(1))
        return spawner.spawn(server, "test", b"stay", Scoreboard.create("test", 1), outlets, print)
    children = [spawn() for _ in range(3)]
    if sys.argv[2] == "born":
        while not all(child.pid for child in children):
            await asyncio.sleep(0.005)
    print(server.pid, flush=True)
    await asyncio.sleep(60)

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("moment", ["born", "while the server is importing"])
def test_nothing_outlives_its_supervisor(directory: Path, moment: str) -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(directory), moment],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert supervisor.stdout is not None
    server = psutil.Process(int(line_of(supervisor, "the supervisor has its server")))
    all_of_it = [server, *family(server.pid)]
    assert len(all_of_it) == (4 if moment == "born" else 1)
    supervisor.kill()
    supervisor.wait()
    eventually(lambda: gone(all_of_it), "all are gone")
    # Whoever was made in the last moment would be nobody's child that we know, but holds our end of this pipe.
    assert select.select([supervisor.stdout], [], [], PATIENCE)[0], "somebody holds the pipe"
    assert supervisor.stdout.read() == ""
    supervisor.stdout.close()


def test_statuses_in_words() -> None:
    assert describe(0) == "exit status 0"
    assert describe(-9) == "killed by SIGKILL"
    assert describe(-64) == "killed by SIGRTMAX"
    assert describe(-63) == "killed by signal 63"
    assert describe(None) == "status unknown"
