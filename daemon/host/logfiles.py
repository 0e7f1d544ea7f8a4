"""Log files of limited size, read by byte offsets while they are written.

One file and its older ones (``default-0.log``, ``.1``, ``.2`` …) hold what one source has said last. Writing goes on
when a file is removed from outside, and a disk that is full costs lines, not the daemon. One that was renamed from
outside (logrotate) is written on until ``reopen``, so that nothing is lost between the two. Offsets count in the newest
file alone, as in supervisord, whose clients ask for them.

The daemon's own log is written by a thread, the workers' by the loop; a lock makes the files safe for both.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

MODE: Final = 0o600
PIECE: Final = 64 * 1024
"""Bytes that a follower reads at once."""


class NoLogError(Exception):
    """There is no such file. The text is its path."""


class BadRangeError(Exception):
    """The offset and the length do not go together."""


def from_a_character_on(data: bytes) -> bytes:
    """UTF-8 without the rest of a character whose beginning is not in it."""
    start = 0
    while start < min(3, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:]


def whole_characters(data: bytes) -> bytes:
    """UTF-8 without what it has of characters that were cut at its beginning and at its end."""
    data = from_a_character_on(data)
    end = len(data)
    for back in range(1, min(3, end) + 1):
        byte = data[end - back]
        if byte & 0xC0 == 0xC0:
            # The first byte of a character says how many there should be.
            wanted = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[: end - back] if wanted > back else data
        if byte < 0x80:
            break
    return data


class LogFile:
    """One log, appended to, rotated by size, readable by offset."""

    def __init__(self, path: Path, limit: int, kept: int) -> None:
        """``limit``: bytes of a file until the next begins; ``kept``: how many older ones stay."""
        self.path = path
        self.limit = limit
        self.kept = kept
        self.ended = False
        """Nothing will be written any more: whoever follows may stop."""
        self._lock = threading.Lock()
        self._descriptor = -1
        self._size = 0
        self._look = False
        """Whether the path still leads to the open file is to be checked."""
        self._followers: list[Callable[[], None]] = []

    def write(self, data: bytes) -> None:
        """Append (``OSError``). A file that is full by then is set aside first; one that is missing is made."""
        with self._lock:
            if self._descriptor >= 0 and self._is_gone():
                self._close()
            if self._descriptor < 0:
                self._open()
            if self._size and self._size + len(data) > self.limit:
                self._rotate()
            rest = memoryview(data)
            while rest:
                count = os.write(self._descriptor, rest)
                self._size += count
                rest = rest[count:]
        self._tell()

    def reopen(self) -> None:
        """Look at the path before the next write: if something else is there by now, or nothing, that is opened."""
        self._look = True

    def _is_gone(self) -> bool:
        """Whether the open file is not to be written any more."""
        mine = os.fstat(self._descriptor)
        self._size = mine.st_size  # others may have truncated it
        if not mine.st_nlink:
            return True
        if not self._look:
            return False
        self._look = False
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return True
        return (there.st_ino, there.st_dev) != (mine.st_ino, mine.st_dev)

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        self._close()
        for number in range(self.kept, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._numbered(number - 1), self._numbered(number))
        if not self.kept:
            self.path.unlink(missing_ok=True)
        self._open()

    def _numbered(self, number: int) -> Path:
        return self.path if not number else self.path.with_name(f"{self.path.name}.{number}")

    def clear(self) -> None:
        """Begin anew with an empty file (``OSError``)."""
        with self._lock:
            self._close()
            self.path.unlink(missing_ok=True)
            self._open()
        self._tell()

    def close(self) -> None:
        """Give up the descriptor. A later write opens the file again."""
        with self._lock:
            self._close()

    def end(self) -> None:
        """Close, and let those who follow stop."""
        self.close()
        self.ended = True
        self._tell()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # Reading

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``, 0 for all that follow; with a negative offset and no length the last
        ``-offset`` bytes (``NoLogError``, ``BadRangeError``, ``OSError``).
        """
        if length < 0 or (offset < 0 and length):
            raise BadRangeError
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(offset if offset >= 0 else max(0, size + offset))
                return file.read(length or -1)
        except FileNotFoundError as error:
            raise NoLogError(str(self.path)) from error

    def tail(self, offset: int, length: int) -> tuple[bytes, int, bool]:
        """What a reader at ``offset`` has not seen, the last ``length`` bytes of it; the size of the log, from which to
        go on; and whether something was left out (``OSError``). A log that is missing is empty.
        """
        offset, length = max(0, offset), max(0, length)
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                overflow = size > offset + length
                start = size - length if overflow else min(offset, size)
                file.seek(start)
                return file.read(size - start), size, overflow
        except FileNotFoundError:
            return b"", 0, False

    def follow(self, last: int, told: Callable[[], None]) -> Follower:
        """Read from the last ``last`` bytes on (``NoLogError``). ``told`` is called, from any thread, after a write."""
        follower = Follower(self, last, told)
        with self._lock:
            self._followers.append(told)
        return follower

    def leave(self, told: Callable[[], None]) -> None:
        """The follower is gone."""
        with self._lock:
            self._followers.remove(told)

    def _tell(self) -> None:
        if self._followers:
            with self._lock:
                followers = list(self._followers)
            for told in followers:
                told()


class Follower:
    """Reads a log as it grows, over rotations and clearings."""

    def __init__(self, log: LogFile, last: int, told: Callable[[], None]) -> None:
        self._log = log
        self._told = told
        try:
            self._file = log.path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise NoLogError(str(log.path)) from error
        self.modified = os.fstat(self._file.fileno()).st_mtime
        """Unix seconds of the last change before."""
        self._file.seek(max(0, os.fstat(self._file.fileno()).st_size - last))

    def read(self) -> bytes:
        """What has come, at most ``PIECE`` bytes; empty when there is nothing now."""
        data = self._file.read(PIECE) or b""
        if data or not self._replaced():
            return data
        try:
            fresh = self._log.path.open("rb", buffering=0)
        except FileNotFoundError:
            return b""
        # What came between the last check and the replacement is still in the old file.
        rest = self._file.read(PIECE) or b""
        if rest:
            fresh.close()
            return rest
        self._file.close()
        self._file = fresh
        return self._file.read(PIECE) or b""

    def _replaced(self) -> bool:
        try:
            now = os.stat(self._log.path)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._file.fileno())
        return (now.st_ino, now.st_dev) != (mine.st_ino, mine.st_dev)

    def close(self) -> None:
        self._log.leave(self._told)
        self._file.close()
