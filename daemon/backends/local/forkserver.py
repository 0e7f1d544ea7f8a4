"""The server that worker processes are forked from, after it has imported their libraries once.

The package ``multiprocess`` has such a forkserver. Two things about it do not suit a daemon, and are changed here by
subclassing: there is one for the whole process, where a reload needs a fresh one beside the old; and a resource tracker
process is started for semaphores that nobody here has.

Nothing outlives the supervisor: the server asks the kernel to be killed with it (``PR_SET_PDEATHSIG``), and each worker
with the server. For that the server must be started by the main thread, since it is the death of the *thread* that
counts. What a worker has started ends with it, too: ``host/guard.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from multiprocess import forkserver, reduction, spawn, util

from penstock.ipc import groups
from penstock.ipc.launch import PRELOAD

from ...host.exits import describe, status_of
from ...host.workplace import Workplace

log = logging.getLogger("penstock.processes")

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
            log.error("the forkserver exited unexpectedly (%s); its workers end with it", describe(status_of(status)))
        self.close()

    def close(self) -> None:
        """Let the server end as soon as its last worker has. May be called twice."""
        self.lost = True
        if self._forkserver_alive_fd is not None:
            os.close(self._forkserver_alive_fd)
            self._forkserver_alive_fd = None  # type: ignore[assignment] # as multiprocess has it
            self._path.unlink(missing_ok=True)
