"""Where a worker's output goes: to the supervisor, by pipes for its standard output and error and a socket for its log.

The supervisor keeps the other ends (``penstock.daemon.backends.local.output``). Inside the worker the first two simply
are its descriptors 1 and 2, so that whatever writes there is captured: ``print``, a C library, a child process.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

from .log import open_channel


class Outlets:
    """The writing ends of the three."""

    def __init__(self, output: int, error: int, log: int) -> None:
        """Takes the descriptors over."""
        self._descriptors: tuple[int, ...] = (output, error, log)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickled while a process is spawned: the descriptors travel over the forkserver's socket."""
        from multiprocess.reduction import DupFd

        return _rebuild, tuple(DupFd(descriptor) for descriptor in self._descriptors)

    def install(self) -> None:
        """Make them this process's standard output, standard error and log."""
        output, error, log = self._descriptors
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os.dup2(output, 1)
        os.dup2(error, 2)
        os.close(output)
        os.close(error)
        self._descriptors = ()
        # By whole lines, so that what an agent prints is there at once, and what it cannot encode does not end it.
        sys.stdout, sys.stderr = (_stream(descriptor) for descriptor in (1, 2))
        os.set_inheritable(log, False)
        open_channel(log)

    def close(self) -> None:
        """Close this process's copies. May be called twice."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = ()


def _stream(descriptor: int) -> TextIO:
    binary = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(binary), "utf-8", "backslashreplace", line_buffering=True)


def _rebuild(*handles: Any) -> Outlets:
    return Outlets(*(handle.detach() for handle in handles))
