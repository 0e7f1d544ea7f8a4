"""The descriptors of this process: the first three are open, whatever the starter did.

A program that is started with one of them closed gets its number for the first file that it opens: the log would be
written into the lock, or a client's connection be read as commands.
"""

from __future__ import annotations

import os
import sys
from typing import Final

STANDARD: Final = (0, 1, 2)


def open_standard() -> None:
    """Have ``/dev/null`` where standard input, output or error is closed. Comes before anything else is opened."""
    for descriptor in STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest that is free, which is this one, as those below are open by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def open_streams() -> None:
    """Have Python's own objects for them, too: for those that were closed at the interpreter's start it has None."""
    for descriptor, name in zip(STANDARD, ("stdin", "stdout", "stderr"), strict=True):
        if getattr(sys, name) is None:
            mode = "w" if descriptor else "r"
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 - for the life of the process
