"""Worker processes: forked from a server, signalled without races, reaped.

``multiprocess`` waits for a child's pid, which blocks the loop while the server is still importing. Here the pid
arrives asynchronously, and a signal that was sent before is delivered then.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import multiprocess
from multiprocess import popen_forkserver, reduction, util
from multiprocess.context import set_spawning_popen

from penstock.ipc import groups
from penstock.ipc.launch import launch
from penstock.ipc.outlets import Outlets
from penstock.ipc.scoreboard import Scoreboard

from ...host.workplace import Origin, working_directory
from .forkserver import Server

log = logging.getLogger("penstock.processes")

_SIGNED: Final = struct.Struct("q")
"""A pid or an exit status, as the forkserver writes it."""


class _Popen(popen_forkserver.Popen):  # type: ignore[misc] # multiprocess has no annotations
    """Sends the start data and does not wait for the pid."""

    def __init__(self, process: Any, server: Server) -> None:
        self._server = server
        super().__init__(process)

    def _launch(self, process: Any) -> None:
        # Of what ``spawn.get_preparation_data`` says, this much: the worker is a program of its own, so that the
        # supervisor's main module and search path have no business in it; and the working directory it has already,
        # by its descriptor as it were, while the path may lead nowhere by now.
        data = {
            "name": process._name,
            "log_to_stderr": util._log_to_stderr,
            "authkey": multiprocess.current_process().authkey,
            "sys_argv": sys.argv,
            "start_method": multiprocess.get_start_method(),
        }
        buffer = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(data, buffer)
            reduction.dump(process, buffer)
        finally:
            set_spawning_popen(None)
        self.sentinel, write = self._server.connect_to_new_process(self._fds)
        # The child takes the end of this pipe for the death of its parent, so it stays open as long as we live.
        self.finalizer = util.Finalize(self, util.close_fds, (os.dup(write), self.sentinel))
        with open(write, "wb", closefd=True) as file:
            file.write(buffer.getbuffer())


class Process:
    """One worker process, from the request to fork it until its exit status is known."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        popen: _Popen,
        on_exit: Callable[[int | None], None],
    ) -> None:
        """``on_exit`` gets the exit status, minus the signal's number, or None if it cannot be known."""
        self._loop = loop
        self._popen = popen
        self._on_exit = on_exit
        self._data = b""
        self._pidfd = -1
        self._pending: list[int] = []
        self.pid = 0
        """0 until the forkserver has made the process."""
        self.exited = False
        """Its end has been told."""
        loop.add_reader(popen.sentinel, self._readable)

    def _readable(self) -> None:
        data = os.read(self._popen.sentinel, _SIGNED.size - len(self._data))
        self._data += data
        if not data:
            self._lost()
        elif len(self._data) == _SIGNED.size:
            number, self._data = _SIGNED.unpack(self._data)[0], b""
            if self.pid:
                self._ended(number)
            else:
                self._born(number)

    def _born(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return  # gone already; its status comes next
        for number in self._pending:
            self.signal(number)

    def signal(self, number: int) -> None:
        """Send a signal; a process that is gone is never mistaken for another with its pid."""
        if not self.pid:
            self._pending.append(number)
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass  # it ended this moment, and its status is on the way

    def kill(self) -> None:
        """End it at once. One that the forkserver has not made yet has ended with that, and is killed when it is made:
        a forkserver that hangs (in the import of an agent module, say) holds nobody up.
        """
        self.signal(signal.SIGKILL)
        if not self.pid:
            self._loop.call_soon(self._tell, -signal.SIGKILL)

    def _lost(self) -> None:
        """The forkserver died and took the status along. The kernel kills the worker with it, a moment later maybe: it
        has ended when its own descriptor says so, and not before: its calls must not be given to another while it runs.
        """
        self._loop.remove_reader(self._popen.sentinel)
        if self._pidfd < 0:
            self._ended(None)
            return
        self.signal(signal.SIGKILL)
        self._loop.add_reader(self._pidfd, self._ended, None)

    def _ended(self, status: int | None) -> None:
        self._loop.remove_reader(self._popen.sentinel)
        self._popen.finalizer()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._end_group()
        self._tell(status)

    def _end_group(self) -> None:
        """End what the worker has left behind. The guard did, unless it was killed itself."""
        if self.pid and not groups.end(self.pid):
            log.warning("processes that worker %d had started run as another user and could not be killed", self.pid)

    def _tell(self, status: int | None) -> None:
        if not self.exited:
            self.exited = True
            self._on_exit(status)


class Spawner:
    """Makes workers out of the current forkserver."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        directory: Path,
        target: Callable[[bytes, Scoreboard, Outlets], None] = launch,
        door: int = groups.NO_GUARD,
        origin: Origin | None = None,
    ) -> None:
        """``directory``: for the forkservers' sockets. ``target`` runs in the child. ``door``: the guard's. ``origin``:
        where the daemon was started; None: here and now.
        """
        self._loop = loop
        self._directory = directory
        self._target = target
        self._door = door
        self._origin = origin or Origin(os.environ, sys.path)
        self._workplace = self._origin.follow()
        self._count = 0
        self._deleted = False
        self._context = multiprocess.get_context("forkserver")

    def server(self, modules: Sequence[str] = (), *, anew: bool = False) -> Server:
        """A fresh forkserver, running: where the others are, or where the code is now."""
        self._look_for_directory()
        self._count += 1
        workplace = self._origin.follow() if anew else self._workplace
        server = Server(self._loop, self._directory / f"fork{self._count}.sock", modules, self._door, workplace)
        server.start()
        return server

    def settle(self, server: Server) -> None:
        """This server's place is that of those to come, and the supervisor's own."""
        self._workplace = server.workplace
        if os.path.isdir(self._workplace.directory):  # else it was deleted, which is said by those who come
            os.chdir(self._workplace.directory)

    def spawn(
        self,
        server: Server,
        name: str,
        parameters: bytes,
        board: Scoreboard,
        outlets: Outlets,
        on_exit: Callable[[int | None], None],
    ) -> Process:
        """Ask the server for a process (``OSError`` if the server is gone). The outlets are the process's from then
        on, and closed here in any case.
        """
        self._look_for_directory()
        process = self._context.Process(target=self._target, args=(parameters, board, outlets), name=name)
        try:
            return Process(self._loop, _Popen(process, server), on_exit)
        finally:
            outlets.close()

    def _look_for_directory(self) -> None:
        """Say once that the working directory was deleted. Whatever needs nothing of it goes on."""
        try:
            os.getcwd()
        except FileNotFoundError:
            if not self._deleted:
                what = "the working directory %s was deleted: modules are searched for in all other places"
                log.warning(what, working_directory())
            self._deleted = True
