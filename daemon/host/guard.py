"""The guard: a process that kills what a worker has started when that worker ends, whoever else dies.

The kernel kills a worker with its parent, but not the worker's children; and nobody who may die at the same moment can
be trusted to do that: the supervisor, the forkserver and all workers can be killed at once. So the supervisor, before
it does anything else, forks one process that does nothing but this. It is detached (forked twice), has a session of its
own, and ignores every signal that can be ignored. Workers tell it their process ids before they run anything of the
user's; it waits for their end at pidfds, and kills the groups that they leave behind. It ends after the supervisor and
the last worker.

If the guard itself is killed, the supervisor still kills the groups of dead workers as long as it lives.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable
from typing import Final

from penstock.ipc import groups
from penstock.ipc.prctl import set_name

NAME: Final = "penstock-guard"
_DEAF: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_CHUNK: Final = 512 * groups.PID.size


def start() -> int:
    """Fork the guard of this process, which must have no other thread yet; the descriptor at which it is told of more
    processes.
    """
    supervisor = os.getpid()
    reading, door = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                watch(_withdraw(reading), supervisor)
        finally:
            os._exit(0)
    os.close(reading)
    os.waitpid(child, 0)
    return door


def _withdraw(reading: int) -> int:
    """Keep nothing of the process that this was forked from but this pipe; its descriptor from now on."""
    set_name(NAME)
    for number in _DEAF:
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    # Nobody who waits for the end of one of the daemon's pipes may have to wait for the guard.
    null = os.open(os.devnull, os.O_RDWR)
    kept = os.dup(reading)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    door = os.dup2(kept, 3)
    # Those that there are, and not all that there may be: that can be a thousand million, or no number at all.
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > door:
            with contextlib.suppress(OSError):  # the listing's own is closed already
                os.close(descriptor)
    return door


def watch(door: int, supervisor: int) -> None:
    """Kill the groups of the processes that are told of at ``door`` as soon as their leaders have ended; return when
    those have, and the supervisor.
    """
    os.set_blocking(door, False)
    poll = select.poll()
    poll.register(door, select.POLLIN)
    watched: dict[int, int] = {}
    _follow([supervisor], watched, poll)
    while watched:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if door in ready:
            _follow(_told(door, poll), watched, poll)
        for descriptor in watched.keys() & ready:
            poll.unregister(descriptor)
            os.close(descriptor)
            _end(watched.pop(descriptor), supervisor)
    for pid in _told(door, poll):
        _end(pid, supervisor)  # who came last was killed with its parent


def _told(door: int, poll: select.poll) -> list[int]:
    """The processes that were registered since the last read."""
    found: list[int] = []
    while True:
        try:
            data = os.read(door, _CHUNK)
        except BlockingIOError:
            return found
        if not data:
            poll.unregister(door)  # nobody is left who could tell
            return found
        found += [pid for (pid,) in groups.PID.iter_unpack(data)]


def _follow(pids: Iterable[int], watched: dict[int, int], poll: select.poll) -> None:
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            groups.end(pid)
        else:
            watched[descriptor] = pid
            poll.register(descriptor, select.POLLIN)


def _end(leader: int, supervisor: int) -> None:
    # The supervisor's group is that of whoever started it.
    if leader != supervisor:
        groups.end(leader)
