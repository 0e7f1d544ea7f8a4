"""Standard input, output and error of a command, whatever they are: closed, full, of any encoding.

Descriptors that are closed become ``/dev/null``, so that no file or socket that is opened later takes their numbers and
gets what is meant for them. A command need not care for an output that cannot be written: that ends it with
``OutputError``, or ``failure`` tells of it where somebody else's code caught that, and the command's status is 1. What
cannot be said on standard error cannot be said at all: the exit status has to do.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, Final, TextIO

CLOSED: Final = "it is closed"


class OutputError(Exception):
    """Standard output cannot be written. The text says why."""


class _Input(io.FileIO):
    """A standard input that is closed."""

    def readinto(self, buffer: Any, /) -> int:
        raise OSError(None, CLOSED)

    def readall(self) -> bytes:
        raise OSError(None, CLOSED)


class _Output(io.FileIO):
    """Standard output. The first failure is raised; nobody is told of those that follow from it."""

    failure = ""
    closed_before = False

    def write(self, data: Any, /) -> int:
        if self.failure:
            return len(data)
        try:
            if self.closed_before:
                raise OSError(None, CLOSED)
            return super().write(data)
        except BrokenPipeError:
            raise  # a reader that has enough
        except OSError as error:
            self.failure = error.strerror or str(error)
            raise OutputError(self.failure) from error


class _Errors(io.FileIO):
    """Standard error."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)  # there is nobody who could be told


_output: _Output | None = None


def prepare() -> None:
    """Make the three streams of this process what the module says."""
    global _output
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for _ in closed:
        # Takes the lowest number that is free. Children are to have it, too, and not the next file in its place.
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if 0 in closed or sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Input(0, "r", closefd=False)), "utf-8")
    _output = _Output(1, "w", closefd=False)
    _output.closed_before = 1 in closed
    sys.stdout = _text(_output, sys.stdout)
    sys.stderr = _text(_Errors(2, "w", closefd=False), sys.stderr, line_buffering=True)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _text(raw: io.FileIO, before: TextIO | None, line_buffering: bool = False) -> TextIO:
    """A stream as Python makes it, but for characters that its encoding lacks: they are escaped, and no error."""
    encoding = "utf-8" if before is None else before.encoding
    errors = "backslashreplace" if before is None or before.errors in (None, "strict") else before.errors
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=line_buffering or raw.isatty())


def failure() -> str:
    """Why standard output could not be written; empty if it could."""
    return "" if _output is None else _output.failure
