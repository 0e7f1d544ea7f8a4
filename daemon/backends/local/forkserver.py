"""Worker processes: forked from a server that has imported their libraries once, signalled without races, reaped.

The package ``multiprocess`` has such a forkserver. Three things about it do not suit a daemon, and are changed here
by subclassing: there is one for the whole process, where a reload needs a fresh one beside the old; its ``Popen``
waits for the child's pid, which blocks the loop while the server is still importing; and a resource tracker process
is started for semaphores that nobody here has.

Nothing outlives the supervisor: the server asks the kernel to be killed with it (``PR_SET_PDEATHSIG``), and each worker
with the server. For that the server must be started by the main thread, since it is the death of the *thread* that
counts. What a worker has started ends with it, too: ``guard.py``.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import multiprocess
from multiprocess import forkserver, popen_forkserver, reduction, spawn, util
from multiprocess.context import set_spawning_popen

from penstock.ipc import groups
from penstock.ipc.launch import PRELOAD, launch
from penstock.ipc.outlets import Outlets
from penstock.ipc.scoreboard import Scoreboard

from ...host.workplace import Origin, Workplace, working_directory

log = logging.getLogger("penstock.processes")

_SIGNED: Final = struct.Struct("q")
PRELOAD_MODULES: Final = "PENSTOCK_PRELOAD"
SUPERVISOR: Final = "PENSTOCK_SUPERVISOR"
GUARD: Final = "PENSTOCK_GUARD"


class Server(forkserver.ForkServer):  # type: ignore[misc] # multiprocess has no annotations
    """One forkserver of our own, with its socket in our own directory."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, address: Path, modules: Sequence[str], door: int, workplace: Workplace
    ) -> None:
        """``modules`` are imported by the server beside the worker's own program; ``door``: the guard's."""
        super().__init__()
        self._loop = loop
        self._path = address
        self._modules = modules
        self._door = door
        self.workplace = workplace
        self._pidfd = -1
        self.lost = False
        """The server has died or was closed; workers need another."""

    @property
    def pid(self) -> int:
        return self._forkserver_pid or 0

    def start(self) -> None:
        """Start the process. It listens at once; what connects waits until it has imported everything."""
        directory, path = self.workplace.directory, list(self.workplace.path)
        # -P: without it, what happens to lie in the working directory would go before what is imported here.
        place = f"import os, sys; os.path.isdir({directory!r}) and os.chdir({directory!r}); sys.path[:] = {path}; "
        command = "from multiprocess.forkserver import main; main(%d, %d, %r)"
        with socket.socket(socket.AF_UNIX) as listener:
            self._path.unlink(missing_ok=True)
            listener.bind(str(self._path))
            listener.listen(1024)
            alive_r, alive_w = os.pipe()
            os.environ[SUPERVISOR] = str(os.getpid())
            os.environ[PRELOAD_MODULES] = ",".join(self._modules)
            os.environ[GUARD] = str(self._door)
            try:
                program = place + command % (listener.fileno(), alive_r, [PRELOAD])
                arguments = [spawn.get_executable(), *util._args_from_interpreter_flags(), "-P", "-c", program]
                passed = [listener.fileno(), alive_r, *([self._door] if self._door != groups.NO_GUARD else [])]
                pid = util.spawnv_passfds(spawn.get_executable(), arguments, passed)
            finally:
                os.environ.pop(SUPERVISOR)
                os.environ.pop(PRELOAD_MODULES)
                os.environ.pop(GUARD)
                os.close(alive_r)
        self._forkserver_address = str(self._path)
        self._forkserver_alive_fd = alive_w
        self._forkserver_pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._ended)

    def ensure_running(self) -> None:
        """Called by ``connect_to_new_process``; the server was started before."""

    def connect_to_new_process(self, fds: list[int]) -> tuple[int, int]:
        """Ask for a child: the end to read its pid and exit status from, and the end to write its start data to."""
        null = os.open(os.devnull, os.O_WRONLY)
        parent_r, child_w = os.pipe()
        child_r, parent_w = os.pipe()
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(self._forkserver_address)
                # In the place where the child expects the resource tracker's pipe.
                reduction.sendfds(client, [child_r, child_w, self._forkserver_alive_fd, null, *fds])
        except BaseException:
            os.close(parent_r)
            os.close(parent_w)
            raise
        finally:
            for descriptor in (child_r, child_w, null):
                os.close(descriptor)
        return parent_r, parent_w

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self._forkserver_pid, 0)
        if not self.lost:
            log.error("the forkserver ended by itself (%s); its workers end with it", describe(status_of(status)))
        self.close()

    def close(self) -> None:
        """Let the server end as soon as its last worker has. May be called twice."""
        self.lost = True
        if self._forkserver_alive_fd is not None:
            os.close(self._forkserver_alive_fd)
            self._forkserver_alive_fd = None  # type: ignore[assignment] # as multiprocess has it
            self._path.unlink(missing_ok=True)


def status_of(wait_status: int) -> int:
    """Exit status, or minus the number of the signal."""
    return os.waitstatus_to_exitcode(wait_status)


def describe(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "status unknown"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


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
        has ended when its own descriptor says so, and not before, lest its calls are given to another while it runs.
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
            log.warning("what the worker %d had started runs as another user, and goes on", self.pid)

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
                what = "the working directory %s was deleted: modules are looked for in all other places"
                log.warning(what, working_directory())
            self._deleted = True
