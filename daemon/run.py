"""Composition root of the daemon: build everything, start it in order, wait for a signal, take it down in order.

Up: the state directory's lock, the listener (so that a port in use is said before anything is started), the database,
the channels, the workers. From the first moment the listener answers, with ``unavailable`` until a worker serves; one
that was handed over begins to only then, since its clients can wait in the backlog.

Down: refuse new requests, let the accepted ones end (at most ``supervision.stop_timeout``), answer what is cut off,
stop the workers, close the connections, the database, the lock. A second signal cuts the waiting short.

Signal handlers only record; the loop acts.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import importlib.metadata
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import uvloop

from penstock.ipc.log import configure
from penstock.ipc.messages import Statistics
from penstock.ipc.prctl import adopts_orphans
from penstock.ipc.tracing import open_spans

from .backends.local.backend import LocalBackend
from .backends.local.channels import Channels
from .backends.local.output import WorkerOutput
from .backends.local.process import Spawner
from .backends.local.sessions import Sessions
from .config.configuration import Configuration
from .config.settings import Config
from .control.groups import Groups
from .control.methods import api
from .control.rpc import Dispatcher
from .control.server import ControlServer
from .control.server import bind as bind_control
from .core.lifecycle import SeatState
from .diagnostics.profiler import Profiler
from .diagnostics.watch import Watch
from .engine.engine import Engine
from .engine.ports import Observer
from .fleet.fleet import Fleet
from .fleet.grants import Grants
from .fleet.incarnation import Services
from .fleet.journal import Journal
from .front.calls import Observer as FrontObserver
from .front.listening import Front, Sockets
from .host import cgroups
from .host.activation import ActivationError
from .host.descriptors import DescriptorError, allow_most
from .host.listen import BindError
from .host.listeners import announced
from .host.logfiles import LogFile
from .host.logwriter import LogWriter, under_journal
from .host.notify import Notifier
from .host.orphans import Orphans
from .host.state import StateDirectory, StateError
from .host.workplace import Origin
from .postgres.installation import PostgresError
from .postgres.server import EmbeddedPostgres
from .reconfiguration import Reconfiguration, configure_engine, read_checked, room_for_clients
from .telemetry.metrics import Metrics
from .telemetry.monitor import Monitor
from .telemetry.poolstats import DatabasePools
from .telemetry.snapshot import Snapshot
from .telemetry.traffic import Traffic

log = logging.getLogger("penstock")

CONFIGURATION: Final = 78
"""Exit status for a configuration that cannot work (EX_CONFIG of sysexits.h)."""

GC_THRESHOLDS: Final = (10_000, 20, 50)
"""Thresholds of the garbage collector. Requests leave no cycles behind, and a full collection of what thousands of
connections hold takes tens of milliseconds in which no request is answered."""

REOPEN: Final = (signal.SIGUSR1, signal.SIGUSR2)
"""Open the log files anew: the first is nginx's, the second supervisord's."""

BACKLOG_PATIENCE: Final = 10.0
"""Seconds for which clients of a handed-over socket wait in its backlog for the first worker. Then they are told."""

LAST_WRITES: Final = 1.0
"""Seconds that clients have in any case to take what is still to be sent."""

ARRIVAL_GRACE: Final = 0.5
"""Seconds that a stop waits for requests that were on their way to a daemon with handed-over sockets."""

STOP_MARGIN: Final = 20.0
"""Seconds beyond ``supervision.stop_timeout`` that a stop may take: stop hooks, the database's end."""


class Counter(Observer, FrontObserver, Protocol):
    """Who is told what becomes of requests, by the engine and by the front."""


Observe = Callable[["Supervisor", Traffic], Counter]
"""Makes who is told what becomes of requests, out of who counts that."""


def run(config: Config, reread: Callable[[], Config], door: int, observe: Observe | None = None) -> int:
    """Run the daemon until it is told to stop; the exit status. ``reread`` reads the configuration anew. ``door``: the
    guard's (``guard.start``). ``observe``: who is told what becomes of requests; None: who counts it.
    """
    for number in REOPEN:
        signal.signal(number, signal.SIG_IGN)  # they end nobody, also before there is a loop
    allow_most()
    with contextlib.ExitStack() as stack:
        writer = LogWriter(journal=under_journal(os.environ))
        stack.callback(writer.close)
        configure(config.log.level, config.log.format, output=writer.write)
        try:
            possible = room_for_clients(config)
            state = StateDirectory(Path(config.supervision.state_dir))
            stack.callback(state.close)
            state.lock()
            main_log = LogFile(state.path / "log" / "penstock.log", config.log.file_size, config.log.files - 1)
            writer.to_file(main_log)
            sockets = Sockets(config.http, os.environ)
            stack.callback(sockets.close)
            stack.enter_context(announced(state.path, sockets.addresses()))
            control = stack.enter_context(bind_control(config.control))
            stack.callback(Path(config.control.socket).unlink, missing_ok=True)
        except (DescriptorError, StateError, BindError, ActivationError) as error:
            print(f"penstock: {error}", file=sys.stderr)
            return 1
        origin = Origin(os.environ, sys.path)
        resources = Resources(state, sockets, control, writer, main_log, door, origin, possible)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(config, reread, resources, observe))


@dataclasses.dataclass(frozen=True, slots=True)
class Resources:
    """What is there before the loop turns, and after."""

    state: StateDirectory
    sockets: Sockets
    control: socket.socket
    writer: LogWriter
    main_log: LogFile
    door: int
    """The guard's."""
    origin: Origin
    possible: int
    """Connections of clients for which there are descriptors."""


async def _serve(config: Config, reread: Callable[[], Config], resources: Resources, observe: Observe | None) -> int:
    supervisor = Supervisor(config, reread, resources, observe)
    try:
        return await supervisor.run()
    finally:
        await supervisor.close()
        # Everything is done, and a signal that comes now must not make another end of it.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *REOPEN):
            signal.signal(number, signal.SIG_IGN)


class Supervisor:
    """Everything that runs, and the views and actions that the routes offer on it."""

    def __init__(
        self, config: Config, reread: Callable[[], Config], resources: Resources, observe: Observe | None
    ) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._configuration = Configuration(config, reread)
        self._resources = resources
        self._stop = asyncio.Event()
        self._served = asyncio.Event()
        self._hurry = asyncio.Event()
        self._status = 0
        state, writer, main_log = resources.state, resources.writer, resources.main_log
        self._journal = Journal()
        self._pools = DatabasePools()
        self._traffic = Traffic(time.monotonic(), self._pools)
        observer: Counter = self._traffic if observe is None else observe(self, self._traffic)
        self._engine = Engine(loop, observer)
        self._worker_output = WorkerOutput(loop, state.path / "log", writer.write)
        self._channels = Channels(loop, state.runtime)
        self._sessions = Sessions()
        spawner = Spawner(loop, state.runtime, door=resources.door, origin=resources.origin)
        services = Services(
            loop=loop,
            engine=self._engine,
            backend=LocalBackend(loop, self._channels, spawner, self._worker_output),
            grants=Grants(config.database.max_connections),
            journal=self._journal,
            watcher=Watch(loop, self._journal),
            sessions=self._sessions,
        )
        self._fleet = Fleet(config, services, self, random.Random())
        self.profiler = Profiler(self._fleet)
        self._monitor = Monitor(loop, self._engine, self._traffic, self._fleet)
        seen = (version(), self._engine, self._monitor, self._traffic, self._pools, self._journal, self._fleet)
        self._metrics = Metrics(*seen)
        self._snapshot = Snapshot(*seen, self._configuration, resources.sockets.addresses())
        self._spans = open_spans(os.environ)
        self._front = Front(
            self._engine, observer, self, resources.sockets, config.http, resources.possible, self._spans
        )
        self._notifier = Notifier(loop, os.environ, self._summary, self._engine.stuck, self._can_start)
        self._reconfiguration = Reconfiguration(
            loop, self._configuration, self._fleet, self._front, self._notifier, self._journal, self._stop.is_set
        )
        engine, configuration = self._engine, self._configuration
        read, tell = partial(read_checked, configuration), partial(configure_engine, engine)
        groups = Groups(configuration, self._fleet, read, tell, engine.forget_pool)
        methods = api(self, self._fleet, groups, self._worker_output, main_log, version())
        dispatcher = Dispatcher(methods, self._refused_when_stopping)
        self._control = ControlServer(dispatcher, self._fleet, self._worker_output, main_log, self._configuration)
        self._orphans = Orphans(loop) if adopts_orphans() else None
        self._database = None if config.database.dsn else _embedded(config, state)
        self._configuration.subscribe(tell)
        self._configuration.subscribe(self._configure_logs)

    @property
    def _config(self) -> Config:
        return self._configuration.current

    def _configure_logs(self, config: Config) -> None:
        settings, writer = config.log, self._resources.writer
        configure(settings.level, settings.format, output=writer.write)
        writer.form = settings.format
        main_log = self._resources.main_log
        main_log.limit, main_log.kept = settings.file_size, settings.files - 1
        self._worker_output.configure(settings.format, settings.level, settings.file_size, settings.files - 1)

    # Life

    async def run(self) -> int:
        """Start, serve until told to stop, drain; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._on_signal(number, self._asked_to_stop)
        self._on_signal(signal.SIGHUP, self._asked_to_reload)
        for number in REOPEN:
            self._on_signal(number, self._reopen_logs)
        log.info("penstock %s starts", version())
        allowed = len(os.sched_getaffinity(0))
        if (quota := cgroups.own().quota()) < allowed:
            log.info("the control group's quota leaves %g of %d processors", quota, allowed)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self._notifier.open()
        handed_over = self._resources.sockets.handed_over
        if not handed_over:
            self._front.open()
        try:
            dsn = await self._open_database()
        except PostgresError as error:
            log.error("%s", error)
            return 1
        if not self._stop.is_set():
            self._start_fleet(dsn)
            await self._control.open(self._resources.control)
            if handed_over:
                await self._open_when_served()
            await self._stop.wait()
            await self._drain()
        return self._status

    async def _open_when_served(self) -> None:
        """Accept once a worker serves. Clients wait in the backlog until then, as while there was no daemon."""
        ends = [asyncio.ensure_future(end) for end in (self._served.wait(), self._stop.wait(), self._fleet.given_up())]
        await asyncio.wait(ends, timeout=BACKLOG_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if not self._stop.is_set():
            self._front.open()

    async def _open_database(self) -> str | None:
        """The DSN for the workers; None without a database."""
        if self._database is not None:
            return await self._database.start()
        dsn = self._config.database.dsn
        return None if dsn == "off" else dsn

    def _start_fleet(self, dsn: str | None) -> None:
        self._sessions.start(dsn or "")
        self._monitor.start()
        self._fleet.start(dsn)
        self._reconfiguration.start()

    # What the fleet tells

    def first_ready(self) -> None:
        """A worker serves, for the first time since the start."""
        self._served.set()
        self._notifier.ready()

    def configuration_failed(self, reason: str) -> None:
        """No worker can serve with this configuration, and none ever has: end."""
        log.error("%s", reason)
        self._status = CONFIGURATION
        self._hurry.set()
        self._stop.set()

    def statistics(self, statistics: Statistics) -> None:
        """The statistics of a worker's database pools."""
        self._pools.received(statistics)

    def _refused_when_stopping(self, method: str) -> bool:
        return self._stop.is_set() and method.startswith("supervisor.") and method != "supervisor.sendRemoteCommEvent"

    def _on_signal(self, number: int, then: Callable[[int], None]) -> None:
        """Have the loop call this. The loop's own handlers are no good here: it leaves their signals to the kernel when
        it is closed, so that a second SIGTERM in the last moment would be what the process ends by.
        """
        signal.signal(number, lambda number, _: self._loop.call_soon_threadsafe(then, number))

    def _asked_to_stop(self, number: int) -> None:
        if self._stop.is_set():
            log.info("%s again: stopping at once", signal.Signals(number).name)
            self._hurry.set()
        else:
            self._begin_to_stop(signal.Signals(number).name)

    def _begin_to_stop(self, why: str) -> None:
        seconds = self._config.supervision.stop_timeout
        log.info("%s: draining, at most %g s", why, seconds)
        self._notifier.stopping(seconds + STOP_MARGIN)
        self._front.drain()
        if not self._front.arriving:
            self._engine.close("the daemon is stopping")
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """It drains, and takes no more orders."""
        return self._stop.is_set()

    def shut_down(self) -> None:
        """Begin to drain and end."""
        if not self._stop.is_set():
            self._begin_to_stop("requested on the control socket")

    async def _take_what_arrives(self) -> None:
        """Let the requests come that were on their way when the daemon was told to stop."""
        ends = self._loop.time() + ARRIVAL_GRACE
        while self._front.arriving and not self._hurry.is_set() and self._loop.time() < ends:
            await asyncio.sleep(0.005)

    async def _drain(self) -> None:
        """Let the accepted requests end, answer those that cannot, and stop the workers."""
        await self._take_what_arrives()
        self._engine.close("the daemon is stopping")
        ends = self._loop.time() + self._config.supervision.stop_timeout
        hurry: asyncio.Future[Any] = asyncio.ensure_future(self._hurry.wait())
        try:
            idle: asyncio.Future[Any] = self._engine.idle()
            await asyncio.wait({idle, hurry}, timeout=ends - self._loop.time(), return_when=asyncio.FIRST_COMPLETED)
            cut = self._engine.cut_off("the daemon stopped before the request was done")
            if cut:
                log.warning("%d requests were cut off by the stop", cut)
            await self._fleet.shutdown(0.0 if cut or self._hurry.is_set() else max(1.0, ends - self._loop.time()))
            await self._front.finish_sending(max(ends, self._loop.time() + LAST_WRITES), self._hurry)
        finally:
            hurry.cancel()

    async def close(self) -> None:
        """Release what ``run`` opened, in the opposite order. Every step is tried."""
        self.profiler.close()
        await self._front.close()
        self._monitor.close()
        await self._control.close()
        self._reconfiguration.close()
        await self._sessions.close()
        self._channels.close()
        if self._database is not None:
            await self._database.stop()
        if self._spans is not None:
            await self._spans.close()
        self._worker_output.close()
        if self._orphans is not None:
            self._orphans.close()
        self._notifier.close()
        log.info("stopped")

    def _reopen_logs(self, number: int) -> None:
        self._resources.main_log.reopen()
        self._worker_output.reopen()
        log.info("%s: the log files are reopened", signal.Signals(number).name)

    def _asked_to_reload(self, number: int) -> None:
        self._reconfiguration.ask()

    async def reload(self) -> str:
        """Take new code and configuration. Empty once the new is proven; else why it was not taken."""
        # Whoever asked may go; what was asked for goes on.
        return await asyncio.shield(self._reconfiguration.ask())

    # Views

    def status(self, history_since: float = 0.0) -> dict[str, Any]:
        return self._snapshot.status(history_since)

    def metrics(self, accept: str) -> tuple[bytes, str]:
        return self._metrics.expose(accept)

    def _summary(self) -> str:
        """One line for people: the state, the workers and the queue."""
        backlog = self._engine.scheduler.backlog
        workers = self._fleet.workers()
        running = sum(view.state is SeatState.RUNNING for view in workers)
        return (
            f"{self._engine.ready or 'ready'}; {running} of {len(workers)} workers run,"
            f" {self._engine.scheduler.in_flight} calls in flight,"
            f" {backlog.requests} of {backlog.marks.high_water} requests wait"
        )

    def _can_start(self) -> bool:
        """Whether the start may still succeed."""
        return not self._reconfiguration.open or self._fleet.active

    def workers(self) -> list[dict[str, Any]]:
        return self._snapshot.workers()

    def worker(self, name: str) -> dict[str, Any] | None:
        return self._snapshot.worker(name)

    def restart(self, name: str) -> bool:
        return self._fleet.restart(name)


def _embedded(config: Config, state: StateDirectory) -> EmbeddedPostgres:
    return EmbeddedPostgres(
        state.path / "postgres",
        max_connections=config.database.max_connections,
        log=logging.getLogger("penstock.postgres"),
    )


def version() -> str:
    """The installed version of Penstock."""
    return importlib.metadata.version("penstock")
