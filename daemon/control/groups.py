"""Which pools are active, and what the configuration would make of them: supervisord's reread, add, remove.

A pool is added with the configuration as it was last read, and keeps to that until it is removed and added again,
or until a reload takes everything. ``reread`` says which pools would differ: those that are new, those that are gone,
and those whose workers would be started with other settings. What concerns other pools or the supervisor alone (marks,
timeouts, the throttle, listeners) changes with a reload only: adding a pool takes its own settings and, for its
workers, all that they are started with, out of what was read, and leaves everything else as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ..config.configuration import Configuration
from ..config.settings import FOR_WORKERS, Config
from ..fleet.fleet import Fleet


class NoSuchGroupError(Exception):
    """There is no such pool."""


class AlreadyActiveError(Exception):
    """The pool is active."""


class StillRunningError(Exception):
    """Some of the pool's workers run."""


class BusyError(Exception):
    """A reload goes on, which changes the pools itself."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of pools."""

    added: list[str]
    changed: list[str]
    removed: list[str]


class Groups:
    """The active pools."""

    def __init__(
        self,
        configuration: Configuration,
        fleet: Fleet,
        reread: Callable[[], Config],
        configure: Callable[[Config], None],
        forget: Callable[[str], None],
    ) -> None:
        """``reread`` reads and checks the configuration (``ConfigError``); ``configure`` tells the rest of the daemon
        which pools there are from now on, and ``forget`` which one there is no more.
        """
        self._fleet = fleet
        self._forget = forget
        self._reread = reread
        self._configure = configure
        configuration.subscribe(self._adopt)

    def _adopt(self, config: Config) -> None:
        """Everything follows this configuration from now on: at the start, and after a reload."""
        self.configured = config
        self._taken = {pool: _facet(config, pool) for pool in config.pools}
        self._active = config
        self._sources: dict[str, Config] = {}
        """The settings of pools that were added, where those were read after everything else."""

    @property
    def active(self) -> frozenset[str]:
        """The names of the active pools."""
        return frozenset(self._active.pools)

    def reread(self) -> Changes:
        """Read the configuration anew, and change nothing yet (``ConfigError``)."""
        config = self.configured = self._reread()
        return Changes(
            sorted(config.pools.keys() - self._taken.keys()),
            sorted(
                pool for pool in config.pools if self._taken.get(pool, _facet(config, pool)) != _facet(config, pool)
            ),
            sorted(self._taken.keys() - config.pools.keys()),
        )

    def add(self, name: str) -> None:
        """Start a pool as the configuration has it (``NoSuchGroupError``, ``AlreadyActiveError``, ``BusyError``)."""
        if self._fleet.reloading:
            raise BusyError
        configured = self.configured
        if name not in configured.pools:
            raise NoSuchGroupError
        if name in self._taken:
            raise AlreadyActiveError
        # In the order of the configuration, since an agent goes to the first pool that matches.
        pools = {
            each: configured.pools[each] if each == name else self._active.pools[each]
            for each in [*configured.pools, *(self._active.pools.keys() - configured.pools.keys())]
            if each == name or each in self._active.pools
        }
        self._active = msgspec.structs.replace(self._active, pools=pools)
        self._taken[name] = _facet(configured, name)
        self._sources[name] = configured
        self._configure(self._active)
        self._fleet.add_pool(name, self._active, self._own())

    def remove(self, name: str) -> None:
        """Give up a pool whose workers are all stopped (``NoSuchGroupError``, ``StillRunningError``, ``BusyError``)."""
        if self._fleet.reloading:
            raise BusyError
        if name not in self._taken:
            raise NoSuchGroupError
        if not self._fleet.is_stopped(name):
            raise StillRunningError
        pools = {each: settings for each, settings in self._active.pools.items() if each != name}
        self._active = msgspec.structs.replace(self._active, pools=pools)
        del self._taken[name]
        self._sources.pop(name, None)
        self._fleet.remove_pool(name, self._active, self._own())
        if name not in self.configured.pools:
            self._forget(name)
            self._configure(self._active)

    def _own(self) -> dict[str, Config]:
        """What the workers of pools that were added by themselves are started with."""
        return {pool: _launched_by(source, self._active) for pool, source in self._sources.items()}


def _facet(config: Config, pool: str) -> object:
    """The settings of a pool, and all else that its workers are started with."""
    rest = [getattr(getattr(config, section), key) for section, keys in FOR_WORKERS.items() for key in keys]
    return (config.pools[pool], *rest)


def _launched_by(source: Config, active: Config) -> Config:
    """The active configuration, with all that workers are started with out of ``source``."""
    replace = msgspec.structs.replace
    taken: dict[str, Any] = {}
    for section, keys in FOR_WORKERS.items():
        given = getattr(source, section)
        taken[section] = replace(getattr(active, section), **{key: getattr(given, key) for key in keys})
    return replace(active, **taken)
