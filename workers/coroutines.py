"""Async calls: each a task of the loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

from .database import Database
from .metered import Metered
from .running import Rest, Result, Running, Settle
from .steps import Steps
from .streams import Streams


class Coroutines:
    """Runs calls as tasks."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        steps: Steps,
        streams: Streams,
        database: Database,
        settle: Settle,
        show: Callable[[int], None],
    ) -> None:
        """``show`` gets the number of the call whose coroutine runs, or 0, at each step."""
        self._loop = loop
        self._steps = steps
        self._streams = streams
        self._database = database
        self._settle = settle
        self._show = show

    def start(self, run: Running, body: bytes) -> None:
        run.task = self._loop.create_task(Metered(self._run(run, body), run, self._settle, self._show))

    def cancel(self, run: Running) -> None:
        assert run.task is not None
        run.task.cancel()

    def go_on(self, run: Running, rest: Rest) -> None:
        """A plain function returned an awaitable: the call continues on the loop, as if it had been async."""

        async def work() -> Result:
            result = await self._streams.poured(run, await rest.awaitable)
            run.ended_at = time.monotonic()
            return self._streams.encoded(run, result)

        run.runner = self
        run.task = self._loop.create_task(Metered(work(), run, self._settle, self._show), context=rest.context)

    async def _run(self, run: Running, body: bytes) -> Result:
        binding = run.agent.binding
        arguments = self._steps.prepare(run, body)
        if binding.database:
            for injection in binding.injections:
                if injection.kind == "pool":
                    arguments[injection.name] = await self._database.pool(run.spec.deadline)
        if binding.connection:
            result = await self._with_connection(run, arguments)
        else:
            # As ``_result``, which would be one more coroutine for every call.
            result = self._steps.enter(run, arguments)
            if inspect.isawaitable(result):
                result = await result
            if self._streams.may_take(run, result):
                result = await self._streams.poured(run, result)
        run.ended_at = time.monotonic()
        return self._streams.encoded(run, result)

    async def _result(self, run: Running, arguments: dict[str, Any]) -> Any:
        """What the function gives, unless it streams: then nothing, once all has gone out."""
        result = self._steps.enter(run, arguments)
        if inspect.isawaitable(result):
            result = await result
        return await self._streams.poured(run, result) if self._streams.may_take(run, result) else result

    async def _with_connection(self, run: Running, arguments: dict[str, Any]) -> Any:
        async with self._database.connection(run.spec.deadline) as connection:
            arguments[run.agent.binding.connection] = connection
            self._steps.connected(run, connection.info.backend_pid)
            return await self._result(run, arguments)
