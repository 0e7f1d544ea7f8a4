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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

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
    Stop,
)
from penstock.ipc.scoreboard import Scoreboard

from .channels import Channels, Link
from .config import Config
from .core import connections, restart
from .core.dispatch import Worker
from .core.lifecycle import PHASES, SEATS, Phase, PhaseCommand, PhaseEvent, Seat, SeatCommand, SeatEvent
from .engine import Engine
from .processes import Process, Server, Spawner, describe
from .sessions import Sessions

log = logging.getLogger("penstock.fleet")

LAST_WORDS: Final = 0.05
"""Seconds between a process's end and its burial: what it had said before is read first."""

LEAVE_TIMEOUT: Final = 10.0
"""Seconds that a drained worker may take for its stop hooks and its exit."""

START_TIMEOUT: Final = 300.0
"""Seconds that a worker may take to load its agents and run its start hooks."""

OWN_CONNECTIONS: Final = 1
"""Of ``database.max_connections``, the supervisor's."""


class ReloadFailedError(Exception):
    """The new code or configuration does not work; the old serves on. The text says why."""


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
    worker: Worker | None = None
    broken: list[BrokenModule] = field(default_factory=list)
    offered: list[AgentInfo] = field(default_factory=list)
    ready_at: float = 0.0
    timer: asyncio.TimerHandle | None = None
    blame: bool = True
    """If it dies now, it did so by itself."""
    reason: str = ""
    fatal: bool = False
    """It failed for a reason that another try cannot mend."""
    trial: asyncio.Future[str] | None = None
    """Set for a worker that has to prove new code: it gets no calls, and the result is empty or why it failed."""

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
    generation: int = 0
    reason: str = ""
    removed: bool = False
    settled: list[asyncio.Future[None]] = field(default_factory=list)
    """Whoever waits for the seat's state to change."""


class Fleet:
    """All seats of all pools."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        channels: Channels,
        spawner: Spawner,
        *,
        dsn: str | None,
        sessions: Sessions | None,
        rng: random.Random,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._config = config
        self._engine = engine
        self._channels = channels
        self._spawner = spawner
        self._dsn = dsn
        self._sessions = sessions
        self._rng = rng
        self._loop = loop
        self._server: Server | None = None
        self._seats: dict[str, Place] = {}
        self._alive: dict[tuple[str, int], Incarnation] = {}
        self._ledger = connections.Ledger(config.database.max_connections - OWN_CONNECTIONS)
        self._reloading = False
        self._rolling: asyncio.Task[None] | None = None
        self._empty: asyncio.Future[None] | None = None
        self.on_configuration_error: Callable[[str], None] = log.error
        self._ever_ready = False

    # What the daemon asks for

    def start(self) -> None:
        """Start every worker."""
        self._channels.open(self._engine.answered, self.received)
        self._server = self._new_server(self._config)
        self._take_seats(self._config)

    def _new_server(self, config: Config) -> Server:
        return self._spawner.server(config.agents.modules if config.agents.preload else ())

    def _take_seats(self, config: Config) -> None:
        for pool, settings in config.pools.items():
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
        )

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
            self._replace(seat)
        else:
            self._seat_event(seat, SeatEvent.START)
        return True

    def start_worker(self, seat: Place) -> None:
        """Start a seat that does not run; begins its count of failures anew."""
        seat.history.forgive()
        self._seat_event(seat, SeatEvent.START)

    def stop_worker(self, seat: Place) -> None:
        """Drain and stop a seat; it stays stopped until it is started."""
        self._drop_replacement(seat, "the worker was stopped")
        self._seat_event(seat, SeatEvent.STOP)

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

    def _seat_event(self, seat: Place, event: SeatEvent) -> None:
        cell = SEATS[seat.state][event]
        if cell is None:
            return
        before, (seat.state, command) = seat.state, cell
        if seat.timer is not None:
            seat.timer.cancel()
            seat.timer = None
        if seat.state is not before:
            seat.since = time.monotonic()
            log.debug("%s: %s -> %s", seat.name, before.value, seat.state.value)
        if command is SeatCommand.SPAWN:
            seat.current = seat.replacement or self._spawn(seat, self._config, self._live_server())
            seat.replacement = None
        elif command is SeatCommand.RETIRE and seat.current is not None:
            self._phase_event(seat.current, PhaseEvent.RETIRE)
        self._hope(seat.pool)
        self._forget_if_removed(seat)
        self._settle(seat)

    def _settle(self, seat: Place) -> None:
        settled, seat.settled = seat.settled, []
        for future in settled:
            if not future.done():
                future.set_result(None)

    def _forget_if_removed(self, seat: Place) -> None:
        if seat.removed and seat.state in (Seat.STOPPED, Seat.FATAL) and self._seats.get(seat.name) is seat:
            del self._seats[seat.name]

    def _hope(self, pool: str) -> None:
        """Tell the engine whether a pool can come back by itself."""
        states = [seat.state for seat in self._seats.values() if seat.pool == pool]
        hopeless = all(state in (Seat.STOPPED, Seat.FATAL, Seat.STOPPING) for state in states)
        draining = any(state is Seat.STOPPING for state in states)
        if not (hopeless and draining):
            self._engine.hopeless(pool, hopeless)

    def _live_server(self) -> Server:
        if self._server is None or self._server.lost:
            self._server = self._new_server(self._config)
        return self._server

    # Events of incarnations

    def _spawn(self, seat: Place, config: Config, server: Server) -> Incarnation:
        settings = config.pools[seat.pool]
        seat.generation += 1
        link = self._channels.link()
        board = Scoreboard.create(seat.name, settings.concurrency)
        new = Incarnation(seat, seat.generation, config, link, board)
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
            DatabaseAccess(self._dsn, config.database.acquire_timeout) if self._dsn else None,
            config.log.level,
            config.log.format,
        )
        self._alive[seat.name, new.generation] = new
        new.timer = self._loop.call_later(START_TIMEOUT, self._stuck, new, f"not ready after {START_TIMEOUT:g} s")
        try:
            new.process = self._spawner.spawn(
                server, seat.name, encode(parameters), board, lambda status: self._exited(new, status)
            )
        except OSError as error:
            new.reason = f"the forkserver took no request: {error}"
            server.close()
            self._loop.call_soon(self._exited, new, None)
        return new

    def _phase_event(self, one: Incarnation, event: PhaseEvent) -> None:
        cell = PHASES[one.phase][event]
        if cell is None:
            return
        one.phase, command = cell
        if one.timer is not None:
            one.timer.cancel()
            one.timer = None
        if command is PhaseCommand.JOIN:
            self._join(one)
        elif command is PhaseCommand.DRAIN:
            self._drain(one)
        elif command is PhaseCommand.STOP:
            one.blame = False
            one.link.control(Stop())
            one.timer = self._loop.call_later(LEAVE_TIMEOUT, self._phase_event, one, PhaseEvent.TIMEOUT)
        elif command is PhaseCommand.CUT_OFF:
            assert one.worker is not None
            self._engine.cut_off_worker(one.worker, "its worker was stopped before the request was done")
            self._kill(one)
        elif command is PhaseCommand.KILL:
            self._kill(one)
        elif command is PhaseCommand.BURY:
            self._loop.call_later(LAST_WORDS, self._bury, one)

    def _kill(self, one: Incarnation) -> None:
        one.blame = False
        if one.process is not None:
            one.process.kill()

    def _drain(self, one: Incarnation) -> None:
        assert one.worker is not None
        one.blame = False
        seconds = self._config.supervision.stop_timeout
        one.timer = self._loop.call_later(seconds, self._phase_event, one, PhaseEvent.TIMEOUT)
        if self._engine.drain(one.worker):
            self._phase_event(one, PhaseEvent.IDLE)

    def _stuck(self, one: Incarnation, why: str) -> None:
        log.error("%s is killed: %s", one.title, why, extra={"worker": one.seat.name})
        one.reason = why
        self._phase_event(one, PhaseEvent.STUCK)

    def _exited(self, one: Incarnation, status: int | None) -> None:
        # What ends because it was told to has no reason but that, and one whose forkserver ends with it no status.
        if not one.reason and (one.blame or status not in (0, -signal.SIGKILL, None)):
            one.reason = describe(status)
        self._phase_event(one, PhaseEvent.EXIT)

    def _bury(self, one: Incarnation) -> None:
        """The process is gone and all that it said is read."""
        seat = one.seat
        del self._alive[seat.name, one.generation]
        backends = [slot.backend for slot in one.board.busy() if slot.backend]
        if one.worker is not None:
            begun = one.board.begun(one.worker.calls)
            seat.answered += one.worker.answered
            self._engine.leave(one.worker, begun, one.blame)
            self._tell(self._ledger.leave(seat.name, one.generation))
        if backends and self._sessions is not None:
            self._sessions.end(application(seat.name, one.generation), backends)
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
            log.error("%s: %s; the old process serves on", seat.name, seat.reason)
            self._settle(seat)
        if dead is not seat.current:
            return
        now = time.monotonic()
        seat.current = None
        seat.reason = dead.reason
        if seat.state is Seat.STOPPING:
            seat.reason = ""
            self._seat_event(seat, SeatEvent.GONE)
            return
        seat.restarts += 1
        if dead.fatal:
            self._seat_event(seat, SeatEvent.NEVER)
            return
        policy = restart.Policy(self._config.supervision.start_seconds, self._config.supervision.start_retries)
        verdict = seat.history.died(policy, now, now - dead.ready_at if dead.ready_at else -1.0)
        if verdict.give_up:
            log.error("%s is given up (FATAL) after %d failed starts", seat.name, seat.history.failures)
            self._seat_event(seat, SeatEvent.NEVER)
        elif verdict.pause == 0.0 or seat.replacement is not None:
            self._seat_event(seat, SeatEvent.AGAIN)
        else:
            self._seat_event(seat, SeatEvent.LATER)
            seat.timer = self._loop.call_later(verdict.pause, self._seat_event, seat, SeatEvent.DUE)

    # Messages of workers

    def received(self, message: FromWorker) -> None:
        """Everything that workers say but their answers to calls."""
        one = self._alive.get((message.worker, message.generation))
        if one is None:
            return
        if isinstance(message, Ready):
            one.offered = message.agents
            one.broken = message.broken
            one.link.when_open(lambda: self._opened(one))
        elif isinstance(message, Failed):
            self._failed(one, message)
        elif isinstance(message, Released):
            self._tell(self._ledger.released(message.worker, message.generation, message.kind, message.connections))
        elif one is one.seat.current and one.phase is Phase.SERVING and not self._engine.closed:
            assert isinstance(message, Leaving)
            log.info("%s was asked to end from outside, and is replaced", one.title)
            self._replace(one.seat)

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
        one.worker = Worker(seat.name, one.generation, seat.pool, settings.concurrency, settings.threads)
        kinds = {info.database for info in one.offered if info.database} if self._dsn else set()
        changes = self._ledger.join(seat.name, one.generation, sorted(kinds))
        one.worker.agents = self._may_offer(one)
        self._ever_ready = True
        for broken in one.broken:
            log.error("%s: the module %s is not served: %s", one.title, broken.module, broken.error)
        self._engine.join(one.worker, one.link, one.offered)
        self._tell(changes)
        log.info("%s (pid %d) is ready with %d agents", one.title, one.pid, len(one.offered))
        if one is seat.current:
            self._seat_event(seat, SeatEvent.READY)
        else:
            self._swap(seat, one)

    def _may_offer(self, one: Incarnation) -> frozenset[str]:
        """The agents that this worker can be asked for: those with the database only with a share of connections."""
        shares = {kind: bool(self._ledger.share(one.seat.name, one.generation, kind)) for kind in ("async", "sync")}
        return frozenset(info.name for info in one.offered if not self._dsn or shares.get(info.database, True))

    def _tell(self, changes: list[connections.Change]) -> None:
        for change in changes:
            one = self._alive.get((change.worker, change.generation))
            if one is None or one.worker is None:
                continue
            one.link.control(Grant(change.kind, change.share))
            one.worker.agents = self._may_offer(one)
            self._engine.pump(one.seat.pool)

    # Replacing

    def _replace(self, seat: Place) -> None:
        """Start a successor beside the process that serves; it takes the seat when it is ready."""
        if seat.replacement is None:
            seat.replacement = self._spawn(seat, self._config, self._live_server())

    def _swap(self, seat: Place, new: Incarnation) -> None:
        """The replacement is ready: it takes the seat, its predecessor drains."""
        old, seat.current, seat.replacement = seat.current, new, None
        seat.since = time.monotonic()
        seat.reason = ""
        seat.restarts += 1
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

    def overdue(self, worker: Worker) -> None:
        """A call on it did not yield within the grace."""
        one = self._alive.get((worker.name, worker.generation))
        if one is not None:
            self._stuck(one, "a call did not yield after its deadline")

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
        server = self._new_server(config)
        proofs: list[Incarnation] = []
        try:
            for pool in config.pools:
                proofs.append(await self._prove(pool, config, server))  # noqa: PERF401 - kept if a later one fails
        except ReloadFailedError:
            for proof in proofs:
                self._discard(proof, "the reload failed")
            server.close()
            self._reloading = False
            raise
        old, self._server, self._config = self._server, server, config
        if old is not None:
            old.close()
        self._rolling = self._loop.create_task(self._roll(config, proofs))

    async def _prove(self, pool: str, config: Config, server: Server) -> Incarnation:
        """Start a worker of a pool on the new code, and let it become ready without giving it any call."""
        real = self._seats.get(f"{pool}:0")
        trial = Place(f"{pool}:0", pool, 0, restart.History(self._rng), generation=real.generation if real else 0)
        one = self._spawn(trial, config, server)
        if real is not None:
            real.generation = trial.generation
        one.trial = self._loop.create_future()
        before = {broken.module for each in self._alive.values() for broken in each.broken if each is not one}
        reason = await one.trial
        newly = [each for each in one.broken if each.module not in before]
        reason = reason or "; ".join(f"the module {each.module} cannot be imported: {each.error}" for each in newly)
        if reason:
            self._discard(one, reason)
            raise ReloadFailedError(f"a new worker of pool {pool!r} did not come up: {reason}")
        return one

    def _discard(self, one: Incarnation, reason: str) -> None:
        one.reason = one.reason or reason
        self._phase_event(one, PhaseEvent.RETIRE)

    async def _roll(self, config: Config, proofs: list[Incarnation]) -> None:
        """Bring every seat to the new configuration, one after another."""
        try:
            for proof in proofs:
                self._adopt(proof)
            for seat in list(self._seats.values()):
                settings = config.pools.get(seat.pool)
                if settings is None or seat.index >= settings.workers:
                    seat.removed = True
                    self.stop_worker(seat)
                    self._forget_if_removed(seat)
            self._take_seats(config)
            for seat in self._in_order():
                await self._renew(seat, config)
            log.info("reloaded: every worker runs the new code and configuration")
        finally:
            self._reloading = False

    def _in_order(self) -> list[Place]:
        return sorted(self._seats.values(), key=lambda each: (each.pool, each.index))

    def _adopt(self, proof: Incarnation) -> None:
        """The proven worker takes its seat."""
        proof.trial = None
        seat = self._seats.get(proof.seat.name)
        if seat is None:
            seat = self._seats[proof.seat.name] = proof.seat
            seat.state = Seat.STARTING
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
            else:
                self._seat_event(seat, SeatEvent.START)
        elif seat.state is Seat.RUNNING:
            seat.replacement = proof
        else:
            self._discard(proof, "the worker is stopped")
            return
        self._phase_event(proof, PhaseEvent.READY)

    async def _renew(self, seat: Place, config: Config) -> None:
        """Replace a seat's process until it is one of this configuration; two tries."""
        for _ in range(2):
            if seat.current is None or seat.current.config is config or seat.removed:
                return
            if seat.state is Seat.RUNNING:
                self._replace(seat)
            replacement = seat.replacement
            while seat.replacement is replacement and seat.state in (Seat.RUNNING, Seat.STARTING):
                if seat.current is None or seat.current.config is config:
                    return
                await self.changed(seat)

    # Shutdown

    async def shutdown(self, timeout: float) -> None:
        """Drain and stop everything; what is left after ``timeout`` seconds is killed."""
        if self._rolling is not None:
            self._rolling.cancel()
        self._empty = self._loop.create_future()
        for seat in list(self._seats.values()):
            self.stop_worker(seat)
        for one in list(self._alive.values()):
            self._phase_event(one, PhaseEvent.RETIRE)
        if self._alive:
            await asyncio.wait({self._empty}, timeout=timeout)
        for one in list(self._alive.values()):
            self._kill(one)
        if self._alive:
            await self._empty
        if self._server is not None:
            self._server.close()


def application(worker: str, generation: int) -> str:
    """The ``application_name`` of a worker's database sessions."""
    return f"penstock {worker}/{generation}"
