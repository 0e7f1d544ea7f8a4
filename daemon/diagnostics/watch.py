"""Looks at the workers that serve: whether their loops turn, and what they are at when a call does not end.

One timer looks at all of them; ``core.health`` judges. A loop that stands still is named in the log together with its
call and its stack, and that is all: an agent that blocks its loop is a fault that people want to see, and one call late
by two seconds is no reason to lose the others. A worker is killed only for a call that is still there when its deadline
and ``agents.hard_timeout_grace`` are over. Its stack is captured before, from half the grace on, so that in the end
nothing is waited for; a capture that fails or hangs delays a kill by ``KILL_PATIENCE`` at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

import msgspec

from penstock.ipc.scoreboard import Scoreboard

from ..core.dispatch import Worker
from ..core.health import INTERVAL, Change, Pulse, suspect
from ..core.lifecycle import Phase
from ..core.requests import State
from ..engine.engine import Ticket
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


class Subject(Protocol):
    """A process of the fleet, as far as it is watched."""

    board: Scoreboard
    worker: Worker | None
    phase: Phase
    pulse: Pulse | None
    capture: Capture | None

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def pid(self) -> int: ...


class CallView(msgspec.Struct, frozen=True):
    """A call that a worker has, as people see it."""

    call: int
    agent: str
    request_id: str
    kind: str
    """``sync`` (on a thread) or ``async`` (on the loop)."""
    state: str
    """``waiting`` for a thread or a connection, ``running``, or ``awaiting`` (async, and on no stack)."""
    cancelled: bool
    """Its client has an answer or is gone, and it was told to end."""
    age: float
    """Seconds since it was sent to the worker."""
    since: float
    """Seconds since its function was entered, or since it waits for that."""
    remaining: float
    """Seconds until its deadline; negative when that is over."""


class Capture:
    """A look at a worker's stacks, on its way or done."""

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

    async def take(self, pid: int, turn: asyncio.Semaphore) -> None:
        """Get the stacks, when it is our turn."""
        try:
            async with turn:
                self.threads = await pyspy.dump(pid, CAPTURE_TIMEOUT)
        except pyspy.SpyError as error:
            self.failure = str(error)


class Watch:
    """Watches the processes that ``alive`` gives."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        alive: Callable[[], Iterable[Subject]],
        tell: Callable[[str, str, str], None],
    ) -> None:
        """``tell`` gets the text, the worker and the agent (perhaps empty) of each standstill, beside the log."""
        self._loop = loop
        self._alive = alive
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(CAPTURES)
        self._told: dict[str, tuple[str, float]] = {}
        """Where each worker stood still when its stack was last put into the log, and when that was."""

    def start(self) -> None:
        """Begin to look."""
        self._timer = self._loop.call_later(INTERVAL, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(INTERVAL, self._look)
        now = time.monotonic()
        for one in list(self._alive()):
            if one.phase not in WATCHED or one.pulse is None:
                continue
            change = one.pulse.look(one.board.turned_at, now)
            if change is Change.STUCK:
                self._spawn(self._report(one))
            elif change is Change.TURNS:
                what = "%s: its loop turns again, after %.1f s"
                log.warning(what, one.title, one.pulse.longest, extra={"worker": one.name})

    async def _report(self, one: Subject) -> None:
        """Say which loop stands still, in which call, and where."""
        capture = await self._captured(one, time.monotonic())
        if one.phase not in WATCHED or one.pulse is None:
            return  # it was killed or has ended meanwhile, and that is told
        call, what = _blamed(one, capture)
        message = f"{one.title} (pid {one.pid}) is stuck: its loop has not turned for {one.pulse.standstill:.1f} s"
        if pyspy.is_stopped(one.pid):
            message += f"; the process was stopped by a signal, and `kill -CONT {one.pid}` lets it go on"
        else:
            message += what
        at = _at(capture, one.pid, "" if call is None else call.agent)
        marks = _marks(one, call, capture)
        before, told_at = self._told.get(one.name, ("", 0.0))
        if at and at == before and capture.begun_at - told_at < QUIET:
            del marks["stack"]
        else:
            self._told[one.name] = at, capture.begun_at
        log.error("%s%s", message, at, extra=marks)
        self._tell(message + at, one.name, "" if call is None else call.agent)

    # Before a worker is killed

    def stalled(self, one: Subject) -> None:
        """A call on this worker is late: begin to find out what it is at."""
        if one.capture is None or one.capture.task is None or one.capture.task.done():
            self._begin(one, time.monotonic())

    def overdue(self, one: Subject, ticket: Ticket, kill: Callable[[str, dict[str, str]], None]) -> None:
        """``kill`` the worker for this call, with the reason and what a line of the log says beside it."""
        self._spawn(self._judge(one, ticket, kill))

    async def _judge(self, one: Subject, ticket: Ticket, kill: Callable[[str, dict[str, str]], None]) -> None:
        capture = await self._captured(one, ticket.deadline, KILL_PATIENCE)
        if one.phase not in WATCHED or one.worker is None:
            return
        if ticket.call not in one.worker.calls:
            what = "%s: the call ended %.1f s after its deadline, as its worker was about to be killed"
            late = time.monotonic() - ticket.deadline
            log.warning(what, one.title, late, extra={"worker": one.name, "agent": ticket.agent.name})
            return
        call = next(each for each in calls_of(one) if each.call == ticket.call)
        why = f"a call of {call.agent!r} did not yield after its deadline{_at(capture, one.pid, call.agent)}"
        kill(why, _marks(one, call, capture))

    # Captures

    def _begin(self, one: Subject, now: float) -> Capture:
        one.capture = capture = Capture(now)
        capture.task = self._spawn(capture.take(one.pid, self._turn))
        return capture

    async def _captured(self, one: Subject, since: float, patience: float = CAPTURE_TIMEOUT + 0.5) -> Capture:
        """A capture of this worker that was begun at ``since`` or later; it may have come to nothing."""
        capture = one.capture
        if capture is None or capture.begun_at < since:
            capture = self._begin(one, time.monotonic())
        assert capture.task is not None
        await asyncio.wait({capture.task}, timeout=patience)
        if not capture.task.done():
            # Not ended here: that would have to be waited for.
            capture.task.cancel()
            capture.failure = "py-spy gave no answer in time"
        return capture

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a look at a worker did not end as it should", exc_info=error)


def calls_of(one: Subject) -> list[CallView]:
    """The calls that a worker has by the supervisor's books and its scoreboard, the oldest first."""
    if one.worker is None or one.board.fd < 0:
        return []
    now = time.monotonic()
    slots = {slot.call: slot for slot in one.board.busy()}
    stepped = one.board.stepped
    found: list[CallView] = []
    for call, request in one.worker.calls.items():
        assert isinstance(request, Ticket)
        slot = slots.get(call)
        begun = slot is not None and slot.begun
        awaits = begun and not request.agent.sync and call != stepped
        found.append(
            CallView(
                call,
                request.agent.name,
                request.request_id,
                "sync" if request.agent.sync else "async",
                "awaiting" if awaits else "running" if begun else "waiting",
                request.state is State.ENDED,
                now - request.dispatched_at,
                now - (request.dispatched_at if slot is None else slot.since),
                request.deadline - now,
            )
        )
    return found


def _blamed(one: Subject, capture: Capture) -> tuple[CallView | None, str]:
    """The call in which a loop stands still, if that is known, and what is known of it for the log.

    It is the one whose coroutine the loop runs, or one whose thread keeps the interpreter to itself. Tasks that agents
    have made belong to no call that anybody outside could tell; then the oldest is mentioned, and not accused.
    """
    calls = calls_of(one)
    stepped = one.board.stepped if calls else 0
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
        return call, f", since the interpreter is kept by the thread of {about}"
    return None, f", in no call's own coroutine; its oldest is {about} (request {call.request_id})"


def _at(capture: Capture, pid: int, agent: str) -> str:
    """The innermost frame of the thread that works for an agent, as the end of a sentence."""
    if not capture.threads:
        return f" (its stack could not be captured: {capture.failure})" if capture.failure else ""
    mine = [each for each in capture.threads if (each.thread_name or "").endswith(f" {agent}")]
    main = [each for each in capture.threads if each.os_thread_id == pid and each.frames[:1]]
    for thread in [*(each for each in main if each.frames[0].name != LOOP and not mine), *mine]:
        if thread.frames:
            return f", at {thread.frames[0]}"
    return ""


def _marks(one: Subject, call: CallView | None, capture: Capture) -> dict[str, str]:
    marks = {"worker": one.name, "stack": capture.text}
    return marks if call is None else {**marks, "agent": call.agent, "request_id": call.request_id}
