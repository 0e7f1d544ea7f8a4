"""The log files of workers, for those who read them. Who writes them is the backend's business."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from .logfiles import LogFile


class WorkerLog:
    """The two files of a worker, over all its incarnations."""

    def __init__(self, directory: Path, name: str, limit: int, kept: int) -> None:
        self.name = name
        stem = name.replace(":", "-")
        self.output = LogFile(directory / f"{stem}.log", limit, kept)
        """Its standard output, and its logging."""
        self.error = LogFile(directory / f"{stem}.stderr.log", limit, kept)
        """Its standard error, and its logging."""
        self.failing = False
        """The files cannot be written, and that was said."""

    @property
    def files(self) -> tuple[LogFile, LogFile]:
        return self.output, self.error


class WorkerLogs(Protocol):
    """Who has the log files of all workers."""

    def log(self, name: str, /) -> WorkerLog:
        """The files of a worker, whether it has written any or not."""
