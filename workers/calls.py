"""Running calls: each in a slot of the scoreboard, each measured, each cancellable, each answered exactly once.

Here are the books: receive, cancel, settle. What runs a call is a runner: ``coroutines`` for an async agent,
``thread_calls`` for a sync one. Either way the same steps: take a slot, decode the body, get a connection if one is
wanted, mark the slot as begun, enter the function, await what it returns if that is awaitable, encode it, answer, free
the slot. The slot is freed only when the call has really ended: one that is cancelled and does not yield keeps it,
which is what lets the supervisor see it and, in the end, kill this process.

CPU time is measured where it is spent: for a thread by its clock, for a coroutine by the loop's thread's clock around
each of its steps (``metered``). So waiting costs nothing, and the supervisor learns how much of a core an agent
really takes. (Tasks that an agent starts are not its steps: their time is not counted.)

What an agent raises, ``SystemExit`` included, ends its call and nothing else; what is wrong with a message ends
nothing at all. Nothing in here may raise into the loop, since an answer would be lost with it.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from penstock.ipc.frames import DecodeError, decode_to_work, encode
from penstock.ipc.log import get_logger
from penstock.ipc.messages import Answer, Batch, Call, Outcome, Part, Reply
from penstock.ipc.sockets import Outbox

from .agent import Definition
from .batches import Member, Members
from .binding import BadBody
from .coroutines import Coroutines
from .database import Database, Unavailable
from .running import CannotStartError, Rest, Result, Runner, Running, log_fields
from .steps import Steps
from .streams import Streams
from .thread_calls import ThreadCalls
from .threads import Threads

if TYPE_CHECKING:
    pass

log = get_logger("penstock.calls")
agent_log = get_logger("penstock.agent")

NO_RESULT: Final[Result] = (0, "", None, b"")
NO_PROBLEM: Final = ("", "")
AGENT_ERROR: Final = ("agent-error", "the agent raised an exception; the daemon's log has it")
NOTHING_SPENT: Final = (0.0, 0.0, 0.0)


class Calls:
    """All calls of this worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: tuple[str, int],
        agents: dict[str, Definition],
        steps: Steps,
        streams: Streams,
        database: Database,
        threads: Threads,
        outbox: Outbox,
    ) -> None:
        """``worker``: name and generation, for the answers."""
        self._worker = worker
        self._agents = agents
        self._board = board = steps.board
        self._database = database
        self._outbox = outbox
        self._coroutines = Coroutines(loop, steps, streams, database, self._settle, board.step)
        thread_calls = ThreadCalls(loop, steps, streams, database, threads, self._settle)
        self._runners: dict[str, Runner] = {"async": self._coroutines, "sync": thread_calls}
        self._free = deque(range(board.slots))
        self._running: dict[int, Running] = {}
        self._newest = 0
        self._cancelled_early: dict[int, str] = {}

    # In

    def receive(self, header: bytes, body: bytes) -> None:
        """A call has come."""
        try:
            spec = decode_to_work(header)
        except DecodeError as error:
            log.error("dropped a message on the work channel: %s", error)
            return
        if isinstance(spec, Batch):
            self._receive_batch(spec, body)
            return
        self._newest = max(self._newest, spec.call)
        agent = self._agents.get(spec.agent)
        if agent is not None and agent.binding.batch:
            self._receive_batch(Batch([spec], [len(body)]), body)
        else:
            self._receive(spec, agent, body)

    def _receive(self, spec: Call, agent: Definition | None, body: bytes) -> None:
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
        else:
            run.runner = self._runners[agent.binding.kind]
            try:
                run.runner.start(run, body)
            except CannotStartError as error:
                self._problem(run, "unavailable", f"the worker {self._worker[0]} {error}")

    def _receive_batch(self, message: Batch, bodies: bytes) -> None:
        """Calls have come that go together."""
        specs = message.calls
        self._newest = max(self._newest, specs[-1].call)
        agent = self._agents.get(specs[0].agent)
        if agent is None or not agent.binding.batch or not self._free:
            for spec in specs:
                self._turn_away(spec, agent)
            return
        first = msgspec.structs.replace(specs[0], deadline=max(spec.deadline for spec in specs))
        run = Running(first, agent, self._free.popleft())
        run.batch = Members(specs, message.sizes, bodies)
        now = time.monotonic()
        self._board.take(run.slot, first.call, now)
        for each in run.batch.all:
            self._running[each.spec.call] = run
            each.cancelled = self._cancelled_early.pop(each.spec.call, "")
            if now >= each.spec.deadline:
                each.problem = "deadline-exceeded", "the deadline was over when the call reached its worker"
        self._go_on(run, run.batch)

    def _go_on(self, run: Running, batch: Members) -> None:
        """Give the function the next members of a batch, or answer all."""
        while not run.cancelled and batch.next_part():
            run.runner = self._runners[run.agent.binding.kind]
            try:
                run.runner.start(run, b"")
                return
            except CannotStartError as error:
                for each in batch.part:
                    each.problem = "unavailable", f"the worker {self._worker[0]} {error}"
        self._end_batch(run, batch)

    def _turn_away(self, spec: Call, agent: Definition | None) -> None:
        """A call that the supervisor should not have sent; it gets its answer like any other."""
        what = "has no free slot" if agent else f"has no agent {spec.agent!r}"
        log.error("call %d was sent to a worker that %s", spec.call, what, extra=log_fields(spec))
        now = time.monotonic()
        name, generation = self._worker
        answer = Answer(
            worker=name,
            generation=generation,
            call=spec.call,
            outcome=Outcome.PROBLEM,
            status=0,
            content_type="",
            headers=None,
            problem="unavailable",
            detail=f"the worker {name} {what}",
            wall=0.0,
            cpu=0.0,
            db=0.0,
            taken_at=now,
            ended_at=now,
        )
        self._outbox.send(encode(answer))

    def cancel(self, call: int, reason: str) -> None:
        """The supervisor gives a call up."""
        run = self._running.get(call)
        if run is None:
            # Control overtakes work: a call that was never seen is still in the pipe.
            if call > self._newest:
                self._cancelled_early[call] = reason
            return
        if run.batch is not None:
            run.batch.cancel(call, reason)
            if run.batch.is_open:
                return
        if run.cancelled:
            return
        run.cancelled = reason
        if run.context is not None:
            run.context.cancel(reason)
        if run.children is not None:
            run.children.close()
        if run.runner is not None:
            run.runner.cancel(run)
        if run.outflow is not None:
            run.outflow.close()

    def more(self, call: int, credit: int) -> None:
        """The supervisor lets a call's stream go on."""
        run = self._running.get(call)
        if run is not None and run.outflow is not None:
            run.outflow.more(credit)

    def replied(self, message: Part | Reply, body: bytes) -> None:
        """Something has come of what a call has asked for."""
        run = self._running.get(message.call)
        if run is None or run.children is None:
            return
        if isinstance(message, Part):
            run.children.part(message, body)
        else:
            run.children.reply(message, body)

    @property
    def busy(self) -> int:
        return len(self._running)

    # Out

    def _settle(self, run: Running, result: Result | Rest | None, failure: BaseException | None) -> None:
        """The call has ended: with a result, or by the client's fault, the database's, a cancellation, the agent's."""
        if run.outflow is not None and not run.cancelled and not run.outflow.empty:
            # The last items wait for credit. The call has its slot until they are gone, and nothing else any more.
            run.runner = None
            run.outflow.when_drained(lambda: self._settle(run, result, failure))
            return
        if isinstance(result, Rest):
            if not run.cancelled:
                self._coroutines.go_on(run, result)
                return
            if inspect.iscoroutine(result.awaitable):
                result.awaitable.close()
        if run.batch is not None:
            self._settle_batch(run, run.batch, failure)
        elif run.cancelled:
            # Whatever came of it: nobody waits any more.
            self._end(run, Outcome.CANCELLED)
        elif result is not None and not isinstance(result, Rest):
            self._end(run, Outcome.RESULT, result)
        elif isinstance(failure, Unavailable) or (isinstance(failure, BadBody) and not run.begun_at):
            self._problem(run, failure.problem, failure.detail)
        else:
            assert failure is not None
            self._report(run, run.spec, failure)
            self._database.learn(failure)
            self._problem(run, *AGENT_ERROR)

    def _report(self, run: Running, spec: Call, failure: BaseException) -> None:
        extra = log_fields(spec)
        kind = type(failure).__name__
        try:
            trace = (type(failure), failure, failure.__traceback__)
            agent_log.error("%s raised %s", run.agent.name, kind, exc_info=trace, extra=extra)
        except Exception:
            # An exception of the agent's own making can fail at being looked at, even inside logging's last resort.
            agent_log.error("%s raised %s, which has no readable traceback", run.agent.name, kind, extra=extra)

    def _problem(self, run: Running, problem: str, detail: str) -> None:
        self._end(run, Outcome.PROBLEM, problem=(problem, detail))

    def _settle_batch(self, run: Running, batch: Members, failure: BaseException | None) -> None:
        """A run of the function has ended for some members of a batch: go on with the others, or answer all."""
        if failure is not None and not run.cancelled:
            self._database.learn(failure)
            again = run.agent.settings.idempotent and time.monotonic() < run.spec.deadline
            if batch.fail(failure, again=again):
                self._report(run, run.spec, failure)
        self._go_on(run, batch)

    def _end_batch(self, run: Running, batch: Members) -> None:
        """Answer each member, then free the slot."""
        now = time.monotonic()
        spent = _spent(run, now)
        for each in batch.all:
            del self._running[each.spec.call]
            if each.failure is not None and not each.cancelled:
                self._report(run, each.spec, each.failure)
            outcome, problem = self._outcome(each)
            result = each.result if outcome is Outcome.RESULT and each.result is not None else NO_RESULT
            counts = outcome is not Outcome.CANCELLED
            self._answer(run, each.spec.call, outcome, result, problem, spent if counts else NOTHING_SPENT, now)
            if counts:
                spent = NOTHING_SPENT
        self._free_slot(run)

    @staticmethod
    def _outcome(member: Member) -> tuple[Outcome, tuple[str, str]]:
        """How a member of a batch ends, with its problem."""
        if member.cancelled:
            return Outcome.CANCELLED, NO_PROBLEM
        if member.result is not None:
            return Outcome.RESULT, NO_PROBLEM
        if member.problem is not None:
            return Outcome.PROBLEM, member.problem
        return Outcome.PROBLEM, AGENT_ERROR

    def _end(
        self,
        run: Running,
        outcome: Outcome,
        result: Result = NO_RESULT,
        problem: tuple[str, str] = NO_PROBLEM,
    ) -> None:
        """Answer, then free the slot: a worker that dies between the two has begun the call for sure."""
        now = time.monotonic()
        del self._running[run.spec.call]
        if run.context is not None:
            run.context.end()
        if run.children is not None:
            run.children.close()
        self._answer(run, run.spec.call, outcome, result, problem, _spent(run, now), now)
        self._free_slot(run)

    def _answer(
        self,
        run: Running,
        call: int,
        outcome: Outcome,
        result: Result,
        problem: tuple[str, str],
        spent: tuple[float, float, float],
        now: float,
    ) -> None:
        name, generation = self._worker
        status, content_type, headers, body = result
        answer = Answer(
            worker=name,
            generation=generation,
            call=call,
            outcome=outcome,
            status=status,
            content_type=content_type,
            headers=headers,
            problem=problem[0],
            detail=problem[1],
            wall=spent[0],
            cpu=spent[1],
            db=spent[2],
            taken_at=run.taken_at or now,
            ended_at=now,
            stalled=0.0 if run.outflow is None else run.outflow.stalled,
            nested=0.0 if run.children is None else run.children.seconds,
        )
        self._outbox.send(encode(answer), body)

    def _free_slot(self, run: Running) -> None:
        if run.begun_at:
            self._board.free(run.slot)
        else:
            self._board.give_up(run.slot)
        self._free.append(run.slot)


def _spent(run: Running, now: float) -> tuple[float, float, float]:
    """Wall, CPU and database seconds of a run."""
    wall = (run.ended_at or now) - run.begun_at if run.begun_at else 0.0
    return wall, run.cpu, 0.0 if run.meter is None else run.meter.seconds
