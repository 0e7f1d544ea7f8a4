"""Composition root of the daemon: build everything, start it in order, wait for a signal, take it down in order.

Up: the state directory's lock, the listener (so that a port in use is said before anything is started), the database,
the channels, the workers. From the first moment the listener answers, with ``unavailable`` until a worker serves.

Down: refuse new requests, let the accepted ones end (at most ``supervision.stop_timeout``), answer what is cut off,
stop the workers, close the connections, the database, the lock. A second signal cuts the waiting short.

Signal handlers only record; the loop acts.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import logging
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvloop

from penstock.ipc.log import configure

from .channels import Channels
from .config import Config, ConfigError
from .core.backlog import Marks
from .engine import Engine
from .fleet import Fleet, ReloadFailedError
from .front.routes import Routes
from .front.server import BindError, Server, bind
from .postgres import EmbeddedPostgres, PostgresError
from .processes import Spawner
from .sessions import Sessions
from .state import StateDirectory, StateError

log = logging.getLogger("penstock")

CONFIGURATION: Final = 78
"""Exit status for a configuration that cannot work (EX_CONFIG of sysexits.h)."""

FIXED: Final[tuple[tuple[str, Callable[[Config], object]], ...]] = (
    ("http.bind", lambda config: config.http.bind),
    ("database.dsn", lambda config: config.database.dsn),
    ("database.max_connections", lambda config: config.database.max_connections),
    ("supervision.state_dir", lambda config: config.supervision.state_dir),
)
"""Settings that a reload cannot change, since they are held open."""


def run(config: Config, reread: Callable[[], Config]) -> int:
    """Run the daemon until it is told to stop; the exit status. ``reread`` reads the configuration anew."""
    configure(config.log.level, config.log.format)
    with contextlib.ExitStack() as stack:
        try:
            state = StateDirectory(Path(config.supervision.state_dir))
            stack.callback(state.close)
            state.lock()
            listener = stack.enter_context(bind(config.http.bind))
        except (StateError, BindError) as error:
            print(f"penstock: {error}", file=sys.stderr)
            return 1
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(config, reread, state, listener))


async def _serve(config: Config, reread: Callable[[], Config], state: StateDirectory, listener: socket.socket) -> int:
    daemon = Daemon(config, reread, state, listener)
    try:
        return await daemon.run()
    finally:
        await daemon.close()


class Daemon:
    """Everything that runs, and the views and actions that the routes offer on it."""

    def __init__(
        self, config: Config, reread: Callable[[], Config], state: StateDirectory, listener: socket.socket
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._reread = reread
        self._state = state
        self._listener = listener
        self._started_at = time.monotonic()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._status = 0
        self._database: EmbeddedPostgres | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._engine = Engine(self._loop)
        self._routes = Routes(self._engine, self, config.http.max_body)
        self._server = Server(self._routes)
        self._acceptor: asyncio.Server | None = None
        self._channels: Channels | None = None
        self._fleet: Fleet | None = None
        self._sessions: Sessions | None = None
        self._arrange(config)

    def _arrange(self, config: Config) -> None:
        queue = config.queue
        self._engine.arrange(
            {name: pool.balance for name, pool in config.pools.items()},
            Marks(queue.high_water, queue.low_water, queue.max_bytes),
            config.agents.timeout,
            config.agents.hard_timeout_grace,
        )
        self._routes.max_body = config.http.max_body

    # Life

    async def run(self) -> int:
        """Start, serve until told to stop, drain; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._asked_to_stop, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._asked_to_reload)
        self._acceptor = await self._loop.create_server(self._server, sock=self._listener)
        log.info("penstock %s listens on %s", version(), self._config.http.bind)
        try:
            dsn = await self._open_database()
        except PostgresError as error:
            log.error("%s", error)
            return 1
        if not self._stop.is_set():
            self._start_fleet(dsn)
            await self._stop.wait()
            await self._drain()
        return self._status

    async def _open_database(self) -> str | None:
        """The DSN for the workers; None without a database."""
        dsn = self._config.database.dsn
        if dsn == "off":
            return None
        if dsn:
            return dsn
        self._database = EmbeddedPostgres(
            self._state.path / "postgres",
            max_connections=self._config.database.max_connections,
            log=logging.getLogger("penstock.postgres"),
        )
        return await self._database.start()

    def _start_fleet(self, dsn: str | None) -> None:
        self._sessions = Sessions(dsn) if dsn else None
        self._channels = Channels(self._loop, self._state.runtime)
        self._fleet = Fleet(
            self._config,
            self._engine,
            self._channels,
            Spawner(self._loop, self._state.runtime),
            dsn=dsn,
            sessions=self._sessions,
            rng=random.Random(),
            loop=self._loop,
        )
        self._engine.listener = self._fleet
        self._fleet.on_configuration_error = self._refuse_configuration
        self._fleet.start()

    def _refuse_configuration(self, reason: str) -> None:
        log.error("%s", reason)
        self._status = CONFIGURATION
        self._hurry.set()
        self._stop.set()

    def _asked_to_stop(self, number: int) -> None:
        if self._stop.is_set():
            log.info("%s again: stopping at once", signal.Signals(number).name)
            self._hurry.set()
        else:
            log.info("%s: draining, at most %g s", signal.Signals(number).name, self._config.supervision.stop_timeout)
            self._engine.close("the daemon is stopping")
            self._stop.set()

    async def _drain(self) -> None:
        """Let the accepted requests end, answer those that cannot, and stop the workers."""
        self._engine.close("the daemon is stopping")
        ends = self._loop.time() + self._config.supervision.stop_timeout
        hurry: asyncio.Future[Any] = asyncio.ensure_future(self._hurry.wait())
        try:
            idle: asyncio.Future[Any] = self._engine.idle()
            await asyncio.wait({idle, hurry}, timeout=ends - self._loop.time(), return_when=asyncio.FIRST_COMPLETED)
            cut = self._engine.cut_off("the daemon stopped before the request was done")
            if cut:
                log.warning("%d requests were cut off by the stop", cut)
            assert self._fleet is not None
            await self._fleet.shutdown(0.0 if cut or self._hurry.is_set() else max(1.0, ends - self._loop.time()))
        finally:
            hurry.cancel()

    async def close(self) -> None:
        """Release what ``run`` opened, in the opposite order. Every step is tried."""
        if self._acceptor is not None:
            self._acceptor.close()
        self._server.pre_shutdown()
        await self._server.shutdown(1.0)
        for task in list(self._tasks):
            task.cancel()
        if self._sessions is not None:
            await self._sessions.close()
        if self._channels is not None:
            self._channels.close()
        if self._database is not None:
            await self._database.stop()
        log.info("stopped")

    # Reload

    def _asked_to_reload(self) -> None:
        self._spawn(self._reload_and_log())

    async def _reload_and_log(self) -> None:
        why = await self.reload()
        if why:
            log.error("the reload failed, and the old code and configuration serve on: %s", why)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def reload(self) -> str:
        """Take new code and configuration. Empty once the new is proven; else why it was not taken."""
        if self._fleet is None or self._stop.is_set():
            return "the daemon is " + ("stopping" if self._stop.is_set() else "starting")
        try:
            config = self._reread()
        except ConfigError as error:
            return str(error)
        for key, value in FIXED:
            if value(config) != value(self._config):
                return f"{key} cannot change in a reload; restart the daemon for it"
        try:
            await self._fleet.reload(config)
        except ReloadFailedError as error:
            return str(error)
        self._config = config
        self._arrange(config)
        configure(config.log.level, config.log.format)
        log.info("reloading: the new code and configuration are proven")
        return ""

    # Views

    def status(self) -> dict[str, Any]:
        backlog = self._engine.scheduler.backlog
        marks = backlog.marks
        why = self._engine.ready
        return {
            "version": version(),
            "state": why or "ready",
            "uptime": time.monotonic() - self._started_at,
            "workers": self.workers(),
            "queue": {
                "requests": backlog.requests,
                "bytes": backlog.bytes,
                "high_water": marks.high_water,
                "low_water": marks.low_water,
                "max_bytes": marks.max_bytes,
                "refusing": backlog.refusing,
            },
            "throttle": {},
            "database": self._database_view(),
            "agents": sorted(self._engine.catalogue),
        }

    def _database_view(self) -> dict[str, Any]:
        dsn = self._config.database.dsn
        return {
            "mode": "embedded" if not dsn else "off" if dsn == "off" else "external",
            "max_connections": self._config.database.max_connections,
            "granted": 0 if self._fleet is None else self._fleet.granted,
        }

    def workers(self) -> list[dict[str, Any]]:
        return [] if self._fleet is None else [dataclasses.asdict(view) for view in self._fleet.workers()]

    def restart(self, name: str) -> bool:
        return self._fleet is not None and self._fleet.restart(name)


def version() -> str:
    """The installed version of Penstock."""
    return importlib.metadata.version("penstock")
