"""The output of workers: read from their pipes by the loop, kept in log files, and passed on to the daemon's own log.

A worker has two pipes, for standard output and standard error, and a socket for the records of its logging, which
keeps them apart (``penstock.ipc.outlets``). ``default-0.log`` gets the first, ``default-0.stderr.log`` the second, as
supervisord has them, and both get the third, line by line.

The daemon's log gets them as well. The worker's records are lines of that log already; what was merely printed becomes
a record of its own, so that it cannot pass for anything else. A worker that prints without end must not occupy the
supervisor or fill its log: the files get everything, the daemon's log no more than ``SHARE`` bytes of printed lines in
``WINDOW`` seconds from each pipe, and then a line that says how many it left out.

The pipes are large and are read whenever there is something in them, so a worker blocks on its output only when
the whole supervisor is behind. A pipe is read until nobody holds its other end: the last output of a dying worker is
not lost, and neither is that of processes that it left behind.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import time
from asyncio import AbstractEventLoop
from pathlib import Path
from typing import Final

from penstock.ipc.log import Output, line, stamp
from penstock.ipc.outlets import Outlets

from ...host.logfiles import LogFile
from ...host.logwriter import without_priorities
from ...host.workerlogs import WorkerLog

log = logging.getLogger("penstock.capture")

PIPE: Final = 256 * 1024
"""Bytes that a pipe holds, where the kernel allows it."""

PIECE: Final = 64 * 1024
"""Bytes read at once. A printed line that is longer is taken for several."""

PART: Final = 16 * 1024
"""Bytes of a printed line that make one record of the daemon's log; a longer one makes several."""

SHARE: Final = 64 * 1024
WINDOW: Final = 0.1

# What must not get into a line as it is. Bytes from 0x80 up are checked further.
_UNSAFE: Final = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f-\xff]")


class WorkerOutput:
    """The log files of all workers, and the pipes of those that live."""

    def __init__(self, loop: AbstractEventLoop, directory: Path, relay: Output) -> None:
        """``relay`` is the daemon's log. ``configure`` comes next."""
        self.loop = loop
        self.relay = relay
        self.form = "text"
        """Of the daemon's log: ``text`` or ``json``."""
        self.quiet = False
        """What is printed is not passed on, since the daemon's log shows warnings and errors only."""
        self._directory = directory
        self._limit = 0
        self._kept = 0
        self._logs: dict[str, WorkerLog] = {}
        self._pipes: set[_Pipe] = set()

    def configure(self, form: str, level: str, limit: int, kept: int) -> None:
        """Take the settings of the log: ``limit`` bytes of a file, and how many older ones stay of each."""
        self.form = form
        self.quiet = level in ("warning", "error")
        self._limit, self._kept = limit, kept
        for worker_log in self._logs.values():
            for file in worker_log.files:
                file.limit, file.kept = limit, kept

    def log(self, name: str) -> WorkerLog:
        """The files of a worker."""
        worker_log = self._logs.get(name)
        if worker_log is None:
            worker_log = self._logs[name] = WorkerLog(self._directory, name, self._limit, self._kept)
        return worker_log

    def reopen(self) -> None:
        """Open the files anew where something else is at their paths by now."""
        for worker_log in self._logs.values():
            for file in worker_log.files:
                file.reopen()
            self.write(worker_log, worker_log.files, b"")

    def forget(self, name: str) -> None:
        """There is no such worker any more; its files stay."""
        worker_log = self._logs.pop(name, None)
        if worker_log is not None:
            for file in worker_log.files:
                file.end()

    def open(self, name: str) -> Outlets:
        """Fresh pipes for an incarnation of this worker; the ends that are its own (``OSError``)."""
        worker_log = self.log(name)
        output, error = worker_log.files
        self.write(worker_log, worker_log.files, b"")
        ends: list[int] = []
        try:
            for source, files in (("stdout", (output,)), ("stderr", (error,)), ("", (output, error))):
                pipe = _Pipe(self, name, worker_log, source, files)
                self._pipes.add(pipe)
                ends.append(pipe.writing)
        except OSError:
            for descriptor in ends:
                os.close(descriptor)
            raise
        return Outlets(*ends)

    def write(self, worker_log: WorkerLog, files: tuple[LogFile, ...], lines: bytes) -> None:
        """Append to files. A full disk costs the lines; that is said once."""
        try:
            for file in files:
                file.write(lines)
            worker_log.failing = False
        except OSError as error:
            if not worker_log.failing:
                worker_log.failing = True
                what = "the log file %s cannot be written: %s"
                log.error(what, worker_log.output.path, error.strerror, extra={"worker": worker_log.name})

    def ended(self, pipe: _Pipe) -> None:
        """Nobody writes into this pipe any more."""
        self._pipes.discard(pipe)

    def close(self) -> None:
        """Take what is still in the pipes, and close everything."""
        for pipe in list(self._pipes):
            pipe.finish()
        for name in list(self._logs):
            self.forget(name)


class _Pipe:
    """One pipe of one incarnation."""

    def __init__(
        self, worker_output: WorkerOutput, name: str, worker_log: WorkerLog, source: str, files: tuple[LogFile, ...]
    ) -> None:
        """``source``: ``stdout`` or ``stderr``; empty for records of logging."""
        self._worker_output = worker_output
        self._name = name
        self._log = worker_log
        self._source = source
        self._files = files
        self._partial = b""
        self._window = 0.0
        self._passed = 0
        self._left_out = 0
        self._reading, self.writing = _pipe() if source else _packets()
        os.set_blocking(self._reading, False)
        worker_output.loop.add_reader(self._reading, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._reading, PIECE)
            if data and not self._source:
                data = self._more_records(data)
        except BlockingIOError:
            return
        if data:
            self._take(data)
        else:
            self.finish()

    def _more_records(self, record: bytes) -> bytes:
        """One record, and those that have come meanwhile, up to a piece."""
        records = [record]
        size = len(record)
        try:
            while size < PIECE and (record := os.read(self._reading, PIECE)):
                records.append(record)
                size += len(record)
        except BlockingIOError:
            pass  # that was all for now
        return b"".join(records)

    def finish(self) -> None:
        """Take what is there, and close this end. May be called twice."""
        if self._reading < 0:
            return
        self._worker_output.loop.remove_reader(self._reading)
        try:
            while data := os.read(self._reading, PIECE):
                self._take(data)
        except BlockingIOError:
            pass  # somebody still has the other end, and says nothing now
        if self._partial:
            self._lines(self._partial + b"\n")
        self._tell_left_out()
        os.close(self._reading)
        self._reading = -1
        self._worker_output.ended(self)

    def _take(self, data: bytes) -> None:
        end = data.rfind(b"\n") + 1
        if end:
            lines, self._partial = self._partial + data[:end], data[end:]
            self._lines(lines)
        else:
            self._partial += data
            if len(self._partial) >= PIECE:
                lines, self._partial = self._partial + b"\n", b""
                self._lines(lines)

    def _lines(self, lines: bytes) -> None:
        if not self._source:
            self._worker_output.write(self._log, self._files, without_priorities(lines))
            self._worker_output.relay(lines)
            return
        self._worker_output.write(self._log, self._files, lines)
        if self._worker_output.quiet and self._source == "stdout":
            return
        now = time.monotonic()
        if now - self._window > WINDOW:
            self._tell_left_out()
            self._window, self._passed = now, 0
        if self._passed and self._passed + len(lines) > SHARE:
            if not self._left_out:
                self._worker_output.loop.call_later(WINDOW, self._tell_left_out)
            self._left_out += lines.count(b"\n")
        else:
            self._passed += len(lines)
            self._worker_output.relay(self._as_records(lines))

    def _tell_left_out(self) -> None:
        if self._left_out:
            message = f"{self._left_out} lines were omitted here; they are in {self._files[-1].path.name}"
            self._left_out = 0
            self._worker_output.relay(
                line(self._worker_output.form, logging.WARNING, f"penstock.{self._source}", message, self._name)
            )

    def _as_records(self, lines: bytes) -> bytes:
        level = logging.INFO if self._source == "stdout" else logging.WARNING
        logger = f"penstock.{self._source}"
        printed = lines.removesuffix(b"\n").split(b"\n")
        if self._worker_output.form == "text" and max(map(len, printed)) <= PART and not _UNSAFE.search(lines):
            mark = 6 if level == logging.INFO else 4
            head = f"<{mark}>{stamp(time.time())} {logging.getLevelName(level):<7} {logger}: worker={self._name} "
            return b"".join(b"%b%b\n" % (head.encode(), each) for each in printed)
        parts = [each[at : at + PART] for each in printed for at in range(0, max(1, len(each)), PART)]
        texts = [part.decode(errors="backslashreplace") for part in parts]
        return b"".join(line(self._worker_output.form, level, logger, text, self._name) for text in texts)


def _pipe() -> tuple[int, int]:
    """The reading and the writing end of a pipe (``OSError``)."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE)
    except PermissionError:
        pass  # this user's pipes have all the memory that they may have; 64 KiB it is then
    return reading, writing


def _packets() -> tuple[int, int]:
    """The reading and the writing end of a socket on which each write arrives as it was, whole and by itself."""
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    writing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE)  # the kernel cuts it to what it allows
    return reading.detach(), writing.detach()
