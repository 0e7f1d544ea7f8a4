"""The watchdog of serving workers: it logs event loops that are blocked, and captures stacks before a worker is killed.

One timer samples all workers; ``core.health`` decides which is stuck. A blocked loop is logged with its call and its
stack, and nothing else happens: people want to see the fault, and one call that is late by two seconds is no reason to
lose the others. A worker is killed only for a call that is still there when its deadline
and ``agents.hard_timeout_grace`` are over. Its stack is captured before, from half the grace on, so that in the end
nothing is waited for; a capture that fails or hangs delays a kill by ``KILL_PATIENCE`` at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from penstock.ipc.tasks import Tasks

from ..core.health import INTERVAL, Change, suspect
from ..core.lifecycle import Phase
from ..engine.tickets import Ticket
from ..fleet.backend import Identity, Inspectable
from ..fleet.incarnation import Incarnation
from ..fleet.journal import Journal
from ..fleet.views import CallView, calls_of
from ..host import pyspy

log = logging.getLogger("penstock.watch")

CAPTURE_TIMEOUT: Final = 1.0
"""Seconds that py-spy may take for the stack of a worker that is stuck."""

CAPTURES: Final = 4
"""Captures at once: a host that is in trouble may have all workers stuck."""

KILL_PATIENCE: Final = 0.5
"""Seconds that the killing of a worker may be held up for its stack, beyond the grace."""

QUIET: Final = 60.0
"""Seconds after a stack in the log during which a standstill of that worker at the same place is told without one."""

WATCHED: Final = (Phase.SERVING, Phase.DRAINING)
"""Phases in which a loop must turn: start and stop hooks may block it."""

LOOP: Final = "_run_to_the_end"
"""The innermost frame of a worker's loop while it waits."""


class StackCapture:
    """The stacks of a worker, as captured or about to be."""

    __slots__ = ("begun_at", "failure", "task", "threads")

    def __init__(self, begun_at: float) -> None:
        self.begun_at = begun_at
        self.threads: list[pyspy.Thread] = []
        self.failure = ""
        """Why there are none."""
        self.task: asyncio.Task[None] | None = None

    @property
    def text(self) -> str:
        return "\n".join(map(str, self.threads))

    async def take(self, process: Inspectable, turn: asyncio.Semaphore) -> None:
        """Get the stacks, when it is our turn."""
        try:
            async with turn:
                self.threads = await process.stacks(CAPTURE_TIMEOUT)
        except pyspy.SpyError as error:
            self.failure = str(error)


class Watch:
    """Watches the processes of the fleet."""

    def __init__(self, loop: asyncio.AbstractEventLoop, journal: Journal) -> None:
        """Each standstill is told in the log and in the journal."""
        self._loop = loop
        self._journal = journal
        self._alive: Callable[[], Iterable[Incarnation]] = tuple
        self._captures: dict[Identity, StackCapture] = {}
        """The last capture of each process that was taken because it was stuck."""
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks(log, "stack capture")
        self._turn = asyncio.Semaphore(CAPTURES)
        self._told: dict[str, tuple[str, float]] = {}
        """Where each worker stood still when its stack was last put into the log, and when that was."""

    def start(self, alive: Callable[[], Iterable[Incarnation]]) -> None:
        """Begin to sample the processes that this gives."""
        self._alive = alive
        self._timer = self._loop.call_later(INTERVAL, self._sample)

    def close(self) -> None:
        """Stop sampling, and cancel captures."""
        if self._timer is not None:
            self._timer.cancel()
        self._tasks.cancel()

    def _sample(self) -> None:
        self._timer = self._loop.call_later(INTERVAL, self._sample)
        now = time.monotonic()
        alive = list(self._alive())
        self._captures = {
            incarnation.identity: found for incarnation in alive if (found := self._captures.get(incarnation.identity))
        }
        for incarnation in alive:
            vitals = incarnation.handle.vitals()
            if incarnation.phase not in WATCHED or incarnation.pulse is None or vitals is None:
                continue
            change = incarnation.pulse.observe(vitals.turned_at, now)
            if change is Change.STUCK:
                self._tasks.start(self._report(incarnation))
            elif change is Change.TURNS:
                what = "%s: its loop turns again, after %.1f s"
                log.warning(what, incarnation.title, incarnation.pulse.longest, extra={"worker": incarnation.name})

    async def _report(self, incarnation: Incarnation) -> None:
        """Say which loop stands still, in which call, and where."""
        capture = await self._captured(incarnation, time.monotonic())
        if incarnation.phase not in WATCHED or incarnation.pulse is None:
            return  # it was killed or has ended meanwhile, and that is told
        call, what = _blamed(incarnation, capture)
        seconds = incarnation.pulse.standstill
        message = f"{incarnation.title} (pid {incarnation.pid}) is stuck: its loop has not turned for {seconds:.1f} s"
        if isinstance(incarnation.handle, Inspectable) and incarnation.handle.is_stopped():
            message += f"; the process was stopped by a signal, and `kill -CONT {incarnation.pid}` lets it go on"
        else:
            message += what
        at = _at(capture, incarnation.pid, "" if call is None else call.agent)
        fields = _log_fields(incarnation, call, capture)
        before, told_at = self._told.get(incarnation.name, ("", 0.0))
        if at and at == before and capture.begun_at - told_at < QUIET:
            del fields["stack"]
        else:
            self._told[incarnation.name] = at, capture.begun_at
        log.error("%s%s", message, at, extra=fields)
        self._journal.add("stuck", message + at, worker=incarnation.name, agent="" if call is None else call.agent)

    # Before a worker is killed

    def stalled(self, incarnation: Incarnation) -> None:
        """A call on this worker is late: begin to find out what it is at."""
        capture = self._captures.get(incarnation.identity)
        if capture is None or capture.task is None or capture.task.done():
            self._begin(incarnation, time.monotonic())

    def overdue(self, incarnation: Incarnation, ticket: Ticket, kill: Callable[[str, dict[str, str]], None]) -> None:
        """``kill`` the worker for this call, with the reason and what a line of the log says beside it."""
        self._tasks.start(self._judge(incarnation, ticket, kill))

    async def _judge(
        self, incarnation: Incarnation, ticket: Ticket, kill: Callable[[str, dict[str, str]], None]
    ) -> None:
        capture = await self._captured(incarnation, ticket.deadline, KILL_PATIENCE)
        if incarnation.phase not in WATCHED or incarnation.worker is None:
            return
        if ticket.call_id not in incarnation.worker.calls:
            what = "%s: the call ended %.1f s after its deadline, as its worker was about to be killed"
            late = time.monotonic() - ticket.deadline
            log.warning(what, incarnation.title, late, extra={"worker": incarnation.name, "agent": ticket.agent.name})
            return
        call = next(each for each in _calls(incarnation) if each.call == ticket.call_id)
        why = f"a call of {call.agent!r} did not yield after its deadline{_at(capture, incarnation.pid, call.agent)}"
        kill(why, _log_fields(incarnation, call, capture))

    # Captures

    def _begin(self, incarnation: Incarnation, now: float) -> StackCapture:
        capture = self._captures[incarnation.identity] = StackCapture(now)
        if isinstance(incarnation.handle, Inspectable):
            capture.task = self._tasks.start(capture.take(incarnation.handle, self._turn))
        else:
            capture.failure = "its process cannot be inspected"
        return capture

    async def _captured(
        self, incarnation: Incarnation, since: float, patience: float = CAPTURE_TIMEOUT + 0.5
    ) -> StackCapture:
        """A capture of this worker that was begun at ``since`` or later; it may have come to nothing."""
        capture = self._captures.get(incarnation.identity)
        if capture is None or capture.begun_at < since:
            capture = self._begin(incarnation, time.monotonic())
        if capture.task is None:
            return capture
        await asyncio.wait({capture.task}, timeout=patience)
        if not capture.task.done():
            # Not ended here: that would have to be waited for.
            capture.task.cancel()
            capture.failure = "py-spy did not answer in time"
        return capture


def _calls(incarnation: Incarnation) -> list[CallView]:
    return calls_of(incarnation.worker, incarnation.handle.vitals())


def _blamed(incarnation: Incarnation, capture: StackCapture) -> tuple[CallView | None, str]:
    """The call in which a loop stands still, if that is known, and what is known of it for the log.

    It is the one whose coroutine the loop runs, or one whose thread keeps the interpreter to itself. Tasks that agents
    have made belong to no call that anybody outside could tell; then the oldest is mentioned, and not accused.
    """
    vitals = incarnation.handle.vitals()
    calls = calls_of(incarnation.worker, vitals)
    stepped = vitals.stepped if calls and vitals is not None else 0
    keeper = next((thread.thread_name or "" for thread in capture.threads if thread.owns_gil), "")
    theirs = [] if stepped else [each for each in calls if keeper.endswith(f" {each.agent}")]
    named = suspect(stepped, [(each.call, each.state != "waiting", -each.since) for each in theirs or calls])
    call = next((each for each in calls if each.call == named), None)
    if call is None:
        return None, ", and it has no call"
    about = f"a call of {call.agent!r} that began {call.since:.1f} s ago"
    if named == stepped:
        return call, f", in {about}"
    if theirs:
        return call, f": the interpreter lock is held by the thread of {about}"
    return None, f", not in the coroutine of a call; its oldest is {about} (request {call.request_id})"


def _at(capture: StackCapture, pid: int, agent: str) -> str:
    """The innermost frame of the thread that works for an agent, as the end of a sentence."""
    if not capture.threads:
        return f" (its stack could not be captured: {capture.failure})" if capture.failure else ""
    mine = [each for each in capture.threads if (each.thread_name or "").endswith(f" {agent}")]
    main = [each for each in capture.threads if each.os_thread_id == pid and each.frames[:1]]
    for thread in [*(each for each in main if each.frames[0].name != LOOP and not mine), *mine]:
        if thread.frames:
            return f", at {thread.frames[0]}"
    return ""


def _log_fields(incarnation: Incarnation, call: CallView | None, capture: StackCapture) -> dict[str, str]:
    fields = {"worker": incarnation.name, "stack": capture.text}
    return fields if call is None else {**fields, "agent": call.agent, "request_id": call.request_id}
