"""What a daemon that runs cannot change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .settings import Config, ConfigError

RESTART_ONLY: Final[tuple[tuple[str, Callable[[Config], object]], ...]] = (
    ("http.bind", lambda config: config.http.bind),
    ("http.admin_bind", lambda config: config.http.admin_bind),
    ("http.socket_mode", lambda config: config.http.socket_mode),
    ("http.socket_owner", lambda config: config.http.socket_owner),
    ("http.tls_certificate", lambda config: bool(config.http.tls_certificate)),
    ("control.socket", lambda config: config.control.socket),
    ("control.mode", lambda config: config.control.mode),
    ("control.owner", lambda config: config.control.owner),
    ("database.dsn", lambda config: config.database.dsn),
    ("database.max_connections", lambda config: config.database.max_connections),
    ("supervision.state_dir", lambda config: config.supervision.state_dir),
)
"""Settings that a reload cannot change, since they are held open. Of the certificate it is whether there is one."""


def check_fixed(before: Config, config: Config) -> None:
    """Whether a daemon that runs with ``before`` can take this configuration (``ConfigError``)."""
    for key, value in RESTART_ONLY:
        if value(config) != value(before):
            raise ConfigError(f"{key} cannot change in a reload; restart the daemon for it")
