"""The sequence of reloads: one at a time, and the newest that was requested always runs.

A reload has two halves. In the first a worker of each pool proves the new code and configuration; nothing has changed
yet, so a newer reload takes its place at once (otherwise code that hangs at its start would block all later reloads).
In the second the workers are replaced one after another; cancelling that would leave them mixed if the newer one
failed, so the newer one follows. Whoever requested a reload that was replaced gets the outcome of the newer one, which
includes what was requested.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from penstock.ipc.tasks import Tasks

log = logging.getLogger("penstock")


class Reloads:
    """Those that were asked for, and the one that goes on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        once: Callable[[], Coroutine[Any, Any, str]],
        possible: Callable[[], Awaitable[None]],
    ) -> None:
        """``once`` does the first half and gives why it failed, or nothing; ``possible`` ends when one can begin."""
        self._loop = loop
        self._once = once
        self._possible = possible
        self._next: asyncio.Future[str] | None = None
        self._proving: asyncio.Task[str] | None = None
        self._running: asyncio.Task[None] | None = None
        self._tasks = Tasks(log, "the sequence of reloads")
        self._asked: list[asyncio.Future[str]] = []

    def ask(self) -> asyncio.Future[str]:
        """Reload, now or after the reload that goes on: empty once the new is proven, else why it was not taken."""
        if self._next is None:
            self._next = self._loop.create_future()
            if self._proving is not None:
                log.info("a newer reload replaces the one that is being proven")
                self._proving.cancel()
        if self._running is None:
            self._running = self._tasks.start(self._run())
        return self._next

    async def _run(self) -> None:
        try:
            while self._next is not None:
                await self._possible()
                self._asked.append(self._next)
                self._next = None
                self._proving = self._loop.create_task(self._once())
                await asyncio.wait({self._proving})
                ended, self._proving = self._proving, None
                if not ended.cancelled():
                    self._answer(_outcome(ended))
        except Exception as error:
            self._answer_all(f"{type(error).__name__}: {error}")
            raise
        finally:
            self._running = None

    def _answer(self, why: str) -> None:
        asked, self._asked = self._asked, []
        for future in asked:
            future.set_result(why)
        if why:
            log.error("the reload failed, and the old code and configuration serve on: %s", why)

    def _answer_all(self, why: str) -> None:
        """Answer whoever waits, for a reload that goes on or for the next."""
        waiting, self._asked = self._asked, []
        if self._next is not None:
            waiting.append(self._next)
            self._next = None
        for future in waiting:
            future.set_result(why)

    def close(self) -> None:
        """Cancel the reload that goes on; whoever still waits is told."""
        for task in (self._running, self._proving):
            if task is not None:
                task.cancel()
        self._answer_all("the daemon is stopping")


def _outcome(ended: asyncio.Task[str]) -> str:
    error = ended.exception()
    if error is None:
        return ended.result()
    log.error("the reload raised an exception", exc_info=error)
    return f"{type(error).__name__}: {error}"
