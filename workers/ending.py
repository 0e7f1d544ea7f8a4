"""The end of a worker's process: what an interpreter does at exit, and a forked process would leave out.

A process that was forked from a server ends with ``os._exit``: handlers that modules have registered with ``atexit``
(to flush a buffer, to remove a temporary directory) would never run. Non-daemon threads are waited for
first, as everywhere in Python. Neither has a limit here: the supervisor kills a worker that takes too long to end.
"""

from __future__ import annotations

import atexit
import threading
from typing import Final

from penstock.ipc.log import get_logger

log = get_logger("penstock.worker")

NOTICE: Final = 0.5
"""Seconds after which it is said what is waited for."""


class Ending:
    """From the moment that the worker's own work is done to the end of its process."""

    def __init__(self) -> None:
        self._timer = threading.Timer(NOTICE, self._tell)
        self._timer.daemon = True
        self._timer.start()

    def complete(self) -> None:
        """Wait for the threads, then run the exit handlers."""
        threading._shutdown()  # type: ignore[attr-defined] # there is no other name for what the interpreter does
        self._timer.cancel()
        atexit._run_exitfuncs()

    def _tell(self) -> None:
        main = threading.main_thread()
        names = ", ".join(each.name for each in threading.enumerate() if not each.daemon and each is not main)
        if names:
            log.warning("this worker exits once its non-daemon threads have ended: %s", names)
