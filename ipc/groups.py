"""Process groups: each worker leads one, and what it starts is in it unless it asks for another.

What is left of a group when its leader has exited is killed. The number of a group is not given to another process
while the group has members, and pids come around again after tens of thousands of others, so what is killed right
after its leader's end is the leader's.

Processes that made a session of their own (``setsid``, ``start_new_session=True``) have left the group: they said that
they want to live on.
"""

from __future__ import annotations

import os
import signal
import struct
from typing import Final

PID: Final = struct.Struct("q")
"""What a leader writes to the guard (``penstock.daemon.host.guard``), in one piece as pipes keep it."""

NO_GUARD: Final = -1


def lead(door: int) -> bool:
    """Make a process group for this process, and tell the guard at the other end of ``door`` to end it with this
    process. False: nobody is at the other end.
    """
    os.setpgid(0, 0)
    try:
        return door != NO_GUARD and os.write(door, PID.pack(os.getpid())) == PID.size
    except BrokenPipeError:
        return False


def end(leader: int) -> bool:
    """Kill what is left of the group of a process that has ended. False: what is left runs as another user."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nothing is
    except PermissionError:
        return False
    return True
