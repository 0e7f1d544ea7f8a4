"""The workers: started, replaced, drained, stopped, and buried when they die.

This is the shell around ``core.lifecycle``, ``core.restart`` and ``core.connections``: it turns what processes and
messages tell into events, and the tables' commands into spawning, draining and killing. Everything is driven by
callbacks of the loop; nothing here sleeps or polls.

Replacing a worker never leaves a hole: the new process is started beside the old, joins when it is ready, and only
then the old one drains. A reload does that seat by seat, from a fresh forkserver, and not before one worker of every
pool has proven that the new code and configuration work.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, assert_never

import zmq

from penstock.ipc.frames import encode
from penstock.ipc.messages import (
    PROTOCOL,
    AgentInfo,
    BrokenModule,
    DatabaseAccess,
    Failed,
    FromWorker,
    Grant,
    Launch,
    Leaving,
    Ready,
    Released,
    Starting,
    Statistics,
    Stop,
)
from penstock.ipc.scoreboard import Scoreboard

from ..backends.local.channels import Channels, Link
from ..backends.local.forkserver import Server, describe
from ..backends.local.output import Captures
from ..backends.local.process import Process, Spawner
from ..backends.local.sessions import Sessions
from ..config.settings import Config
from ..core import connections, restart
from ..core.health import Pulse
from ..core.lifecycle import PHASES, SEATS, Phase, PhaseCommand, PhaseEvent, Seat, SeatCommand, SeatEvent
from ..core.model import Block, Worker
from ..diagnostics.watch import Capture, Watch
from ..engine.engine import Engine
from ..engine.tickets import Ticket
from .journal import Journal

log = logging.getLogger("penstock.fleet")

LAST_WORDS: Final = 0.05
"""Seconds between a process's end and its burial: what it had said before is read first."""

LEAVE_TIMEOUT: Final = 10.0
"""Seconds that a drained worker may take for its stop hooks and its exit, out of what is left of ``stop_timeout``."""

LEAST_LEAVE_TIMEOUT: Final = 1.0
"""Seconds that it has in any case."""

PATIENCE: Final = 10.0
"""Seconds of a start, or a quarter of ``start_timeout``, after which it is said what it waits for; then after twice as
long, and so on.
"""

SPAWN_RETRY: Final = 1.0
"""Seconds until the next try where the host had no descriptor, memory or process for a worker. That is no failure of
the worker, so it is never given up for it.
"""

ACTIVE: Final = (Seat.STARTING, Seat.RUNNING, Seat.BACKOFF)
"""States of seats that run or will run again by themselves."""

RENEWALS: Final = 3
"""Tries to bring a seat to a new configuration whose worker has proven itself once."""

OWN_CONNECTIONS: Final = 1
"""Of ``database.max_connections``, the supervisor's."""


class ReloadFailedError(Exception):
    """The new code or configuration does not work; the old serves on. The text says why."""


class SpawnError(Exception):
    """No process could be asked for; the host is short of something. The text says of what."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A seat as people see it."""

    name: str
    pool: str
    pid: int
    state: str
    generation: int
    in_flight: int
    slots: int
    load: float
    restarts: int
    answered: int
    since: float
    """Seconds in this state."""
    reason: str
    """Why its last process ended, or could not start; empty if nothing went wrong."""
    health: str
    """Whether its loop turns: healthy, late or stuck; empty while it does not serve."""
    code: str
    """A fingerprint of the code that it runs; empty until it is ready."""


@dataclass(slots=True, eq=False)
class Incarnation:
    """One process in a seat."""

    seat: Place
    generation: int
    config: Config
    link: Link
    board: Scoreboard
    phase: Phase = Phase.STARTING
    process: Process | None = None
    started: float = 0.0
    """Unix seconds."""
    status: int | None = None
    """Exit status, minus the number of a signal; None while it lives, and if it cannot be known."""
    worker: Worker | None = None
    step: str = "the import of its modules"
    """What it does before it is ready."""
    code: str = ""
    """The fingerprint of what it runs; empty until it is ready."""
    broken: list[BrokenModule] = field(default_factory=list)
    offered: list[AgentInfo] = field(default_factory=list)
    ready_at: float = 0.0
    timer: asyncio.TimerHandle | None = None
    stop_by: float = 0.0
    """When its time to drain and to leave is over, by the loop's clock."""
    blame: bool = True
    """If it dies now, it did so by itself."""
    reason: str = ""
    cause: str = ""
    """Why it has to be replaced, or whom it replaces why: a reason of ``penstock_worker_restarts_total``."""
    fatal: bool = False
    """It failed for a reason that another try cannot mend."""
    trial: asyncio.Future[str] | None = None
    """Set for a worker that has to prove new code: it gets no calls, and the result is empty or why it failed."""
    pulse: Pulse | None = None
    """Its loop, once it serves."""
    capture: Capture | None = None
    """The last look at its stacks that was taken because it was stuck."""

    @property
    def name(self) -> str:
        return self.seat.name

    @property
    def title(self) -> str:
        return f"{self.seat.name}/{self.generation}"

    @property
    def pid(self) -> int:
        return 0 if self.process is None else self.process.pid


@dataclass(slots=True, eq=False)
class Place:
    """A seat with what sits in it."""

    name: str
    pool: str
    index: int
    history: restart.History
    state: Seat = Seat.STOPPED
    since: float = 0.0
    current: Incarnation | None = None
    replacement: Incarnation | None = None
    timer: asyncio.TimerHandle | None = None
    restarts: int = 0
    answered: int = 0
    reason: str = ""
    removed: bool = False
    again: bool = False
    """It is to be started when its stop has come to its end."""
    short: bool = False
    """The host was short of something for its process, at the last try."""
    settled: list[asyncio.Future[None]] = field(default_factory=list)
    """Whoever waits for the seat's state to change."""
    started: float = 0.0
    """Unix seconds of its current or last process's start; 0 if there was none."""
    ended: float = 0.0
    """Unix seconds of its last process's end; 0 if none has ended."""
    status: int | None = 0
    """Exit status of its last process that ended."""


class Fleet:
    """All seats of all pools."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        channels: Channels,
        spawner: Spawner,
        captures: Captures,
        *,
        dsn: str | None,
        sessions: Sessions | None,
        rng: random.Random,
        loop: asyncio.AbstractEventLoop,
        journal: Journal | None = None,
    ) -> None:
        self._config = config
        self._engine = engine
        self._channels = channels
        self._spawner = spawner
        self._captures = captures
        self._dsn = dsn
        self._sessions = sessions
        self._rng = rng
        self._loop = loop
        self._journal = journal or Journal()
        self._own: Mapping[str, Config] = {}
        """What the workers are started with of pools that were taken up since everything else was."""
        self._servers: dict[str, Server] = {}
        """The forkservers of such pools, by name, and under no name that of all others."""
        self._seats: dict[str, Place] = {}
        self._alive: dict[tuple[str, int], Incarnation] = {}
        self._generations: dict[str, int] = {}
        """The newest of every name that there ever was: none comes twice, whatever reloads take away and bring back."""
        self._ledger = connections.Ledger(config.database.max_connections - OWN_CONNECTIONS)
        self._reloading = False
        self._rolling: asyncio.Task[None] | None = None
        self._empty: asyncio.Future[None] | None = None
        self.on_configuration_error: Callable[[str], None] = log.error
        self.on_first_ready: Callable[[], object] = bool
        self.on_statistics: Callable[[Statistics], object] = bool
        self._ever_ready = False
        self._watch = Watch(loop, self._alive.values, self._tell_stuck)

    # What the daemon asks for

    def start(self) -> None:
        """Start every worker."""
        self._channels.open(self._engine.answered, self.received)
        self._watch.start()
        self._take_seats()

    @property
    def _stopping(self) -> bool:
        return self._empty is not None

    def _new_server(self, config: Config, *, anew: bool = False) -> Server:
        try:
            return self._spawner.server(config.agents.modules if config.agents.preload else (), anew=anew)
        except OSError as error:
            raise SpawnError(f"no forkserver could be started: {error}") from error

    def _take_seats(self) -> None:
        for pool, settings in self._config.pools.items():
            for index in range(settings.workers):
                name = f"{pool}:{index}"
                if name not in self._seats:
                    self._seats[name] = Place(name, pool, index, restart.History(self._rng), since=time.monotonic())
                    self._seat_event(self._seats[name], SeatEvent.START)

    @property
    def granted(self) -> int:
        """Database connections that workers may open now."""
        return self._ledger.granted

    def workers(self) -> list[WorkerView]:
        """Every seat, in order."""
        return [self._view(seat) for seat in self._in_order()]

    def _view(self, seat: Place) -> WorkerView:
        current = seat.current
        worker = current.worker if current is not None else None
        now = time.monotonic()
        return WorkerView(
            seat.name,
            seat.pool,
            0 if current is None else current.pid,
            seat.state.value,
            0 if current is None else current.generation,
            0 if worker is None else len(worker.calls),
            0 if worker is None else worker.slots,
            0.0 if worker is None else round(worker.expected(now), 6),
            seat.restarts,
            seat.answered + (0 if worker is None else worker.answered),
            round(now - seat.since, 3),
            seat.reason,
            "" if current is None or current.pulse is None else current.pulse.health,
            "" if current is None else current.code,
        )

    def places(self) -> list[Place]:
        """Every seat itself, in order."""
        return self._in_order()

    def seat(self, name: str) -> Place | None:
        """The seat of that name."""
        return self._seats.get(name)

    def restart(self, name: str) -> bool:
        """Replace a worker gracefully. False: there is no such seat."""
        seat = self._seats.get(name)
        if seat is None:
            return False
        seat.history.forgive()
        if seat.state is Seat.RUNNING:
            self._replace(seat, "requested")
        else:
            self._seat_event(seat, SeatEvent.START)
        return True

    def recycle(self, seat: Place, cause: str, why: str) -> None:
        """Replace a worker that is over a limit. ``cause``: of ``max_requests`` and ``max_rss``."""
        log.info("%s is recycled: %s", seat.name, why, extra={"worker": seat.name})
        self._replace(seat, cause)

    def unsettled(self, pool: str) -> bool:
        """Whether a worker of this pool is coming or going, or all are about to."""
        coming = any(each.replacement is not None for each in self._seats.values() if each.pool == pool)
        going = any(one.phase is not Phase.SERVING for one in self._alive.values() if one.seat.pool == pool)
        return coming or going or self._reloading or self._stopping

    def start_worker(self, seat: Place) -> None:
        """Start a seat that does not run; begins its count of failures anew."""
        seat.history.forgive()
        self._seat_event(seat, SeatEvent.START)

    def start_when_stopped(self, seat: Place) -> None:
        """Start a seat as soon as its stop has come to its end."""
        seat.again = True

    def stop_worker(self, seat: Place) -> None:
        """Drain and stop a seat; it stays stopped until it is started."""
        seat.again = False
        others = [each for each in self._seats.values() if each.pool == seat.pool and each is not seat]
        if not any(other.state in ACTIVE for other in others):
            self._engine.close_pool(seat.pool)
        self._drop_replacement(seat, "the worker was stopped")
        self._seat_event(seat, SeatEvent.STOP)

    def close_pool(self, pool: str) -> None:
        """All workers of a pool are about to be stopped: no new request for it, and what waits is done before."""
        self._engine.close_pool(pool)

    def is_stopped(self, pool: str) -> bool:
        """Whether no worker of a pool runs or is about to."""
        return all(each.state in (Seat.STOPPED, Seat.FATAL) for each in self._seats.values() if each.pool == pool)

    @property
    def reloading(self) -> bool:
        """A reload goes on, and pools can be neither added nor removed."""
        return self._reloading

    def add_pool(self, pool: str, config: Config, own: Mapping[str, Config]) -> None:
        """Follow this configuration from now on, and start the workers of a pool that it has more, with the code as it
        is now. ``own``: by pool, what workers are started with where that is not it.
        """
        self._follow(pool, config, own)
        self._take_seats()

    def _follow(self, pool: str, config: Config, own: Mapping[str, Config]) -> None:
        self._config, self._own = config, own
        unused = {pool} if own.keys() < config.pools.keys() else {pool, ""}
        for name in unused & self._servers.keys():
            self._servers.pop(name).close()

    def remove_pool(self, pool: str, config: Config, own: Mapping[str, Config]) -> None:
        """Follow this configuration from now on, and forget the seats of a pool, which must be stopped. ``own``: as
        with ``add_pool``.
        """
        self._follow(pool, config, own)
        for seat in [each for each in self._seats.values() if each.pool == pool]:
            del self._seats[seat.name]
            self._captures.forget(seat.name)

    def signal_worker(self, seat: Place, number: int) -> bool:
        """Send a signal to a seat's process. False: it has none."""
        if seat.current is None or seat.current.process is None:
            return False
        seat.current.process.signal(number)
        return True

    def changed(self, seat: Place) -> asyncio.Future[None]:
        """Done with the seat's next change of state."""
        future: asyncio.Future[None] = self._loop.create_future()
        seat.settled.append(future)
        return future

    # Events of seats

    def _seat_event(self, seat: Place, event: SeatEvent, pause: float = 0.0) -> None:
        """Apply the table, and do what it says. ``pause``: seconds, for where the table says to pause."""
        cell = SEATS[seat.state][event]
        if cell is None or (self._stopping and event is SeatEvent.START):
            return
        before, (seat.state, command) = seat.state, cell
        if seat.timer is not None:
            seat.timer.cancel()
            seat.timer = None
        if seat.state is not before:
            seat.since = time.monotonic()
            log.debug("%s: %s -> %s", seat.name, before.value, seat.state.value, extra={"worker": seat.name})
        self._obey(seat, command, pause)
        self._hope(seat.pool)
        self._forget_if_removed(seat)
        self._settle(seat)
        if seat.again and seat.state is Seat.STOPPED:
            seat.again = False
            self.start_worker(seat)

    def _obey(self, seat: Place, command: SeatCommand, pause: float) -> None:
        match command:
            case SeatCommand.SPAWN:
                self._fill(seat)
            case SeatCommand.PAUSE:
                seat.timer = self._loop.call_later(pause, self._seat_event, seat, SeatEvent.DUE)
            case SeatCommand.RETIRE:
                if seat.current is not None:
                    self._phase_event(seat.current, PhaseEvent.RETIRE)
            case SeatCommand.NOTHING:
                pass
            case _:
                assert_never(command)

    def _fill(self, seat: Place) -> None:
        """Put a process into a seat: the replacement that is on its way, else a fresh one."""
        seat.current, seat.replacement = seat.replacement, None
        try:
            seat.current = seat.current or self._spawn(seat, self._config_of(seat.pool))
        except SpawnError as error:
            # It is tried again every second, and said once.
            level = logging.DEBUG if seat.short else logging.ERROR
            seat.reason, seat.short = str(error), True
            log.log(level, "%s could not be started: %s", seat.name, error, extra={"worker": seat.name})
            self._seat_event(seat, SeatEvent.LATER, SPAWN_RETRY)
        else:
            seat.started, seat.short = seat.current.started, False

    def _settle(self, seat: Place) -> None:
        settled, seat.settled = seat.settled, []
        for future in settled:
            if not future.done():
                future.set_result(None)

    def _forget_if_removed(self, seat: Place) -> None:
        if seat.removed and seat.state in (Seat.STOPPED, Seat.FATAL) and self._seats.get(seat.name) is seat:
            del self._seats[seat.name]
            self._captures.forget(seat.name)
            if seat.pool not in self._config.pools and not any(e.pool == seat.pool for e in self._seats.values()):
                self._engine.forget_pool(seat.pool)
            if not self._stopping:
                # A reload may have brought it back while it was still draining.
                self._take_seats()

    def _hope(self, pool: str) -> None:
        """Tell the engine whether a pool can come back by itself."""
        states = [seat.state for seat in self._seats.values() if seat.pool == pool]
        hopeless = all(state in (Seat.STOPPED, Seat.FATAL, Seat.STOPPING) for state in states)
        draining = any(state is Seat.STOPPING for state in states)
        if not hopeless:
            self._engine.mark_available(pool)
        elif not draining:
            self._engine.mark_unavailable(pool)

    def _config_of(self, pool: str) -> Config:
        """What workers of this pool are started with."""
        return self._own.get(pool, self._config)

    def _live_server(self, pool: str) -> Server:
        name = pool if pool in self._own else ""
        server = self._servers.get(name)
        if server is None or server.lost:
            server = self._servers[name] = self._new_server(self._config_of(pool))
        return server

    # Events of incarnations

    def _incarnate(self, seat: Place, config: Config) -> Incarnation:
        link = self._channels.link()
        try:
            board = Scoreboard.create(seat.name, config.pools[seat.pool].concurrency)
        except OSError:
            link.close()
            raise
        self._generations[seat.name] = generation = self._generations.get(seat.name, 0) + 1
        return Incarnation(seat, generation, config, link, board)

    def _access(self, config: Config) -> DatabaseAccess | None:
        """How workers reach the database; None: it is off."""
        database = config.database
        return DatabaseAccess(self._dsn, database.acquire_timeout, database.prepared_statements) if self._dsn else None

    def _spawn(self, seat: Place, config: Config, server: Server | None = None) -> Incarnation:
        """Ask for a process in this seat, from this forkserver or from the current one (``SpawnError``)."""
        settings = config.pools[seat.pool]
        try:
            server = server or self._live_server(seat.pool)
            new = self._incarnate(seat, config)
        except (OSError, zmq.ZMQError) as error:
            raise SpawnError(f"its channels could not be made: {error}") from error
        link, board = new.link, new.board
        parameters = Launch(
            PROTOCOL,
            seat.name,
            seat.pool,
            seat.index,
            new.generation,
            os.getpid(),
            link.work_address,
            link.control_address,
            self._channels.answer_address,
            list(config.agents.modules),
            {name: list(pool.agents) for name, pool in config.pools.items()},
            settings.concurrency,
            settings.threads,
            self._access(config),
            config.log.level,
            config.log.format,
        )
        self._alive[seat.name, new.generation] = new
        patience = min(PATIENCE, config.supervision.start_timeout / 4)
        new.timer = self._loop.call_later(patience, self._still_starting, new, patience)
        new.started = time.time()
        try:
            new.process = self._spawner.spawn(
                server,
                seat.name,
                encode(parameters),
                board,
                self._captures.open(seat.name),
                lambda status: self._exited(new, status),
            )
        except OSError as error:
            self._unmake(new)
            if isinstance(error, (ConnectionError, FileNotFoundError)):
                server.close()
            raise SpawnError(f"the forkserver took no request: {error}") from error
        return new

    def _still_starting(self, one: Incarnation, waited: float) -> None:
        """It has taken so many seconds and is not ready."""
        one.timer = None
        if one.trial is not None and one.trial.done():
            return  # it is, and waits for the other proofs
        limit = one.config.supervision.start_timeout
        if waited >= limit:
            late = f"not ready after {limit:g} s (supervision.start_timeout), in which it came to {one.step}"
            self._stuck(one, late, "start")
            return
        log.warning(
            "%s%s (pid %d), which is not ready after %.3g s: it is at %s; it is killed after %g s",
            "the reload waits for " if one.trial is not None else "waiting for ",
            one.title,
            one.pid,
            waited,
            one.step,
            limit,
            extra={"worker": one.seat.name},
        )
        longer = min(2 * waited, limit)
        one.timer = self._loop.call_later(longer - waited, self._still_starting, one, longer)

    def _unmake(self, one: Incarnation) -> None:
        """Forget an incarnation that never had a process."""
        del self._alive[one.seat.name, one.generation]
        if one.timer is not None:
            one.timer.cancel()
        one.link.close()
        one.board.close()

    def _phase_event(self, one: Incarnation, event: PhaseEvent) -> None:
        cell = PHASES[one.phase][event]
        if cell is None:
            return
        one.phase, command = cell
        if one.timer is not None:
            one.timer.cancel()
            one.timer = None
        match command:
            case PhaseCommand.JOIN:
                self._join(one)
            case PhaseCommand.DRAIN:
                self._drain(one)
            case PhaseCommand.STOP:
                self._stop(one)
            case PhaseCommand.CUT_OFF:
                self._cut_off(one)
            case PhaseCommand.KILL:
                self._kill(one)
            case PhaseCommand.BURY:
                self._withhold(one)
                self._loop.call_later(LAST_WORDS, self._bury, one)
            case _:
                assert_never(command)

    def _stop(self, one: Incarnation) -> None:
        one.blame = False
        one.link.control(Stop())
        seconds = min(LEAVE_TIMEOUT, max(LEAST_LEAVE_TIMEOUT, one.stop_by - self._loop.time()))
        one.timer = self._loop.call_later(seconds, self._overstayed, one, seconds)

    def _cut_off(self, one: Incarnation) -> None:
        assert one.worker is not None
        log.warning(
            "%s is killed: %d of its calls had not ended when its time to drain was over",
            one.title,
            len(one.worker.calls),
            extra={"worker": one.seat.name},
        )
        self._engine.cut_off_worker(one.worker, "its worker was stopped before the request was done")
        self._kill(one)

    def _withhold(self, one: Incarnation) -> None:
        """No more calls for what is dead, or as good as that; what it has is seen to when it is buried."""
        if one.worker is not None:
            one.worker.block(Block.WITHDRAWN)

    def _kill(self, one: Incarnation) -> None:
        one.blame = False
        self._withhold(one)
        if one.process is not None:
            one.process.kill()

    def _drain(self, one: Incarnation) -> None:
        assert one.worker is not None
        one.blame = False
        seconds = self._config.supervision.stop_timeout
        one.stop_by = self._loop.time() + seconds
        one.timer = self._loop.call_later(seconds, self._phase_event, one, PhaseEvent.TIMEOUT)
        if self._engine.drain(one.worker):
            self._phase_event(one, PhaseEvent.IDLE)

    def _overstayed(self, one: Incarnation, seconds: float) -> None:
        """It was told to end, and did not."""
        one.reason = f"it had not ended {seconds:.1f} s after it was told to (stop hooks, threads, exit handlers)"
        log.warning("%s is killed: %s", one.title, one.reason, extra={"worker": one.seat.name})
        self._phase_event(one, PhaseEvent.TIMEOUT)

    def _stuck(self, one: Incarnation, why: str, cause: str, marks: dict[str, str] | None = None) -> None:
        if PHASES[one.phase][PhaseEvent.STUCK] is None:
            return
        log.error("%s is killed: %s", one.title, why, extra=marks or {"worker": one.seat.name})
        one.reason, one.cause = why, cause
        self._phase_event(one, PhaseEvent.STUCK)

    def _exited(self, one: Incarnation, status: int | None) -> None:
        one.status = status
        # What ends because it was told to has no reason but that, and one whose forkserver ends with it no status.
        if not one.reason and (one.blame or status not in (0, -signal.SIGKILL, None)):
            one.reason = describe(status)
        self._phase_event(one, PhaseEvent.EXIT)

    def _bury(self, one: Incarnation) -> None:
        """The process is gone and all that it said is read."""
        self._channels.catch_up()
        seat = one.seat
        del self._alive[seat.name, one.generation]
        backends = [slot.backend for slot in one.board.busy() if slot.backend]
        if one.worker is not None:
            begun = one.board.begun(one.worker.calls)
            seat.answered += one.worker.answered
            self._engine.leave(one.worker, begun, one.blame)
        if backends and self._sessions is not None:
            # Until they have ended they count, however dead their worker is.
            ended = self._sessions.end(seat.name, application(seat.name, one.generation), backends)
            ended.add_done_callback(lambda _: self._tell(self._ledger.leave(seat.name, one.generation)))
        else:
            self._tell(self._ledger.leave(seat.name, one.generation))
        one.link.close()
        one.board.close()
        log.log(
            logging.WARNING if one.blame else logging.INFO,
            "%s (pid %d) ended%s",
            one.title,
            one.pid,
            f": {one.reason}" if one.reason else "",
            extra={"worker": seat.name},
        )
        self._succeed(seat, one)
        if one.trial is not None and not one.trial.done():
            one.trial.set_result(one.reason or "it ended")
        if self._empty is not None and not self._alive and not self._empty.done():
            self._empty.set_result(None)

    def _succeed(self, seat: Place, dead: Incarnation) -> None:
        """What the seat does about the end of one of its processes."""
        if dead is seat.replacement:
            seat.replacement = None
            seat.reason = f"its replacement failed: {dead.reason}"
            log.error("%s: %s; the old process serves on", seat.name, seat.reason, extra={"worker": seat.name})
            self._settle(seat)
        if dead is not seat.current:
            return
        now = time.monotonic()
        seat.current = None
        seat.reason = dead.reason
        seat.ended, seat.status = time.time(), dead.status
        if seat.state is Seat.STOPPING:
            seat.reason = ""
            self._journal.add("stopped", f"{dead.title} (pid {dead.pid}) was stopped", worker=seat.name)
            self._seat_event(seat, SeatEvent.GONE)
            return
        self._count_death(seat, dead)
        if seat.replacement is not None:
            self._seat_event(seat, SeatEvent.AGAIN)
            return
        if dead.fatal:
            self._journal.add("fatal", f"{dead.title} cannot serve: {dead.reason}", worker=seat.name)
            self._seat_event(seat, SeatEvent.NEVER)
            return
        policy = restart.Policy(self._config.supervision.start_seconds, self._config.supervision.start_retries)
        verdict = seat.history.died(policy, now, now - dead.ready_at if dead.ready_at else -1.0)
        if verdict.give_up:
            failures = seat.history.failures
            log.error("%s is given up (FATAL) after %d failed starts", seat.name, failures, extra={"worker": seat.name})
            self._journal.add("fatal", f"given up after {failures} failed starts: {dead.reason}", worker=seat.name)
            self._seat_event(seat, SeatEvent.NEVER)
        elif verdict.pause == 0.0:
            self._seat_event(seat, SeatEvent.AGAIN)
        else:
            self._seat_event(seat, SeatEvent.LATER, verdict.pause)

    def _count_death(self, seat: Place, dead: Incarnation) -> None:
        seat.restarts += 1
        cause = dead.cause or ("died" if dead.ready_at else "start")
        self._journal.restarted(seat.name, cause, f"{dead.title} (pid {dead.pid}) ended: {dead.reason or 'unasked'}")

    # Messages of workers

    def received(self, message: FromWorker) -> None:
        """Everything that workers say but their answers to calls."""
        one = self._alive.get((message.worker, message.generation))
        if one is None:
            return
        if isinstance(message, Ready) and message.protocol != PROTOCOL:
            other = f"it speaks protocol {message.protocol} and the daemon {PROTOCOL}: restart the daemon"
            self._stuck(one, other, "start")
        elif isinstance(message, Ready):
            one.offered = message.agents
            one.broken = message.broken
            one.code = message.code
            one.link.when_open(lambda: self._opened(one))
        elif isinstance(message, Starting):
            one.step = message.step
        elif isinstance(message, Failed):
            self._failed(one, message)
        elif isinstance(message, Released):
            self._tell(self._ledger.released(message.worker, message.generation, message.kind, message.connections))
        elif isinstance(message, Statistics):
            self.on_statistics(message)
        elif one is one.seat.current and one.phase is Phase.SERVING and not self._engine.closed:
            assert isinstance(message, Leaving)
            log.info("%s was asked to end from outside, and is replaced", one.title, extra={"worker": one.seat.name})
            self._replace(one.seat, "terminated")

    def _opened(self, one: Incarnation) -> None:
        if one.trial is None:
            self._phase_event(one, PhaseEvent.READY)
        elif not one.trial.done():
            one.trial.set_result("")

    def _failed(self, one: Incarnation, message: Failed) -> None:
        one.reason = message.reason
        one.fatal = message.configuration
        log.error("%s cannot serve: %s", one.title, message.reason, extra={"worker": one.seat.name})
        if message.configuration and not self._ever_ready:
            self.on_configuration_error(message.reason)

    def _join(self, one: Incarnation) -> None:
        """A worker serves from now on."""
        seat = one.seat
        settings = one.config.pools[seat.pool]
        one.ready_at = time.monotonic()
        one.pulse = Pulse(one.ready_at)
        one.worker = Worker(seat.name, one.generation, seat.pool, settings.concurrency, settings.threads, pid=one.pid)
        kinds = {info.database for info in one.offered if info.database} if self._dsn else set()
        changes = self._ledger.join(seat.name, one.generation, sorted(kinds))
        for kind in kinds:
            one.worker.connections[kind] = self._ledger.share(seat.name, one.generation, kind)
        one.worker.agents = self._may_offer(one)
        first, self._ever_ready = not self._ever_ready, True
        for broken in one.broken:
            what = "%s: the module %s is not served: %s"
            log.error(what, one.title, broken.module, broken.error, extra={"worker": seat.name})
        self._engine.join(one.worker, one.link, one.offered)
        self._tell(changes)
        count = len(one.offered)
        log.info("%s (pid %d) is ready with %d agents", one.title, one.pid, count, extra={"worker": seat.name})
        self._compare_code(one)
        if one is seat.current:
            self._journal.add("started", f"{one.title} (pid {one.pid}) serves {count} agents", worker=seat.name)
            self._seat_event(seat, SeatEvent.READY)
        else:
            self._swap(seat, one)
        one.cause = ""
        if first:
            self.on_first_ready()

    def _compare_code(self, new: Incarnation) -> None:
        """Files that change without a reload are seen by the workers that come back, and by nobody else."""
        serving = (one for one in self._alive.values() if one.phase is Phase.SERVING and one is not new)
        other = next((one for one in serving if one.code != new.code), None)
        if other is not None and not self._reloading:
            what = (
                "%s runs other code (%s) than %s (%s): its files have changed, and a reload has not brought that to all"
            )
            log.warning(what, new.title, new.code, other.title, other.code, extra={"worker": new.seat.name})

    def _may_offer(self, one: Incarnation) -> frozenset[str]:
        """The agents that this worker can be asked for: those with the database only with a share of connections."""
        shares = {kind: bool(self._ledger.share(one.seat.name, one.generation, kind)) for kind in ("async", "sync")}
        return frozenset(info.name for info in one.offered if not self._dsn or shares.get(info.database, True))

    def _tell(self, changes: list[connections.Change]) -> None:
        for change in changes:
            one = self._alive.get((change.worker, change.generation))
            if one is None or one.worker is None:
                continue
            one.worker.allot(change.kind, change.share)
            one.worker.agents = self._may_offer(one)
            self.eased(one.worker)
            self._engine.pump(one.seat.pool)

    # Replacing

    def _replace(self, seat: Place, cause: str) -> None:
        """Start a successor beside the process that serves; it takes the seat when it is ready."""
        if seat.replacement is not None:
            return
        try:
            seat.replacement = self._spawn(seat, self._config_of(seat.pool))
            seat.replacement.cause = cause
        except SpawnError as error:
            seat.reason = f"its replacement could not be started: {error}"
            log.error("%s: %s; the old process serves on", seat.name, seat.reason, extra={"worker": seat.name})

    def _swap(self, seat: Place, new: Incarnation) -> None:
        """The replacement is ready: it takes the seat, its predecessor drains."""
        old, seat.current, seat.replacement = seat.current, new, None
        seat.since = time.monotonic()
        seat.started = new.started
        seat.reason = ""
        seat.restarts += 1
        self._journal.restarted(seat.name, new.cause, f"{new.title} (pid {new.pid}) replaced the one before it")
        if old is not None:
            self._phase_event(old, PhaseEvent.RETIRE)
        self._settle(seat)

    def _drop_replacement(self, seat: Place, why: str) -> None:
        one, seat.replacement = seat.replacement, None
        if one is not None:
            one.reason = why
            self._phase_event(one, PhaseEvent.RETIRE)

    # The engine's listener

    def drained(self, worker: Worker) -> None:
        """Its last call has ended."""
        one = self._alive.get((worker.name, worker.generation))
        if one is not None:
            self._phase_event(one, PhaseEvent.IDLE)

    def eased(self, worker: Worker) -> None:
        """It may have few enough calls by now to be told the share of connections that it is owed."""
        one = self._alive.get((worker.name, worker.generation))
        if one is not None:
            for kind, share in worker.eased():
                one.link.control(Grant(kind, share))

    def stalled(self, worker: Worker, ticket: Ticket) -> None:
        """A call on it did not yield within half the grace."""
        one = self._alive.get((worker.name, worker.generation))
        if one is not None:
            self._watch.stalled(one)

    def overdue(self, worker: Worker, ticket: Ticket) -> None:
        """A call on it did not yield within the grace."""
        one = self._alive.get((worker.name, worker.generation))
        if one is not None:
            self._watch.overdue(one, ticket, lambda why, marks: self._overdue(one, ticket, why, marks))

    def _overdue(self, one: Incarnation, ticket: Ticket, why: str, marks: dict[str, str]) -> None:
        self._journal.add("timeout", f"{one.title} is killed: {why}", worker=one.name, agent=ticket.agent.name)
        self._stuck(one, why, "deadline", marks)

    def _tell_stuck(self, text: str, worker: str, agent: str) -> None:
        self._journal.add("stuck", text, worker=worker, agent=agent)

    # Reload

    async def reload(self, config: Config) -> None:
        """Replace all workers by ones with this configuration and the code as it is now.

        Returns once one worker of each pool has proven the new and the rest are being replaced one after another.
        ``ReloadFailedError`` if one does not come up, or if a module that was served cannot be imported any more: then
        nothing was changed.
        """
        if self._reloading:
            raise ReloadFailedError("a reload is in progress already")
        self._reloading = True
        server: Server | None = None
        proofs: list[Incarnation] = []
        try:
            server = self._new_server(config, anew=True)
            for pool in config.pools:
                proofs.append(await self._prove(pool, config, server))  # noqa: PERF401 - kept if a later one fails
            if self._stopping:
                raise ReloadFailedError("the daemon is stopping")
            self._settle_in(server)
        except BaseException as error:
            # Cancellation too: whoever asked for the reload may be gone.
            for proof in proofs:
                self._discard(proof, "the reload failed")
            if server is not None:
                server.close()
            self._reloading = False
            if isinstance(error, SpawnError):
                raise ReloadFailedError(str(error)) from error
            raise
        old, self._servers, self._config, self._own = self._servers, {"": server}, config, {}
        for each in old.values():
            each.close()
        self._give_up_seats()
        self._rolling = self._loop.create_task(self._roll(config, proofs))
        self._rolling.add_done_callback(self._rolled)

    def _settle_in(self, server: Server) -> None:
        try:
            self._spawner.settle(server)
        except OSError as error:
            raise ReloadFailedError(f"{server.workplace.directory}: {error.strerror}") from error

    def _give_up_seats(self) -> None:
        """Stop the seats that the configuration has no more."""
        for seat in list(self._seats.values()):
            settings = self._config.pools.get(seat.pool)
            if settings is None or seat.index >= settings.workers:
                seat.removed = True
                self.stop_worker(seat)
                self._forget_if_removed(seat)

    async def _prove(self, pool: str, config: Config, server: Server) -> Incarnation:
        """Start a worker of a pool on the new code, and let it become ready without giving it any call."""
        trial = Place(f"{pool}:0", pool, 0, restart.History(self._rng))
        one = self._spawn(trial, config, server)
        one.trial = self._loop.create_future()
        try:
            reason = await one.trial or self._newly_broken(one)
        except BaseException:
            self._discard(one, "the reload was given up")
            raise
        if reason:
            self._discard(one, reason)
            raise ReloadFailedError(f"a new worker of pool {pool!r} did not come up: {reason}")
        return one

    def _newly_broken(self, new: Incarnation) -> str:
        """The modules that this worker could not import and those that serve could; empty if there are none."""
        serving = [each for each in self._alive.values() if each.worker is not None]
        known = {broken.module for each in serving for broken in each.broken}
        newly = [each for each in new.broken if each.module not in known] if serving else []
        return "; ".join(f"the module {each.module} cannot be imported: {each.error}" for each in newly)

    def _discard(self, one: Incarnation, reason: str) -> None:
        one.reason = one.reason or reason
        self._phase_event(one, PhaseEvent.RETIRE)

    async def _roll(self, config: Config, proofs: list[Incarnation]) -> None:
        """Bring every seat to the new configuration, one after another."""
        for proof in proofs:
            self._adopt(proof)
        self._take_seats()
        for seat in self._in_order():
            await self._renew(seat, config)
        running = [seat for seat in self._in_order() if seat.state is Seat.RUNNING]
        serving = [(seat.name, seat.current) for seat in running if seat.current is not None]
        late = [name for name, one in serving if one.config is not config]
        codes = {one.code: name for name, one in serving if one.config is config}
        if late:
            log.error("reloaded, but for %s: no replacement came up; see above", ", ".join(late))
        elif len(codes) > 1:
            found = ", ".join(f"{name} runs {code}" for code, name in codes.items())
            log.error("reloaded, but the code changed meanwhile, and workers are mixed: %s; reload again", found)
            self._journal.add("reload", f"the code changed while workers were replaced: {found}")
        else:
            log.info("reloaded: every worker runs the new code and configuration (code %s)", *codes or ["unknown"])

    async def rolled(self) -> None:
        """Done when no reload replaces workers any more."""
        if self._rolling is not None:
            await asyncio.wait({self._rolling})

    def _rolled(self, rolling: asyncio.Task[None]) -> None:
        self._reloading = False
        if not rolling.cancelled() and (error := rolling.exception()) is not None:
            log.error("the reload did not end as it should", exc_info=error)

    def _in_order(self) -> list[Place]:
        return sorted(self._seats.values(), key=lambda each: (each.pool, each.index))

    def _adopt(self, proof: Incarnation) -> None:
        """The proven worker takes its seat."""
        proof.trial, proof.cause = None, "reload"
        if proof.phase is not Phase.STARTING:
            return  # it died since; its seat is brought to the new like the others
        seat = self._seats.get(proof.seat.name)
        if seat is None:
            seat = self._seats[proof.seat.name] = proof.seat
            seat.state, seat.since = Seat.STARTING, time.monotonic()
        self._drop_replacement(seat, "a reload brought a newer one")
        proof.seat = seat
        if seat.state in (Seat.STARTING, Seat.BACKOFF, Seat.FATAL):
            if seat.current is not None:
                before, seat.current = seat.current, None
                self._discard(before, "a reload brought a newer one")
            seat.replacement = proof
            seat.history.forgive()
            if seat.state is Seat.STARTING:
                seat.current, seat.replacement = proof, None
                seat.started = proof.started
            else:
                self._seat_event(seat, SeatEvent.START)
        elif seat.state is Seat.RUNNING:
            seat.replacement = proof
        else:
            self._discard(proof, "the worker is stopped")
            return
        self._phase_event(proof, PhaseEvent.READY)

    async def _renew(self, seat: Place, config: Config) -> None:
        """Bring a seat to this configuration, unless it is stopped or about to be."""
        for _ in range(RENEWALS):
            if seat.state in (Seat.FATAL, Seat.BACKOFF):
                self.start_worker(seat)
            if seat.current is None or seat.current.config is config:
                return
            if seat.state is Seat.STARTING:
                self._start_over(seat)
            elif seat.state is Seat.RUNNING:
                await self._succession(seat, config)

    def _start_over(self, seat: Place) -> None:
        """Drop the process that is starting in a seat, and start another."""
        before, seat.current = seat.current, None
        if before is not None:
            self._discard(before, "a reload brought a newer one")
        self._fill(seat)

    async def _succession(self, seat: Place, config: Config) -> None:
        """Replace the process of a seat by one of this configuration; done when that has ended well or badly."""
        if seat.replacement is not None and seat.replacement.config is not config:
            self._drop_replacement(seat, "a reload brought a newer one")
        self._replace(seat, "reload")
        replacement = seat.replacement
        while replacement is not None and seat.replacement is replacement and seat.state is Seat.RUNNING:
            await self.changed(seat)

    # Shutdown

    async def shutdown(self, timeout: float) -> None:
        """Drain and stop everything; what is left after ``timeout`` seconds is killed."""
        self._empty = self._loop.create_future()
        if self._rolling is not None:
            self._rolling.cancel()
        for seat in list(self._seats.values()):
            self.stop_worker(seat)
        for one in list(self._alive.values()):
            self._phase_event(one, PhaseEvent.RETIRE)
        if self._alive:
            await asyncio.wait({self._empty}, timeout=timeout)
        for one in list(self._alive.values()):
            if one.phase not in (Phase.KILLED, Phase.GONE):
                log.warning("%s is killed: the time to stop is over", one.title, extra={"worker": one.seat.name})
            self._kill(one)
        if self._alive:
            await self._empty
        self._watch.close()
        for server in self._servers.values():
            server.close()


def application(worker: str, generation: int) -> str:
    """The ``application_name`` of a worker's database sessions."""
    return f"penstock {worker}/{generation}"
