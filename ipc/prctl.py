"""What a process asks of the kernel about itself: a signal when its parent dies, a name, whether it adopts orphans."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_GET_CHILD_SUBREAPER: Final = 37


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Get a signal when the parent process ends, or end now if it is gone already. It is the death of the parent's
    *thread* that counts, of the one that made this process.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def set_name(name: str) -> None:
    """The name that ``ps`` and ``top`` show; the kernel keeps 15 bytes of it."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def adopts_orphans() -> bool:
    """Whether this process becomes the parent of its descendants whose own parents die: as PID 1, or as a subreaper,
    which whoever started it can have made it.
    """
    found = ctypes.c_int(0)
    known = ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0) == 0
    return os.getpid() == 1 or (known and bool(found.value))
