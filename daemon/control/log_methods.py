"""The methods that concern logs: the daemon's own, and those of what each process says."""

from __future__ import annotations

from typing import Any

from supervisor.xmlrpc import Faults, RPCError

from ..fleet.views import WorkerView
from ..host.logfiles import BadRangeError, LogFile, NoLogError, whole_characters
from ..host.workerlogs import WorkerLogs
from .processes import Processes, on_each
from .rpc import LARGEST, printable, published


class LogMethods:
    """The methods over the log files."""

    # ruff: noqa: N802, N815 - the methods have the names that clients know.

    def __init__(self, processes: Processes, worker_output: WorkerLogs, main_log: LogFile) -> None:
        self._processes = processes
        self._worker_output = worker_output
        self._main_log = main_log

    # The daemon's

    @published
    def readLog(self, offset: int, length: int) -> str:
        """Read from the daemon's log.

        @param int offset     Where to begin; negative: so many bytes before the end.
        @param int length     How many bytes; 0: all that follow.
        @return string result  The text.
        """
        return _read(self._main_log, offset, length)

    readMainLog = readLog

    @published
    def clearLog(self) -> bool:
        """Clear the daemon's log.

        @return boolean result  Always true unless error.
        """
        if not self._main_log.path.exists():
            raise RPCError(Faults.NO_FILE)
        try:
            self._main_log.clear()
        except OSError as error:
            raise RPCError(Faults.FAILED) from error
        return True

    # Those of processes

    @published
    def readProcessStdoutLog(self, name: str, offset: int, length: int) -> str:
        """Read from what a process has said on its standard output, and its logging.

        @param string name    The process as group:name.
        @param int offset     Where to begin; negative: so many bytes before the end.
        @param int length     How many bytes; 0: all that follow.
        @return string result  The text.
        """
        return _read(self._worker_output.log(self._processes.one(name).name).output, offset, length)

    readProcessLog = readProcessStdoutLog

    @published
    def readProcessStderrLog(self, name: str, offset: int, length: int) -> str:
        """Read from what a process has said on its standard error, and its logging.

        @param string name    The process as group:name.
        @param int offset     Where to begin; negative: so many bytes before the end.
        @param int length     How many bytes; 0: all that follow.
        @return string result  The text.
        """
        return _read(self._worker_output.log(self._processes.one(name).name).error, offset, length)

    @published
    def tailProcessStdoutLog(self, name: str, offset: int, length: int) -> list[Any]:
        """Read what is new of what a process has said on its standard output, and of its logging.

        @param string name   The process as group:name.
        @param int offset    How far the caller has read.
        @param int length    How many bytes it takes at most.
        @return array result  [the text, the log's size, whether something was left out].
        """
        return _tail(self._worker_output.log(self._processes.one(name).name).output, offset, length)

    tailProcessLog = tailProcessStdoutLog

    @published
    def tailProcessStderrLog(self, name: str, offset: int, length: int) -> list[Any]:
        """Read what is new of what a process has said on its standard error, and of its logging.

        @param string name   The process as group:name.
        @param int offset    How far the caller has read.
        @param int length    How many bytes it takes at most.
        @return array result  [the text, the log's size, whether something was left out].
        """
        return _tail(self._worker_output.log(self._processes.one(name).name).error, offset, length)

    @published
    def clearProcessLogs(self, name: str) -> bool:
        """Clear a process's logs.

        @param string name     The process as group:name.
        @return boolean result  Always true unless error.
        """
        worker = self._processes.one(name)
        try:
            for file in self._worker_output.log(worker.name).files:
                file.clear()
        except OSError as error:
            raise RPCError(Faults.FAILED, name) from error
        return True

    clearProcessLog = clearProcessLogs

    @published
    async def clearAllProcessLogs(self) -> list[Any]:
        """Clear the logs of all processes.

        @return array result  A status struct for each.
        """

        async def clear(worker: WorkerView) -> None:
            self.clearProcessLogs(worker.name)

        return await on_each(self._processes.all(), clear)


def text_of(data: bytes) -> str:
    """Bytes of a log as text; characters that the bounds have cut are left out."""
    return printable(whole_characters(data).decode("utf-8", "replace"))


def _read(file: LogFile, offset: int, length: int) -> str:
    try:
        return text_of(file.read(offset, length))
    except NoLogError as error:
        raise RPCError(Faults.NO_FILE, str(error)) from error
    except BadRangeError:
        raise RPCError(Faults.BAD_ARGUMENTS) from None
    except OSError as error:
        raise RPCError(Faults.FAILED, error.strerror) from error


def _tail(file: LogFile, offset: int, length: int) -> list[Any]:
    try:
        data, size, overflow = file.tail(offset, length)
    except OSError:
        return ["", offset, False]
    return [text_of(data), min(size, LARGEST), overflow]
