"""Background tasks: each is kept until it ends, and its failure is logged.

The event loop itself holds a task only weakly, so that one which nobody keeps may be collected before it ends, and an
exception that nobody asks for is reported when the task is collected, if ever. Whoever starts a task and does not await
it starts it here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Tasks:
    """The background tasks of one owner."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        """``what``: the subject of the log line for one that failed, such as ``stack capture``."""
        self._log = log
        self._what = what
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """How many have not ended."""
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it on the loop that runs now. The task may be awaited, too; its failure is logged all the same."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("%s failed", self._what, exc_info=error)

    async def wait(self, timeout: float) -> None:
        """Wait until those that run now have ended, for at most ``timeout`` seconds. None is cancelled."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout)

    def cancel(self) -> None:
        """Ask those that run to end."""
        for task in self._running:
            task.cancel()
