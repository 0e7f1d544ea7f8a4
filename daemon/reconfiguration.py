"""Reloads, from the request to the change of the configuration.

The configuration is read and checked, the fleet proves it together with the new code, and only then it is in force:
for the subscribers of ``Configuration``, and for the front.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from .config.configuration import Configuration
from .config.settings import Config, ConfigError
from .core.backlog import Watermarks
from .core.throttle import Policy
from .engine.engine import Engine
from .fleet.fleet import Fleet
from .fleet.journal import Journal
from .fleet.reloading import Reloads
from .fleet.rollout import ReloadFailedError
from .front.listening import Front
from .host.descriptors import DescriptorError, for_clients, limit
from .host.notify import Notifier

log = logging.getLogger("penstock")


def room_for_clients(config: Config) -> int:
    """Connections for which there are descriptors (``DescriptorError``)."""
    return for_clients(limit(), sum(pool.workers for pool in config.pools.values()))


def read_checked(configuration: Configuration) -> Config:
    """The configuration as it is now, if a daemon that runs can take it (``ConfigError``)."""
    config = configuration.reread()
    try:
        room_for_clients(config)
    except DescriptorError as error:
        raise ConfigError(str(error)) from error
    return config


def configure_engine(engine: Engine, config: Config) -> None:
    """Tell the engine its settings."""
    queue = config.queue
    engine.configure(
        {name: pool.balance for name, pool in config.pools.items()},
        Watermarks(queue.high_water, queue.low_water, queue.max_bytes),
        config.agents.timeout,
        config.agents.hard_timeout_grace,
        Policy(config.throttle.enabled, config.throttle.objective, queue.target_delay),
    )


class Reconfiguration:
    """Reloads, one after another."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        configuration: Configuration,
        fleet: Fleet,
        front: Front,
        notifier: Notifier,
        journal: Journal,
        stopping: Callable[[], bool],
    ) -> None:
        """``stopping``: whether the daemon takes no new configuration any more."""
        self._configuration = configuration
        self._fleet = fleet
        self._front = front
        self._notifier = notifier
        self._journal = journal
        self._stopping = stopping
        self._started = asyncio.Event()
        self._reloads = Reloads(loop, self._once, self._possible)

    @property
    def open(self) -> bool:
        """The fleet is started, and can be reloaded."""
        return self._started.is_set()

    def start(self) -> None:
        """Do what was asked for from now on: the fleet is started."""
        self._started.set()

    def close(self) -> None:
        """Break off what goes on; whoever still waits is told."""
        self._reloads.close()

    def ask(self) -> asyncio.Future[str]:
        """Take new code and configuration. Empty once the new is proven; else why it was not taken."""
        return self._reloads.ask()

    async def _possible(self) -> None:
        await self._started.wait()
        if self._fleet.reloading:
            log.info("a reload was requested while one is in progress, and follows it")
            await self._fleet.rolled()

    async def _once(self) -> str:
        self._notifier.reloading()
        try:
            return await self._reload()
        finally:
            self._notifier.reloaded()

    async def _reload(self) -> str:
        if self._stopping():
            return "the daemon is stopping"
        try:
            config = read_checked(self._configuration)
            known, possible = self._front.check(config.http), room_for_clients(config)
            await self._fleet.reload(config)
            self._configuration.replace(config)
            self._front.apply(config.http, possible, known)
        except (ConfigError, ReloadFailedError) as error:
            self._journal.add("reload", f"failed, and the old code and configuration serve on: {error}")
            return str(error)
        self._journal.add("reload", "the new code and configuration are proven, and workers are being replaced")
        log.info("reloading: the new code and configuration are proven")
        return ""
