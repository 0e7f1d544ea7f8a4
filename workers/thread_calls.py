"""Sync calls: each on a thread that can be interrupted.

With a connection, an interruption waits for the end of the statement that runs, which is cancelled at the server:
inside libpq a thread sees none.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from typing import Any

from penstock.ipc.log import get_logger

from .context import Interrupted
from .database import Database, Holding, holding
from .running import CannotStartError, Rest, Result, Running, Settle, log_fields
from .steps import Steps
from .streams import Streams
from .threads import ThreadCall, Threads

log = get_logger("penstock.calls")


class ThreadCalls:
    """Runs calls on threads."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        steps: Steps,
        streams: Streams,
        database: Database,
        threads: Threads,
        settle: Settle,
    ) -> None:
        self._loop = loop
        self._steps = steps
        self._streams = streams
        self._database = database
        self._threads = threads
        self._settle = settle
        self._begins_in = contextvars.copy_context()

    def start(self, run: Running, body: bytes) -> None:
        run.thread_call = ThreadCall(
            lambda thread_call: self._run(run, body, thread_call),
            lambda result, failure: self._ended(run, result, failure),
            run.agent.name,
        )
        try:
            self._threads.start(run.thread_call)
        except RuntimeError as error:
            log.error("no thread can be started: %s", error, extra=log_fields(run.spec))
            raise CannotStartError("can start no thread") from error

    def cancel(self, run: Running) -> None:
        assert run.thread_call is not None
        interrupt = run.thread_call.interrupt
        if run.holding is None or not run.holding.cancel(interrupt):
            interrupt()

    def _run(self, run: Running, body: bytes, thread_call: ThreadCall) -> Result | Rest:
        begun = time.thread_time()
        try:
            # A context of its own, as a task has: what one call leaves in a context variable is not the next one's.
            return self._begins_in.copy().run(self._work, run, body, thread_call)
        finally:
            run.cpu += time.thread_time() - begun

    def _work(self, run: Running, body: bytes, thread_call: ThreadCall) -> Result | Rest:
        if run.cancelled:
            raise Interrupted
        arguments = self._steps.prepare(run, body)
        if run.agent.binding.database:
            return self._streams.encoded(run, self._with_database(run, arguments, thread_call))
        result = self._enter(run, arguments, thread_call)
        if inspect.isawaitable(result):
            return Rest(result, contextvars.copy_context())
        return self._streams.encoded(run, result)

    def _with_database(self, run: Running, arguments: dict[str, Any], thread_call: ThreadCall) -> Any:
        binding = run.agent.binding
        for injection in binding.injections:
            if injection.kind == "pool":
                arguments[injection.name] = self._database.pool_in_thread(run.spec.deadline)
        run.holding = Holding(thread_call)
        holding.set(run.holding)
        if run.cancelled:
            raise Interrupted  # whoever cancelled it did so before there was something to wake it by
        try:
            if binding.connection:
                return self._with_connection(run, arguments, thread_call)
            return self._enter(run, arguments, thread_call)
        finally:
            run.holding.sweep()

    def _with_connection(self, run: Running, arguments: dict[str, Any], thread_call: ThreadCall) -> Any:
        with self._database.connection_in_thread(run.spec.deadline) as connection:
            arguments[run.agent.binding.connection] = connection
            self._steps.connected(run, connection.info.backend_pid)
            return self._enter(run, arguments, thread_call)

    def _enter(self, run: Running, arguments: dict[str, Any], thread_call: ThreadCall) -> Any:
        thread_call.enter()
        try:
            return self._streams.poured_in_thread(run, self._steps.enter(run, arguments), thread_call)
        finally:
            thread_call.leave()
            run.ended_at = time.monotonic()

    def _ended(self, run: Running, result: Any, failure: BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, run, result, failure)
        except RuntimeError:
            # The loop is closed: the process is about to end, and with it the call.
            log.debug("call %d ended after the loop of its worker", run.spec.call, extra=log_fields(run.spec))
