"""The configuration: what can be set, its defaults, and what each setting means to a daemon that runs.

A setting is a field of its section's struct. Its annotation holds all else: the default as a file would say it, how a
raw value is read, whether a reload can change it, whether workers are started with it. The tables at the end are
derived from that. To add a setting: a field here, a line in ``etc/penstock.toml``. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, NamedTuple, get_type_hints

import msgspec

from .readers import (
    Reader,
    absolute_path,
    address,
    boolean,
    conninfo,
    duration,
    file_mode,
    integer,
    one_of,
    second_address,
    size,
    socket_path,
    strings,
    text,
    user_and_group,
)

BIND: Final = "127.0.0.1:8080"
"""``http.bind`` where nothing is configured."""


class ConfigError(Exception):
    """What is wrong, in one line, whatever line breaks the names and values in it have."""

    def __init__(self, why: str) -> None:
        super().__init__(" ".join(why.splitlines()))


class Setting(NamedTuple):
    """What there is to know of a setting beside its type."""

    default: Any
    read: Reader
    held: Callable[[Any], object] | None = None
    """What of the value is held open, so that no reload can change it; None: a reload changes it."""
    for_workers: bool = False
    """Workers are started with it, so that a change means new ones."""


def whole(value: Any) -> Any:
    """All of the value is held."""
    return value


class Http(msgspec.Struct, frozen=True):
    bind: Annotated[str, Setting(BIND, address, held=whole)]
    socket_mode: Annotated[int, Setting("0660", file_mode, held=whole)]
    socket_owner: Annotated[str, Setting("", user_and_group, held=whole)]
    admin_bind: Annotated[str, Setting("", second_address, held=whole)]
    max_body: Annotated[int, Setting("8MiB", size())]
    max_connections: Annotated[int, Setting(10_000, integer(1))]
    header_timeout: Annotated[float, Setting(5.0, duration())]
    body_timeout: Annotated[float, Setting(30.0, duration())]
    tokens_file: Annotated[str, Setting("", absolute_path)]
    tls_certificate: Annotated[str, Setting("", absolute_path, held=bool)]
    tls_key: Annotated[str, Setting("", absolute_path)]


class Control(msgspec.Struct, frozen=True):
    socket: Annotated[str, Setting("", socket_path, held=whole)]
    mode: Annotated[int, Setting("0600", file_mode, held=whole)]
    owner: Annotated[str, Setting("", user_and_group, held=whole)]
    username: Annotated[str, Setting("", text)]
    password: Annotated[str, Setting("", text)]


class Agents(msgspec.Struct, frozen=True):
    modules: Annotated[list[str], Setting(["penstock.workers.demo"], strings, for_workers=True)]
    timeout: Annotated[float, Setting(30.0, duration())]
    hard_timeout_grace: Annotated[float, Setting(1.0, duration())]
    preload: Annotated[bool, Setting(False, boolean, for_workers=True)]


class Pool(msgspec.Struct, frozen=True):
    workers: Annotated[int, Setting(0, integer(0, 1024))]
    concurrency: Annotated[int, Setting(16, integer(1, 4096))]
    threads: Annotated[int, Setting(8, integer(1, 4096))]
    agents: Annotated[list[str], Setting(["*"], strings)]
    balance: Annotated[str, Setting("least-loaded", one_of("least-loaded", "round-robin", "hash"))]
    max_requests: Annotated[int, Setting(0, integer(0, 1_000_000_000))]
    max_rss: Annotated[int, Setting("0", size(0))]


class Queue(msgspec.Struct, frozen=True):
    high_water: Annotated[int, Setting(1024, integer(1))]
    low_water: Annotated[int, Setting(768, integer(0))]
    max_bytes: Annotated[int, Setting("256MiB", size())]
    target_delay: Annotated[float, Setting(0.05, duration())]


class Throttle(msgspec.Struct, frozen=True):
    enabled: Annotated[bool, Setting(True, boolean)]
    objective: Annotated[float, Setting(0.5, duration())]


class Database(msgspec.Struct, frozen=True):
    dsn: Annotated[str, Setting("", conninfo, held=whole)]
    max_connections: Annotated[int, Setting(20, integer(2, 10_000), held=whole)]
    acquire_timeout: Annotated[float, Setting(2.0, duration(), for_workers=True)]
    prepared_statements: Annotated[bool, Setting(True, boolean, for_workers=True)]


class Supervision(msgspec.Struct, frozen=True):
    start_seconds: Annotated[float, Setting(1.0, duration(above=False))]
    start_retries: Annotated[int, Setting(5, integer(0))]
    start_timeout: Annotated[float, Setting(300.0, duration())]
    stop_timeout: Annotated[float, Setting(30.0, duration(above=False))]
    state_dir: Annotated[str, Setting("", absolute_path, held=whole)]


class Log(msgspec.Struct, frozen=True):
    level: Annotated[str, Setting("info", one_of("debug", "info", "warning", "error"), for_workers=True)]
    format: Annotated[str, Setting("text", one_of("text", "json"), for_workers=True)]
    file_size: Annotated[int, Setting("10MiB", size(4096))]
    files: Annotated[int, Setting(3, integer(1, 100))]


class Config(msgspec.Struct, frozen=True):
    """A whole, checked configuration. Durations are seconds, sizes bytes, 0 workers are counted out."""

    http: Http
    control: Control
    agents: Agents
    pools: dict[str, Pool]
    queue: Queue
    throttle: Throttle
    database: Database
    supervision: Supervision
    log: Log


def _declared(section: type[msgspec.Struct]) -> dict[str, Setting]:
    """The settings of a section by their keys."""
    hints = get_type_hints(section, include_extras=True)
    return {key: hint.__metadata__[0] for key, hint in hints.items()}


SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    name: section for name, section in get_type_hints(Config).items() if name != "pools"
}
"""The sections by their names. ``pools`` is apart, since its sections have names of their own."""

SETTINGS: Final = {name: _declared(section) for name, section in SECTIONS.items()}
POOL_SETTINGS: Final = _declared(Pool)

FOR_WORKERS: Final = {
    name: [key for key, setting in settings.items() if setting.for_workers] for name, settings in SETTINGS.items()
}
"""The keys, by section, of what all workers are started with, whatever their pool."""
