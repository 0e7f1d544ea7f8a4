"""Running calls: each in a slot of the scoreboard, each measured, each cancellable, each answered exactly once.

An async agent runs as a task of the loop, a sync one as a job on a thread. Either way the same steps: take a slot,
decode the body, get a connection if one is wanted, mark the slot as begun, enter the function, await what it returns
if that is awaitable, encode it, answer, free the slot. The slot is freed only when the call has really ended: one that
is cancelled and does not yield keeps it, which is what lets the supervisor see it and, in the end, kill this process.

CPU time is measured where it is spent: for a thread by its clock, for a coroutine by the loop's thread's clock around
each of its steps (``metered``). So what waits costs nothing, and what the supervisor learns of an agent is what it
really takes of a core. (Tasks that an agent starts are not its steps: their time is not counted.)

What an agent raises, ``SystemExit`` included, ends its call and nothing else; what is wrong with a message ends
nothing at all. Nothing in here may raise into the loop, since an answer would be lost with it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.ipc.frames import DecodeError, decode_call, encode
from penstock.ipc.log import call_fields, get_logger
from penstock.ipc.messages import Answer, Call, Outcome
from penstock.ipc.scoreboard import Scoreboard
from penstock.ipc.sockets import Outbox

from .agent import Definition
from .binding import BadBody
from .context import Context, Interrupted, current
from .database import Database, Holding, Unavailable, holding
from .database.metering import Meter, meter
from .metered import Metered
from .response import encode_result
from .running import Result, Running
from .threads import Job, Threads

if TYPE_CHECKING:
    from .spans import AgentSpans

log = get_logger("penstock.calls")
agent_log = get_logger("penstock.agent")


class Rest(NamedTuple):
    """What a plain function has returned to be awaited, and the context in which it ran on its thread."""

    awaitable: Awaitable[Any]
    context: contextvars.Context


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
        spans: AgentSpans | None = None,
    ) -> None:
        """``worker``: name and generation, for the answers."""
        self._loop = loop
        self._worker = worker
        self._agents = agents
        self._board = board
        self._database = database
        self._threads = threads
        self._outbox = outbox
        self._spans = spans
        self._free = deque(range(board.slots))
        self._begins_in = contextvars.copy_context()
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
        agent = self._agents.get(spec.agent)
        if agent is None or not self._free:
            self._turn_away(spec, agent)
            return
        run = Running(spec, agent, self._free.popleft())
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
            run.task = self._loop.create_task(Metered(self._run_async(run, body), run, self._settle, self._board.step))
        else:
            self._start_in_thread(run, body)

    def _turn_away(self, spec: Call, agent: Definition | None) -> None:
        """A call that the supervisor should not have sent; it gets its answer like any other."""
        what = "has no free slot" if agent else f"has no agent {spec.agent!r}"
        log.error("call %d was sent to a worker that %s", spec.call, what, extra=_marks(spec))
        now = time.monotonic()
        name, generation = self._worker
        detail = f"the worker {name} {what}"
        times = (0.0, 0.0, 0.0, now, now)
        answer = Answer(name, generation, spec.call, Outcome.PROBLEM, 0, "", None, "unavailable", detail, *times)
        self._outbox.send(encode(answer))

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
        elif run.job is not None and (run.holding is None or not run.holding.cancel(run.job.interrupt)):
            # With a connection, the interruption waits for the statement's end: inside libpq a thread sees none.
            run.job.interrupt()

    @property
    def busy(self) -> int:
        return len(self._running)

    # Async calls

    async def _run_async(self, run: Running, body: bytes) -> Result:
        binding = run.agent.binding
        run.taken_at = time.monotonic()
        if binding.database:
            run.meter = Meter()
            meter.set(run.meter)
        arguments = binding.decode(body)
        for injection in binding.injections:
            if injection.kind == "context":
                arguments[injection.name] = run.context or self._context(run)
            elif injection.kind == "pool":
                arguments[injection.name] = await self._database.pool(run.spec.deadline)
        if binding.connection:
            result = await self._with_connection(run, arguments)
        else:
            self._begin(run)
            current.set(run.context or self._context(run))
            result = self._function(run)(**arguments)
            if inspect.isawaitable(result):
                result = await result
        run.ended_at = time.monotonic()
        return encode_result(result)

    async def _with_connection(self, run: Running, arguments: dict[str, Any]) -> Any:
        async with self._database.connection(run.spec.deadline) as connection:
            arguments[run.agent.binding.connection] = connection
            self._board.backend(run.slot, connection.info.backend_pid)
            self._begin(run)
            current.set(run.context or self._context(run))
            result = self._function(run)(**arguments)
            return await result if inspect.isawaitable(result) else result

    # Sync calls

    def _start_in_thread(self, run: Running, body: bytes) -> None:
        run.job = Job(
            lambda job: self._run_in_thread(run, body, job),
            lambda result, failure: self._thread_ended(run, result, failure),
            run.agent.name,
        )
        try:
            self._threads.start(run.job)
        except RuntimeError as error:
            log.error("no thread can be started: %s", error, extra=_marks(run.spec))
            self._problem(run, "unavailable", f"the worker {self._worker[0]} can start no thread")

    def _run_in_thread(self, run: Running, body: bytes, job: Job) -> Result | Rest:
        begun = time.thread_time()
        try:
            # A context of its own, as a task has: what one call leaves in a context variable is not the next one's.
            return self._begins_in.copy().run(self._work, run, body, job)
        finally:
            run.cpu = time.thread_time() - begun

    def _work(self, run: Running, body: bytes, job: Job) -> Result | Rest:
        if run.cancelled:
            raise Interrupted
        binding = run.agent.binding
        run.taken_at = time.monotonic()
        if binding.database:
            run.meter = Meter()
            meter.set(run.meter)
        arguments = binding.decode(body)
        for injection in binding.injections:
            if injection.kind == "context":
                arguments[injection.name] = run.context or self._context(run)
            elif injection.kind == "pool":
                arguments[injection.name] = self._database.pool_in_thread(run.spec.deadline)
        current.set(run.context or self._context(run))
        if not binding.database:
            result = self._enter(run, arguments, job)
            if inspect.isawaitable(result):
                return Rest(result, contextvars.copy_context())
            return encode_result(result)
        run.holding = Holding(job)
        holding.set(run.holding)
        if run.cancelled:
            raise Interrupted  # whoever cancelled it did so before there was something to wake it by
        try:
            if binding.connection:
                return encode_result(self._with_connection_in_thread(run, arguments, job))
            return encode_result(self._enter(run, arguments, job))
        finally:
            run.holding.sweep()

    def _with_connection_in_thread(self, run: Running, arguments: dict[str, Any], job: Job) -> Any:
        with self._database.connection_in_thread(run.spec.deadline) as connection:
            arguments[run.agent.binding.connection] = connection
            self._board.backend(run.slot, connection.info.backend_pid)
            return self._enter(run, arguments, job)

    def _enter(self, run: Running, arguments: dict[str, Any], job: Job) -> Any:
        job.enter()
        try:
            self._begin(run)
            return self._function(run)(**arguments)
        finally:
            job.leave()
            run.ended_at = time.monotonic()

    def _thread_ended(self, run: Running, result: Any, failure: BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, run, result, failure)
        except RuntimeError:
            # The loop is closed: the process is about to end, and with it the call.
            log.debug("call %d ended after its worker", run.spec.call, extra=_marks(run.spec))

    def _await_rest(self, run: Running, rest: Rest) -> None:
        """A plain function gave something to be awaited: the call goes on on the loop, as if it had been async."""

        async def work() -> Result:
            result = await rest.awaitable
            run.ended_at = time.monotonic()
            return encode_result(result)

        run.job = None
        metered = Metered(work(), run, self._settle, self._board.step)
        run.task = self._loop.create_task(metered, context=rest.context)

    # Both

    def _context(self, run: Running) -> Context:
        spec = run.spec
        headers = spec.headers or {}
        if spec.raw_headers:
            headers |= {name: value.decode(errors="surrogateescape") for name, value in spec.raw_headers.items()}
        run.context = Context(
            spec.agent,
            spec.request_id,
            spec.client,
            headers,
            spec.deadline,
            spec.traceparent,
            spec.tracestate,
        )
        if run.cancelled:
            run.context.cancel(run.cancelled)
        return run.context

    def _function(self, run: Running) -> Callable[..., Any]:
        return run.agent.function if self._spans is None else self._spans.around(run)

    def _begin(self, run: Running) -> None:
        run.begun_at = now = time.monotonic()
        self._board.begin(run.slot, now)

    def _settle(self, run: Running, result: Result | Rest | None, failure: BaseException | None) -> None:
        """The call has ended: with a result, or by the client's fault, the database's, a cancellation, the agent's."""
        if run.cancelled:
            # Whatever came of it: nobody waits any more.
            if isinstance(result, Rest) and inspect.iscoroutine(result.awaitable):
                result.awaitable.close()
            self._end(run, Outcome.CANCELLED)
        elif isinstance(result, Rest):
            self._await_rest(run, result)
        elif result is not None:
            self._end(run, Outcome.RESULT, *result)
        elif isinstance(failure, Unavailable) or (isinstance(failure, BadBody) and not run.begun_at):
            self._problem(run, failure.problem, failure.detail)
        else:
            assert failure is not None
            self._report(run, failure)
            self._database.learn(failure)
            self._problem(run, "agent-error", "the agent raised an exception; the daemon's log has it")

    def _report(self, run: Running, failure: BaseException) -> None:
        extra = _marks(run.spec)
        kind = type(failure).__name__
        try:
            trace = (type(failure), failure, failure.__traceback__)
            agent_log.error("%s raised %s", run.agent.name, kind, exc_info=trace, extra=extra)
        except Exception:
            # An exception of the agent's own making can fail at being looked at, even inside logging's last resort.
            agent_log.error("%s raised %s, which has no readable traceback", run.agent.name, kind, extra=extra)

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
        now = time.monotonic()
        wall = (run.ended_at or now) - run.begun_at if run.begun_at else 0.0
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
            0.0 if run.meter is None else run.meter.seconds,
            run.taken_at or now,
            now,
        )
        self._outbox.send(encode(answer), body)
        if run.begun_at:
            self._board.free(run.slot)
        else:
            self._board.give_up(run.slot)
        self._free.append(run.slot)


def _marks(spec: Call) -> dict[str, str]:
    """What a line of the log that concerns a call says of it."""
    return call_fields(spec.request_id, spec.traceparent, spec.agent)
