"""One process in a seat: its phases, from its launch until it is reaped.

It applies the table of phases (``core.lifecycle``): what its backend tells becomes events, and the table's commands
become calls of its handle and of the engine. It is the ``WorkerEvents`` of its handle, and tells its ``Owner`` (the
seat that it is in, or the proof of a reload) and its ``Roster`` (all seats) what has become of it. It knows neither.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from penstock.ipc.messages import AgentInfo, Answer, BrokenModule, DatabaseAccess, Failed, Items, Ready, Statistics

from ..config.settings import Config, Supervision
from ..core.health import Pulse
from ..core.lifecycle import PHASES, Phase, PhaseCommand, PhaseEvent
from ..core.model import Block, Worker
from ..engine.engine import Engine
from ..engine.tickets import Ticket
from ..host.exits import describe
from .backend import Backend, Identity, Template, WorkerHandle
from .grants import Grants
from .journal import Journal

log = logging.getLogger("penstock.fleet")

LEAVE_TIMEOUT: Final = 10.0
"""Seconds that a drained worker may take for its stop hooks and its exit, out of what is left of ``stop_timeout``."""

LEAST_LEAVE_TIMEOUT: Final = 1.0
"""Seconds that it has in any case."""

PATIENCE: Final = 10.0
"""Seconds of a start, or a quarter of ``start_timeout``, after which it is said what it waits for; then after twice as
long, and so on.
"""


class Owner(Protocol):
    """Whose process it is."""

    awaiting: str
    """How the log calls waiting for its start."""

    def came_up(self, incarnation: Incarnation) -> None:
        """It is ready, and serves when it is told to (``serve``)."""

    def serves(self, incarnation: Incarnation) -> None:
        """It gets calls from now on."""

    def asked_to_leave(self, incarnation: Incarnation) -> None:
        """Somebody from outside wants it to go, while it serves."""

    def ended(self, incarnation: Incarnation) -> None:
        """Its process is gone, and its calls are settled."""


class Roster(Protocol):
    """Who knows all incarnations."""

    @property
    def supervision(self) -> Supervision:
        """The settings that are in force now, whatever it was started with."""

    def serves(self, incarnation: Incarnation) -> None:
        """It gets calls from now on. Told before its owner."""

    def cannot_serve(self, reason: str, permanent: bool) -> None:
        """One has failed. ``permanent``: for a reason in the configuration, which another try cannot mend."""

    def statistics(self, statistics: Statistics) -> None:
        """The statistics of its database pools."""

    def gone(self, incarnation: Incarnation) -> None:
        """Nothing is left of it. Told after its owner."""


class Watcher(Protocol):
    """The watchdog of processes that hang."""

    def start(self, alive: Callable[[], Iterable[Incarnation]]) -> None:
        """Look at these from now on."""

    def stalled(self, incarnation: Incarnation) -> None:
        """A call is late, and the process may have to be killed for it soon."""

    def overdue(self, incarnation: Incarnation, ticket: Ticket, kill: Callable[[str, dict[str, str]], None]) -> None:
        """``kill`` it for this call, with the reason and the fields of a log line, unless that has ended meanwhile."""

    def close(self) -> None:
        """Look no more."""


class SessionEnder(Protocol):
    """Who ends database sessions that dead workers have left behind."""

    def end(self, worker: str, application: str, backends: list[int]) -> asyncio.Future[None]:
        """Done, well or badly, once these backends of this ``application_name`` are gone."""


@dataclass(frozen=True, slots=True)
class Services:
    """What all incarnations and seats work with."""

    loop: asyncio.AbstractEventLoop
    engine: Engine
    backend: Backend
    grants: Grants
    journal: Journal
    watcher: Watcher
    sessions: SessionEnder


class Incarnation:
    """One process in a seat."""

    handle: WorkerHandle

    def __init__(
        self, services: Services, roster: Roster, owner: Owner, identity: Identity, config: Config, cause: str
    ) -> None:
        """``launch`` comes next. ``cause``: why it replaces another, a reason of ``penstock_worker_restarts_total``."""
        self._services = services
        self._roster = roster
        self._owner = owner
        self.identity = identity
        self.name = identity.name
        self.title = identity.title
        self.config = config
        self.phase = Phase.STARTING
        self.started = 0.0
        """Unix seconds."""
        self.status: int | None = None
        """Exit status, minus the number of a signal; None while it lives, and if it cannot be known."""
        self.worker: Worker | None = None
        self.step = "the import of its modules"
        """What it does before it is ready."""
        self.code = ""
        """The fingerprint of what it runs; empty until it is ready."""
        self.offered: list[AgentInfo] = []
        self.broken: list[BrokenModule] = []
        self.ready_at = 0.0
        self.pulse: Pulse | None = None
        """Its loop, once it serves."""
        self.cause = cause
        """Why it has to be replaced, or whom it replaces why."""
        self.reason = ""
        self.fatal = False
        """It failed for a reason that another try cannot mend."""
        self._database = False
        self._blame = True
        self._timer: asyncio.TimerHandle | None = None
        self._stop_by = 0.0

    @property
    def pid(self) -> int:
        return self.handle.pid

    def launch(self, template: Template, database: DatabaseAccess | None) -> None:
        """Ask for the process (``SpawnError``). ``database``: how it reaches one; None: it is off."""
        self._database = database is not None
        self.started = time.time()
        self.handle = self._services.backend.launch(template, self.identity, self.config, database, self)
        patience = min(PATIENCE, self.config.supervision.start_timeout / 4)
        self._timer = self._services.loop.call_later(patience, self._still_starting, patience)

    # What its owner has it do

    def serve(self) -> None:
        """Get calls from now on, if it is ready and has not ended since."""
        self._on(PhaseEvent.READY)

    def retire(self, reason: str = "") -> None:
        """Drain and end. ``reason``: why, if it has no other yet."""
        self.reason = self.reason or reason
        self._on(PhaseEvent.RETIRE)

    def hand_over(self, owner: Owner, cause: str) -> None:
        """It has another owner from now on, and replaces its predecessor for this cause."""
        self._owner, self.cause = owner, cause

    def kill(self) -> None:
        """End it at once, since the time for everything is over. Its phase says so when it has ended."""
        self._blame = False
        self._fence()
        self.handle.kill()

    def stuck(self, why: str, cause: str, fields: dict[str, str] | None = None) -> None:
        """Kill it, since it does not yield. ``fields`` of the line in the log."""
        if PHASES[self.phase][PhaseEvent.STUCK] is None:
            return
        log.error("%s is killed: %s", self.title, why, extra=fields or {"worker": self.name})
        self.reason, self.cause = why, cause
        self._on(PhaseEvent.STUCK)

    # The table

    def _on(self, event: PhaseEvent) -> None:
        cell = PHASES[self.phase][event]
        if cell is None:
            return
        self.phase, command = cell
        self._cancel_timer()
        match command:
            case PhaseCommand.JOIN:
                self._join()
            case PhaseCommand.DRAIN:
                self._drain()
            case PhaseCommand.STOP:
                self._stop()
            case PhaseCommand.CUT_OFF:
                self._cut_off()
            case PhaseCommand.KILL:
                self.kill()
            case PhaseCommand.REAP:
                self._fence()  # ``finished`` says when to reap it
            case _:
                assert_never(command)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _join(self) -> None:
        self.ready_at = time.monotonic()
        self.pulse = Pulse(self.ready_at)
        generation, settings = self.identity.generation, self.config.pools[self.identity.pool]
        slots, threads = settings.concurrency, settings.threads
        self.worker = worker = Worker(self.name, generation, self.identity.pool, slots, threads, pid=self.pid)
        for broken in self.broken:
            what = "%s: the module %s is not served: %s"
            log.error(what, self.title, broken.module, broken.error, extra={"worker": self.name})
        Engagement(self, worker, self._services, self._database).begin()
        count = len(self.offered)
        log.info("%s (pid %d) is ready with %d agents", self.title, self.pid, count, extra={"worker": self.name})
        self._roster.serves(self)
        self._owner.serves(self)
        self.cause = ""

    def _drain(self) -> None:
        assert self.worker is not None
        self._blame = False
        seconds = self._roster.supervision.stop_timeout
        self._stop_by = self._services.loop.time() + seconds
        self._timer = self._services.loop.call_later(seconds, self._on, PhaseEvent.TIMEOUT)
        if self._services.engine.drain(self.worker):
            self._on(PhaseEvent.IDLE)

    def _stop(self) -> None:
        self._blame = False
        self.handle.stop()
        seconds = min(LEAVE_TIMEOUT, max(LEAST_LEAVE_TIMEOUT, self._stop_by - self._services.loop.time()))
        self._timer = self._services.loop.call_later(seconds, self._overstayed, seconds)

    def _cut_off(self) -> None:
        assert self.worker is not None
        log.warning(
            "%s is killed: %d of its calls had not ended when its time to drain was over",
            self.title,
            len(self.worker.calls),
            extra={"worker": self.name},
        )
        self._services.engine.cut_off_worker(self.worker, "its worker was stopped before the request was done")
        self.kill()

    def _fence(self) -> None:
        """Dispatch nothing more to it; its calls are settled when it is reaped."""
        if self.worker is not None:
            self.worker.block(Block.WITHDRAWN)

    # Timers

    def _still_starting(self, waited: float) -> None:
        """It has taken so many seconds and is not ready."""
        self._timer = None
        limit = self.config.supervision.start_timeout
        if waited >= limit:
            late = f"not ready after {limit:g} s (supervision.start_timeout), while it was at {self.step}"
            self.stuck(late, "start")
            return
        log.warning(
            "%s%s (pid %d), which is not ready after %.3g s: it is at %s; it is killed after %g s",
            self._owner.awaiting,
            self.title,
            self.pid,
            waited,
            self.step,
            limit,
            extra={"worker": self.name},
        )
        longer = min(2 * waited, limit)
        self._timer = self._services.loop.call_later(longer - waited, self._still_starting, longer)

    def _overstayed(self, seconds: float) -> None:
        """It was told to end, and did not."""
        self.reason = f"it had not ended {seconds:.1f} s after it was told to (stop hooks, threads, exit handlers)"
        log.warning("%s is killed: %s", self.title, self.reason, extra={"worker": self.name})
        self._on(PhaseEvent.TIMEOUT)

    # What its backend tells

    def starting(self, step: str) -> None:
        """What it is about to do before it is ready."""
        self.step = step

    def ready(self, ready: Ready) -> None:
        """It takes calls, and they can be sent."""
        if self.phase is Phase.STARTING:
            self._cancel_timer()
        self.offered, self.broken, self.code = ready.agents, ready.broken, ready.code
        self._owner.came_up(self)

    def unusable(self, reason: str) -> None:
        """It came up, and calls can never be sent to it."""
        self.stuck(reason, "start")

    def drained(self) -> None:
        """Its last call has ended."""
        self._on(PhaseEvent.IDLE)

    def failed(self, failed: Failed) -> None:
        """It cannot serve and is about to exit."""
        self.reason, self.fatal = failed.reason, failed.configuration
        log.error("%s cannot serve: %s", self.title, failed.reason, extra={"worker": self.name})
        self._roster.cannot_serve(failed.reason, failed.configuration)

    def answered(self, answer: Answer, body: bytes) -> None:
        """It has ended a call."""
        if self.worker is not None:
            self._services.engine.answered(self.worker, answer, body)

    def items(self, items: Items, body: bytes) -> None:
        """Part of a call's streamed result."""
        if self.worker is not None:
            self._services.engine.items(self.worker, items, body)

    def refused(self, call_ids: list[int]) -> None:
        """These calls were not taken: its peer is gone or about to be."""
        if self.worker is not None:
            self._services.engine.refused_by(self.worker, call_ids)

    def released(self, kind: str, connections: int) -> None:
        """Its pool of this kind holds no more than so many connections from now on."""
        self._services.grants.released(self.identity, kind, connections)

    def statistics(self, statistics: Statistics) -> None:
        """The statistics of its database pools."""
        self._roster.statistics(statistics)

    def leaving(self) -> None:
        """It was asked from outside to go."""
        if self.phase is Phase.SERVING and not self._services.engine.closed:
            self._owner.asked_to_leave(self)

    def exited(self, status: int | None) -> None:
        """Its process has ended."""
        self.status = status
        # One that we stopped needs no reason; one that died with its forkserver has no exit status.
        if not self.reason and (self._blame or status not in (0, -signal.SIGKILL, None)):
            self.reason = describe(status)
        self._on(PhaseEvent.EXIT)

    def finished(self) -> None:
        """Its process has ended, and everything that it had said was told: settle its calls, and forget it."""
        sessions = self.handle.sessions()
        if self.worker is not None:
            self._services.engine.leave(self.worker, self.handle.begun(self.worker.calls), self._blame)
        # Connections in use are free only once they are closed, however dead their worker is.
        ended = self._services.sessions.end(self.name, f"penstock {self.title}", sessions) if sessions else None
        self._services.grants.leave(self.identity, ended)
        self.handle.close()
        log.log(
            logging.WARNING if self._blame else logging.INFO,
            "%s (pid %d) ended%s",
            self.title,
            self.pid,
            f": {self.reason}" if self.reason else "",
            extra={"worker": self.name},
        )
        self._owner.ended(self)
        self._roster.gone(self)


class Engagement:
    """What a worker does for the engine and what connections it has for that, from the moment that it serves.

    It is the engine's ``Listener`` and the grants' ``Holder`` for its worker.
    """

    def __init__(self, incarnation: Incarnation, worker: Worker, services: Services, database: bool) -> None:
        """``database``: there is one."""
        self.identity = incarnation.identity
        self._incarnation = incarnation
        self._worker = worker
        self._services = services
        self._database = database

    def begin(self) -> None:
        """Have a share of the connections, and get calls."""
        incarnation, grants = self._incarnation, self._services.grants
        kinds = {info.database for info in incarnation.offered if info.database} if self._database else set()
        changes = grants.join(self, kinds)
        self._worker.connections.update({kind: grants.share(self.identity, kind) for kind in kinds})
        self._offer()
        self._services.engine.join(self._worker, incarnation.handle, incarnation.offered, self)
        grants.tell(changes)

    def _offer(self) -> None:
        offered = self._incarnation.offered
        self._worker.offer(self._services.grants.available(self.identity, offered, self._database))

    def allotted(self, kind: str, share: int) -> None:
        """So many of its calls may hold a connection from now on."""
        self._worker.allot(kind, share)
        self._offer()
        self.eased()
        self._services.engine.pump(self.identity.pool)

    def drained(self) -> None:
        """Its last call has ended."""
        self._incarnation.drained()

    def eased(self) -> None:
        """It may have few enough calls by now to be told the share of connections that it is owed."""
        for kind, share in self._worker.eased():
            self._incarnation.handle.grant(kind, share)

    def stalled(self, ticket: Ticket) -> None:
        """A call did not yield within half the grace."""
        self._services.watcher.stalled(self._incarnation)

    def overdue(self, ticket: Ticket) -> None:
        """A call did not yield within the grace."""
        incarnation = self._incarnation

        def kill(why: str, fields: dict[str, str]) -> None:
            text = f"{incarnation.title} is killed: {why}"
            self._services.journal.add("timeout", text, worker=incarnation.name, agent=ticket.agent.name)
            incarnation.stuck(why, "deadline", fields)

        self._services.watcher.overdue(incarnation, ticket, kill)
