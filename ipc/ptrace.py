"""Who may trace this process, where the kernel's security module Yama has a say in it.

With ``kernel.yama.ptrace_scope`` at 1, as on Ubuntu and others, a process may trace its own descendants only, and a
profiler beside a worker is none of its ancestors. A process can name one other which, with its descendants, may trace
it as well. Workers name the supervisor, which covers every py-spy that the supervisor starts; the supervisor names
itself, and only while such a py-spy reads it. ``PR_SET_PTRACER_ANY`` would do both, but would open a process to all
others of its user.

Nothing else is needed for a service user: a process that never changes its user while it runs stays dumpable
(``PR_SET_DUMPABLE``), whoever started it.
"""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_PTRACER: Final = 0x59616D61
NOBODY: Final = 0


def allow_tracer(pid: int) -> bool:
    """Let a process and its descendants trace this one, beside its ancestors, and nobody who was named before.

    False: the kernel has no Yama, and all processes of this user may.
    """
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0) == 0)
