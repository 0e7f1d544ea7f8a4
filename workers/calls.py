"""Running calls: each in a slot of the scoreboard, each measured, each cancellable, each answered exactly once.

An async agent runs as a task of the loop, a sync one as a job on a thread. Either way the same steps: take a slot,
decode the body, get a connection if one is wanted, mark the slot as begun, enter the function, encode what it
returns, answer, free the slot. The slot is freed only when the call has really ended: a cancelled call that does not
yield keeps it, which is what lets the supervisor see it and, in the end, kill this process.

CPU time is measured where it is spent: for a thread by its clock, for a coroutine by the loop's thread's clock around
each of its steps. So what waits costs nothing, and what the supervisor learns of an agent is what it really takes of
a core.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Generator
from typing import Any, Final

from penstock.ipc.frames import DecodeError, decode_call, encode
from penstock.ipc.messages import Answer, Call, Outcome
from penstock.ipc.scoreboard import Scoreboard
from penstock.ipc.sockets import Outbox

from .agent import Definition
from .binding import BadBody
from .context import Context, Interrupted, current
from .database import Database, Unavailable
from .response import encode_result
from .threads import Job, Threads

log = logging.getLogger("penstock.calls")

CANCEL_PATIENCE: Final = 2.0
"""Seconds that cancelling a running statement may take before its thread is interrupted regardless."""


class Metered(Coroutine[Any, Any, None]):
    """A coroutine that adds the CPU time of each of its steps to its call."""

    __slots__ = ("_call", "_inner")

    def __init__(self, inner: Coroutine[Any, Any, None], call: Running) -> None:
        self._inner = inner
        self._call = call

    def send(self, value: Any) -> Any:
        begun = time.thread_time()
        try:
            return self._inner.send(value)
        finally:
            self._call.cpu += time.thread_time() - begun

    def throw(self, *error: Any) -> Any:
        begun = time.thread_time()
        try:
            return self._inner.throw(*error)
        finally:
            self._call.cpu += time.thread_time() - begun

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return (yield from self._inner.__await__())


class Running:
    """A call that this worker has."""

    __slots__ = ("agent", "begun_at", "cancelled", "connection", "context", "cpu", "db", "job", "slot", "spec", "task")

    def __init__(self, spec: Call, agent: Definition, slot: int) -> None:
        self.spec = spec
        self.agent = agent
        self.slot = slot
        self.context: Context | None = None
        self.task: asyncio.Task[None] | None = None
        self.job: Job | None = None
        self.connection: Any = None
        """The psycopg connection of a sync call, so that its statement can be cancelled from outside."""
        self.cancelled = ""
        self.begun_at = 0.0
        self.cpu = 0.0
        self.db = 0.0


class Calls:
    """All calls of this worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: tuple[str, int],
        agents: dict[str, Definition],
        board: Scoreboard,
        database: Database,
        threads: Threads,
        outbox: Outbox,
    ) -> None:
        """``worker``: name and generation, for the answers."""
        self._loop = loop
        self._worker = worker
        self._agents = agents
        self._board = board
        self._database = database
        self._threads = threads
        self._outbox = outbox
        self._free = list(range(board.slots - 1, -1, -1))
        self._running: dict[int, Running] = {}
        self._newest = 0
        self._cancelled_early: dict[int, str] = {}

    # In

    def receive(self, header: bytes, body: bytes) -> None:
        """A call has come."""
        try:
            spec = decode_call(header)
        except DecodeError as error:
            log.error("dropped a message on the work channel: %s", error)
            return
        self._newest = max(self._newest, spec.call)
        agent = self._agents[spec.agent]
        run = Running(spec, agent, self._free.pop())
        now = time.monotonic()
        self._board.take(run.slot, spec.call, now)
        self._running[spec.call] = run
        early = self._cancelled_early.pop(spec.call, "")
        if early:
            run.cancelled = early
            self._end(run, Outcome.CANCELLED)
        elif now >= spec.deadline:
            self._problem(run, "deadline-exceeded", "the deadline was over when the call reached its worker")
        elif agent.binding.kind == "async":
            run.task = self._loop.create_task(Metered(self._run_async(run, body), run))
        else:
            run.job = Job(
                lambda job: self._run_in_thread(run, body, job),
                lambda result, failure: self._thread_ended(run, result, failure),
            )
            self._threads.start(run.job)

    def cancel(self, call: int, reason: str) -> None:
        """The supervisor gives a call up."""
        run = self._running.get(call)
        if run is None:
            # Control overtakes work: a call that was never seen is still in the pipe.
            if call > self._newest:
                self._cancelled_early[call] = reason
            return
        if run.cancelled:
            return
        run.cancelled = reason
        if run.context is not None:
            run.context.cancel(reason)
        if run.task is not None:
            run.task.cancel()
        elif run.job is not None:
            self._interrupt(run, run.job)

    @property
    def busy(self) -> int:
        return len(self._running)

    # Async calls

    async def _run_async(self, run: Running, body: bytes) -> None:
        binding = run.agent.binding
        try:
            arguments = binding.decode(body)
            if binding.injections:
                self._hand_in(run, arguments)
            if binding.connection:
                result = await self._with_connection(run, arguments)
            else:
                self._begin(run)
                result = await run.agent.function(**arguments)
            status, content_type, headers, encoded = encode_result(result)
        except BaseException as error:
            self._failed(run, error)
            return
        self._end(run, Outcome.RESULT, status, content_type, headers, encoded)

    async def _with_connection(self, run: Running, arguments: dict[str, Any]) -> Any:
        async with self._database.connection(run.spec.deadline) as connection:
            arguments[run.agent.binding.connection] = connection
            self._board.backend(run.slot, connection.info.backend_pid)
            held_at = time.monotonic()
            try:
                self._begin(run)
                return await run.agent.function(**arguments)
            finally:
                run.db = time.monotonic() - held_at

    # Sync calls

    def _run_in_thread(self, run: Running, body: bytes, job: Job) -> Any:
        begun = time.thread_time()
        try:
            arguments = run.agent.binding.decode(body)
            if run.agent.binding.injections:
                self._hand_in(run, arguments)
            token = current.set(run.context or self._context(run))
            try:
                if run.agent.binding.connection:
                    result = self._with_connection_in_thread(run, arguments, job)
                else:
                    result = self._enter(run, arguments, job)
            finally:
                current.reset(token)
            return encode_result(result)
        finally:
            run.cpu = time.thread_time() - begun

    def _with_connection_in_thread(self, run: Running, arguments: dict[str, Any], job: Job) -> Any:
        with self._database.connection_in_thread(run.spec.deadline) as connection:
            arguments[run.agent.binding.connection] = connection
            self._board.backend(run.slot, connection.info.backend_pid)
            held_at = time.monotonic()
            run.connection = connection
            try:
                return self._enter(run, arguments, job)
            finally:
                run.connection = None
                run.db = time.monotonic() - held_at

    def _enter(self, run: Running, arguments: dict[str, Any], job: Job) -> Any:
        job.enter()
        try:
            self._begin(run)
            return run.agent.function(**arguments)
        finally:
            job.leave()

    def _thread_ended(self, run: Running, result: Any, failure: BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, run, result, failure)
        except RuntimeError:
            # The loop is closed: the process is about to end, and with it the call.
            log.debug("call %d ended after its worker", run.spec.call)

    def _settle(self, run: Running, result: Any, failure: BaseException | None) -> None:
        if failure is not None:
            self._failed(run, failure)
        else:
            self._end(run, Outcome.RESULT, *result)

    def _interrupt(self, run: Running, job: Job) -> None:
        connection = run.connection
        if connection is None:
            job.interrupt()
            return
        # Inside libpq a thread sees no exception: first its statement has to end. That needs a round trip to the
        # server, which must not hold up the loop.
        threading.Thread(target=_cancel_statement, args=(connection, job), daemon=True).start()

    # Both

    def _context(self, run: Running) -> Context:
        spec = run.spec
        run.context = Context(spec.agent, spec.request_id, spec.client, spec.headers or {}, spec.deadline)
        if run.cancelled:
            run.context.cancel(run.cancelled)
        return run.context

    def _hand_in(self, run: Running, arguments: dict[str, Any]) -> None:
        for injection in run.agent.binding.injections:
            if injection.kind == "context":
                arguments[injection.name] = run.context or self._context(run)
            elif injection.kind == "pool":
                arguments[injection.name] = self._database.pool(run.agent.binding.database)

    def _begin(self, run: Running) -> None:
        run.begun_at = now = time.monotonic()
        self._board.begin(run.slot, now)
        if run.agent.binding.kind == "async":
            current.set(run.context or self._context(run))

    def _failed(self, run: Running, error: BaseException) -> None:
        """Everything but a result: the client's fault, the database's, a cancellation, or the agent's."""
        if run.cancelled:
            self._end(run, Outcome.CANCELLED)
        elif isinstance(error, (BadBody, Unavailable)) and not run.begun_at:
            self._problem(run, error.problem, error.detail)
        elif isinstance(error, Interrupted):
            self._end(run, Outcome.CANCELLED)
        else:
            log.error(
                "%s failed: %s",
                run.agent.name,
                error or type(error).__name__,
                exc_info=(type(error), error, error.__traceback__),
                extra={"request_id": run.spec.request_id, "agent": run.agent.name},
            )
            self._problem(run, "agent-error", "the agent raised an exception; the daemon's log has it")

    def _problem(self, run: Running, problem: str, detail: str) -> None:
        self._end(run, Outcome.PROBLEM, problem=problem, detail=detail)

    def _end(
        self,
        run: Running,
        outcome: Outcome,
        status: int = 0,
        content_type: str = "",
        headers: list[tuple[str, str]] | None = None,
        body: bytes = b"",
        problem: str = "",
        detail: str = "",
    ) -> None:
        """Answer, then free the slot: a worker that dies between the two has begun the call for sure."""
        wall = time.monotonic() - run.begun_at if run.begun_at else 0.0
        del self._running[run.spec.call]
        name, generation = self._worker
        answer = Answer(
            name,
            generation,
            run.spec.call,
            outcome,
            status,
            content_type,
            headers,
            problem,
            detail,
            wall,
            run.cpu,
            run.db,
        )
        self._outbox.send(encode(answer), body)
        self._board.free(run.slot)
        self._free.append(run.slot)


def _cancel_statement(connection: Any, job: Job) -> None:
    try:
        connection.cancel_safe(timeout=CANCEL_PATIENCE)
    except Exception as error:
        log.warning("a running statement could not be cancelled: %s", error)
    job.interrupt()
