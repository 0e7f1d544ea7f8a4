"""The daemon's log on its way out: to standard error and to the main log file, by a thread of its own.

Standard error may be a pipe that nobody reads just now, and a disk may be slow; the loop must not wait for either. So
lines are handed over and written by a thread, many at once when there are many. What waits is bounded: beyond
``LIMIT`` lines are dropped, and how many is said as soon as there is room again.

Lines come with their priority before them, ``<6>`` (``penstock.ipc.log``). The journal of systemd wants to have it; for
all others it is taken off.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from typing import Final

from penstock.ipc.log import line

from .logfiles import LogFile

LIMIT: Final = 8 * 2**20
"""Bytes that may wait to be written."""

PATIENCE: Final = 2.0
"""Seconds that the rest may take to be written at the end."""

_PRIORITY: Final = re.compile(rb"(?m)^<[0-7]>")


def under_journal(environ: Mapping[str, str], descriptor: int = 2) -> bool:
    """Whether this descriptor is the journal's, which systemd says by device and inode in ``$JOURNAL_STREAM``."""
    given = environ.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return given == f"{found.st_dev}:{found.st_ino}"


def without_priorities(lines: bytes) -> bytes:
    """The lines as people read them."""
    return _PRIORITY.sub(b"", lines)


class LogWriter:
    """Takes lines from any thread, and writes them in order."""

    def __init__(self, *, journal: bool, descriptor: int = 2) -> None:
        """``journal``: the descriptor leads there, so priorities stay on."""
        self._journal = journal
        self._descriptor = descriptor
        self._file: LogFile | None = None
        self._failing = False
        self.form = "text"
        """``text`` or ``json``, for what this has to say itself."""
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="penstock-log", daemon=True)
        self._thread.start()

    def to_file(self, file: LogFile) -> None:
        """Write into this file as well from now on."""
        self._file = file

    def write(self, lines: bytes) -> None:
        """Hand whole lines over. Never waits."""
        with self._changed:
            if self._size + len(lines) > LIMIT:
                self._dropped += lines.count(b"\n")
                return
            self._waiting.append(lines)
            self._size += len(lines)
            self._changed.notify()

    def close(self) -> None:
        """Write the rest, for at most ``PATIENCE`` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(PATIENCE)
        if self._file is not None:
            self._file.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                lines = b"".join(self._waiting)
                self._waiting.clear()
            self._out(lines)
            with self._changed:
                # What is being written counts as waiting until it is out.
                self._size -= len(lines)
                dropped, self._dropped = self._dropped, 0
            if dropped:
                self._out(self._own(f"{dropped} lines were dropped here: the log could not be written fast enough"))

    def _out(self, lines: bytes) -> None:
        plain = without_priorities(lines)
        if self._file is not None:
            try:
                self._file.write(plain)
                self._failing = False
            except OSError as error:
                if not self._failing:
                    self._failing = True
                    reason = f"the log file {self._file.path} cannot be written: {error.strerror}"
                    self._to_descriptor(self._own(reason))
        self._to_descriptor(lines if self._journal else plain)

    def _own(self, message: str) -> bytes:
        own = line(self.form, logging.WARNING, "penstock.log", message)
        return own if self._journal else without_priorities(own)

    def _to_descriptor(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest and self._descriptor >= 0:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                time.sleep(0.01)  # somebody else made it non-blocking; this thread may wait
            except OSError:
                self._descriptor = -1  # closed by its reader; the file goes on
