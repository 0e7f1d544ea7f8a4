"""A seat: what people call a worker. It lives as long as the configuration has it, with one process after another.

It applies the table of seats (``core.lifecycle``) and the restart policy (``core.restart``), and owns at most two
processes: the current one, and a replacement that is started beside it and takes the seat when it is ready.
Predecessors that drain are nobody's: they end by themselves. It tells its ``SeatOwner`` when its state has changed, and
has its processes launched by it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final, Protocol, assert_never

from ..config.settings import Config, Supervision
from ..core import restart
from ..core.lifecycle import SEATS, SeatCommand, SeatEvent, SeatState
from .backend import SpawnError
from .incarnation import Incarnation
from .journal import Journal

log = logging.getLogger("penstock.fleet")

SPAWN_RETRY: Final = 1.0
"""Seconds until the next try where the host had no descriptor, memory or process for a worker. That is no failure of
the worker, so it is never given up for it.
"""

ACTIVE: Final = (SeatState.STARTING, SeatState.RUNNING, SeatState.BACKOFF)
"""States of seats that run or will run again by themselves."""

NEWER: Final = "a reload brought a newer one"


class SeatOwner(Protocol):
    """Whose seat it is."""

    @property
    def stopping(self) -> bool:
        """Nothing is started any more."""

    @property
    def supervision(self) -> Supervision:
        """The settings that are in force."""

    def launch(self, seat: Seat, cause: str = "") -> Incarnation:
        """Start a process for it, as the configuration now has it (``SpawnError``). ``cause``: why it is replaced."""

    def changed_state(self, seat: Seat) -> None:
        """Its state has changed, and what the table commands is done."""


class Seat:
    """A seat with what sits in it."""

    awaiting = "waiting for "

    def __init__(
        self,
        pool: str,
        index: int,
        *,
        loop: asyncio.AbstractEventLoop,
        history: restart.History,
        journal: Journal,
        owner: SeatOwner,
    ) -> None:
        self.pool = pool
        self.index = index
        self.name = f"{pool}:{index}"
        self._loop = loop
        self._history = history
        self._journal = journal
        self._owner = owner
        self._state = SeatState.STOPPED
        self.since = time.monotonic()
        """When it came into its state, or to its current process by a replacement (monotonic seconds)."""
        self.current: Incarnation | None = None
        self.replacement: Incarnation | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._again = False
        self._short = False
        self.restarts = 0
        self._answered = 0
        self.reason = ""
        """Why its last process ended, or could not start; empty if nothing went wrong."""
        self.removed = False
        """The configuration has it no more."""
        self.started = 0.0
        """Unix seconds of its current or last process's start; 0 if there was none."""
        self.ended_at = 0.0
        """Unix seconds of its last process's end; 0 if none has ended."""
        self.status: int | None = 0
        """Exit status of its last process that ended."""

    @property
    def state(self) -> SeatState:
        """Only the table changes it."""
        return self._state

    @property
    def answered(self) -> int:
        """Calls that its processes have answered, from the first on."""
        worker = None if self.current is None else self.current.worker
        return self._answered + (0 if worker is None else worker.answered)

    def changed(self) -> asyncio.Future[None]:
        """Done with its next change of state, or of its process."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(future)
        return future

    # What its owner has it do

    def start(self) -> None:
        """Start it if it does not run; begins its count of failures anew."""
        self._history.reset()
        self._on(SeatEvent.START)

    def start_when_stopped(self) -> None:
        """Start it as soon as its stop has come to its end."""
        self._again = True

    def restart(self) -> None:
        """Replace its process gracefully, or start it."""
        if self._state is SeatState.RUNNING:
            self._history.reset()
            self.replace("requested")
        else:
            self.start()

    def stop(self) -> None:
        """Drain and stop it; it stays stopped until it is started."""
        self._again = False
        self.drop_replacement("the worker was stopped")
        self._on(SeatEvent.STOP)

    def remove(self) -> None:
        """Stop it for good: the configuration has it no more."""
        self.removed = True

    def replace(self, cause: str) -> None:
        """Start a successor beside the process that serves; it takes the seat when it is ready."""
        if self.replacement is not None:
            return
        try:
            self.replacement = self._owner.launch(self, cause)
        except SpawnError as error:
            self.reason = f"its replacement could not be started: {error}"
            log.error("%s: %s; the old process serves on", self.name, self.reason, extra={"worker": self.name})

    def drop_replacement(self, why: str) -> None:
        """Do without the replacement that is on its way."""
        dropped, self.replacement = self.replacement, None
        if dropped is not None:
            dropped.retire(why)

    # The table

    def _on(self, event: SeatEvent, pause: float = 0.0) -> None:
        """Apply the table, and do what it says. ``pause``: seconds, for where the table says to pause."""
        cell = SEATS[self._state][event]
        if cell is None or (self._owner.stopping and event is SeatEvent.START):
            return
        before, (self._state, command) = self._state, cell
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._state is not before:
            self.since = time.monotonic()
            log.debug("%s: %s -> %s", self.name, before.value, self._state.value, extra={"worker": self.name})
        self._obey(command, pause)
        self._owner.changed_state(self)
        self._settle()
        if self._again and self._state is SeatState.STOPPED:
            self._again = False
            if not self.removed:
                self.start()

    def _obey(self, command: SeatCommand, pause: float) -> None:
        match command:
            case SeatCommand.SPAWN:
                self._fill()
            case SeatCommand.PAUSE:
                self._timer = self._loop.call_later(pause, self._on, SeatEvent.DUE)
            case SeatCommand.RETIRE:
                if self.current is not None:
                    self.current.retire()
            case SeatCommand.NOTHING:
                pass
            case _:
                assert_never(command)

    def _fill(self) -> None:
        """Put a process into the seat: the replacement that is on its way, else a fresh one."""
        self.current, self.replacement = self.replacement, None
        try:
            self.current = self.current or self._owner.launch(self)
        except SpawnError as error:
            # It is tried again every second, and said once.
            level = logging.DEBUG if self._short else logging.ERROR
            self.reason, self._short = str(error), True
            log.log(level, "%s could not be started: %s", self.name, error, extra={"worker": self.name})
            self._on(SeatEvent.LATER, SPAWN_RETRY)
        else:
            self.started, self._short = self.current.started, False

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # What its processes tell

    def came_up(self, incarnation: Incarnation) -> None:
        """A process is ready."""
        incarnation.serve()

    def serves(self, incarnation: Incarnation) -> None:
        """A process serves from now on."""
        if incarnation is self.current:
            text = f"{incarnation.title} (pid {incarnation.pid}) serves {len(incarnation.offered)} agents"
            self._journal.add("started", text, worker=self.name)
            self._on(SeatEvent.READY)
        else:
            self._swap(incarnation)

    def _swap(self, new: Incarnation) -> None:
        """The replacement is ready: it takes the seat, its predecessor drains."""
        old, self.current, self.replacement = self.current, new, None
        self.since = time.monotonic()
        self.started = new.started
        self.reason = ""
        self.restarts += 1
        text = f"{new.title} (pid {new.pid}) replaced the one before it"
        self._journal.restarted(self.name, new.cause, text)
        if old is not None:
            old.retire()
        self._settle()

    def asked_to_leave(self, incarnation: Incarnation) -> None:
        """Somebody from outside wants a process that serves to go."""
        if incarnation is self.current:
            title = incarnation.title
            log.info("%s was told to stop from outside, and is replaced", title, extra={"worker": self.name})
            self.replace("terminated")

    def ended(self, incarnation: Incarnation) -> None:
        """A process is gone: see to the next."""
        if incarnation.worker is not None:
            self._answered += incarnation.worker.answered
        if incarnation is self.replacement:
            self.replacement = None
            self.reason = f"its replacement failed: {incarnation.reason}"
            log.error("%s: %s; the old process serves on", self.name, self.reason, extra={"worker": self.name})
            self._settle()
        if incarnation is self.current:
            self._current_ended(incarnation)

    def _current_ended(self, dead: Incarnation) -> None:
        self.current = None
        self.reason = dead.reason
        self.ended_at, self.status = time.time(), dead.status
        if self._state is SeatState.STOPPING:
            self.reason = ""
            self._journal.add("stopped", f"{dead.title} (pid {dead.pid}) was stopped", worker=self.name)
            self._on(SeatEvent.GONE)
            return
        self.restarts += 1
        cause = dead.cause or ("died" if dead.ready_at else "start")
        what = f"ended: {dead.reason}" if dead.reason else "exited unexpectedly"
        text = f"{dead.title} (pid {dead.pid}) {what}"
        self._journal.restarted(self.name, cause, text)
        if self.replacement is not None:
            self._on(SeatEvent.AGAIN)
        elif dead.fatal:
            self._journal.add("fatal", f"{dead.title} cannot serve: {dead.reason}", worker=self.name)
            self._on(SeatEvent.NEVER)
        else:
            self._follow_policy(dead)

    def _follow_policy(self, dead: Incarnation) -> None:
        settings, now = self._owner.supervision, time.monotonic()
        policy = restart.Policy(settings.start_seconds, settings.start_retries)
        verdict = self._history.died(policy, now, now - dead.ready_at if dead.ready_at else -1.0)
        if verdict.give_up:
            failures = self._history.failures
            log.error("%s is given up (FATAL) after %d failed starts", self.name, failures, extra={"worker": self.name})
            text = f"given up after {failures} failed starts: {dead.reason}"
            self._journal.add("fatal", text, worker=self.name)
            self._on(SeatEvent.NEVER)
        elif verdict.pause == 0.0:
            self._on(SeatEvent.AGAIN)
        else:
            self._on(SeatEvent.LATER, verdict.pause)

    # A reload

    def adopt(self, proof: Incarnation, *, new: bool) -> None:
        """Take a process that has proven itself. ``new``: the seat is, so that nobody has stopped it."""
        self.drop_replacement(NEWER)
        proof.hand_over(self, "reload")
        state = self._state
        if state is SeatState.STOPPING or (state is SeatState.STOPPED and not new):
            proof.retire("the worker is stopped")
            return
        if state is SeatState.STARTING:
            before, self.current, self.started = self.current, proof, proof.started
            if before is not None:
                before.retire(NEWER)
            self._history.reset()
        else:
            self.replacement = proof
            if state is not SeatState.RUNNING:
                self.start()
        proof.serve()

    def start_over(self) -> None:
        """Drop the process that is starting, and start another."""
        before, self.current = self.current, None
        if before is not None:
            before.retire(NEWER)
        self._fill()

    async def succeed(self, config: Config) -> None:
        """Replace the process by one of this configuration; done when that has ended well or badly."""
        if self.replacement is not None and self.replacement.config is not config:
            self.drop_replacement(NEWER)
        self.replace("reload")
        replacement = self.replacement
        while replacement is not None and self.replacement is replacement and self._state is SeatState.RUNNING:
            await self.changed()
