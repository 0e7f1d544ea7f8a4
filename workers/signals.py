"""Which signals are a worker's, and which are its children's."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Final

_SUPERVISORS: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_OURS: Final = (signal.SIGTERM, *_SUPERVISORS)
_local = threading.local()


def take_no_notice() -> None:
    """Leave to the supervisor what is meant for it. (Signals that are ignored would be so in every program that an
    agent starts, too; a handler is not inherited.)
    """
    for number in _SUPERVISORS:
        signal.signal(number, _disregard)


def reset_in_forks() -> None:
    """Let processes that agents fork have their signals for themselves. Else these would be told to the worker's loop,
    by the descriptor that both have: a child that is terminated would live on, and the worker end.
    """
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset)


def _disregard(number: int, frame: FrameType | None) -> None:
    pass


def _block() -> None:
    _local.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _local.mask)


def _reset() -> None:
    signal.set_wakeup_fd(-1)
    for number in _OURS:
        if number == signal.SIGTERM or signal.getsignal(number) is _disregard:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _unblock()
