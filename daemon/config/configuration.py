"""The one holder of the configuration that is in force.

Whoever needs a setting now and then asks for ``current`` at that moment and keeps nothing; whoever has to do something
about a new configuration subscribes. So a reload replaces one value, and no part of the daemon can be left with an
older one. What workers were started with is not the daemon's configuration any more but theirs.
"""

from __future__ import annotations

from collections.abc import Callable

from .settings import SETTINGS, Config, ConfigError


class Configuration:
    """Holds the configuration, and tells subscribers of a new one."""

    def __init__(self, config: Config, read: Callable[[], Config]) -> None:
        """``read`` reads it anew from its sources (``ConfigError``)."""
        self._current = config
        self._read = read
        self._subscribers: list[Callable[[Config], None]] = []

    @property
    def current(self) -> Config:
        """The one that is in force."""
        return self._current

    def subscribe(self, take: Callable[[Config], None]) -> None:
        """``take`` is called with the configuration, now and whenever it is replaced, in the order of subscription."""
        self._subscribers.append(take)
        take(self._current)

    def reread(self) -> Config:
        """Read it anew; nothing is replaced yet. ``ConfigError`` also if it has what only a restart can change."""
        config = self._read()
        for section, settings in SETTINGS.items():
            ours, theirs = getattr(self._current, section), getattr(config, section)
            for key, setting in settings.items():
                if setting.held is not None and setting.held(getattr(ours, key)) != setting.held(getattr(theirs, key)):
                    raise ConfigError(f"{section}.{key} cannot change in a reload; restart the daemon for it")
        return config

    def replace(self, config: Config) -> None:
        """From now on this one is in force."""
        self._current = config
        for take in self._subscribers:
            take(config)
