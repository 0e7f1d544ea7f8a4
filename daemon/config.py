"""The configuration: what can be set, from where, and what is wrong with it.

Three sources, the later before the earlier: the TOML file, the environment (``PENSTOCK_HTTP__BIND``), the command line
(``--set http.bind=...``). A value from the last two is a TOML literal, else a bare string. Every error is one line that
names the key, the value and what is allowed.

To add a setting: a field here with its reader, a line in ``etc/penstock.toml``. A test holds the two together.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

DEFAULT_PATH: Final = "/etc/penstock/penstock.toml"
PREFIX: Final = "PENSTOCK_"
NOT_SETTINGS: Final = frozenset({"PENSTOCK_CONFIG", "PENSTOCK_PRELOAD", "PENSTOCK_URL"})
POOL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class ConfigError(Exception):
    """What is wrong, in one line."""


class Http(msgspec.Struct, frozen=True):
    bind: str
    max_body: int


class Agents(msgspec.Struct, frozen=True):
    modules: list[str]
    timeout: float
    hard_timeout_grace: float
    preload: bool


class Pool(msgspec.Struct, frozen=True):
    workers: int
    concurrency: int
    threads: int
    agents: list[str]
    balance: str


class Queue(msgspec.Struct, frozen=True):
    high_water: int
    low_water: int
    max_bytes: int


class Database(msgspec.Struct, frozen=True):
    dsn: str
    max_connections: int
    acquire_timeout: float


class Supervision(msgspec.Struct, frozen=True):
    start_seconds: float
    start_retries: int
    stop_timeout: float
    state_dir: str


class Log(msgspec.Struct, frozen=True):
    level: str
    format: str


class Config(msgspec.Struct, frozen=True):
    """A whole, checked configuration. Durations are seconds, sizes bytes, 0 workers are counted out."""

    http: Http
    agents: Agents
    pools: dict[str, Pool]
    queue: Queue
    database: Database
    supervision: Supervision
    log: Log


# Readers: a raw value to the setting's own type, or ValueError with what is allowed.

Reader = Callable[[Any], Any]
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"([0-9]+)\s*(B|KiB|MiB|GiB|kB|KB|MB|GB)?")
_SIZES: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def duration(least: float = 0.0, above: bool = True) -> Reader:
    """Seconds, as a number or ``"3s"``; above ``least``, or ``least`` and more."""
    allowed = (
        f'seconds {"above" if above else "from"} {least:g}{"" if above else " up"}, as a number or "250ms", "3s", "5m"'
    )

    def read(value: Any) -> float:
        if isinstance(value, str) and (found := _DURATION.fullmatch(value)):
            value = float(found[1]) * _UNITS[found[2]]
        if not _is_number(value) or value != value or value in (float("inf"), float("-inf")):
            raise ValueError(allowed)
        if value < least or (above and value == least):
            raise ValueError(allowed)
        return float(value)

    return read


def size(least: int = 1) -> Reader:
    """Bytes, as an integer or ``"64KiB"``."""
    allowed = f'bytes from {least} up, as an integer or "64KiB", "8MiB"'

    def read(value: Any) -> int:
        if isinstance(value, str) and (found := _SIZE.fullmatch(value)):
            value = int(found[1]) * _SIZES[found[2] or "B"]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(allowed)
        return value

    return read


def integer(least: int, most: int = 1_000_000) -> Reader:
    """A whole number in a range."""

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"an integer from {least} to {most}")
        return value

    return read


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a string")
    return value


def one_of(*choices: str) -> Reader:
    """One of a few words."""

    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError("one of " + ", ".join(f'"{choice}"' for choice in choices))
        return str(value)

    return read


def strings(value: Any) -> list[str]:
    """A list of non-empty strings; one string stands for itself."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise ValueError('a list of strings, with at least one, such as ["a", "b"]')
    return list(value)


def address(value: Any) -> str:
    """``HOST:PORT``, ``[V6]:PORT`` or ``unix:/PATH``."""
    allowed = '"HOST:PORT" (port 1 to 65535), "[IPV6]:PORT" or "unix:/ABSOLUTE/PATH"'
    if not isinstance(value, str):
        raise ValueError(allowed)
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path.startswith("/") or len(path.encode()) > 107:
            raise ValueError(allowed + " of at most 107 bytes")
        return value
    host, _, port = value.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(allowed)
    return value


def directory(value: Any) -> str:
    if not isinstance(value, str) or (value and not os.path.isabs(os.path.expanduser(value))):
        raise ValueError("an absolute path, or empty for the default")
    return value


SETTINGS: Final[dict[str, dict[str, tuple[Any, Reader]]]] = {
    "http": {"bind": ("127.0.0.1:8080", address), "max_body": ("8MiB", size())},
    "agents": {
        "modules": (["penstock.workers.demo"], strings),
        "timeout": (30.0, duration()),
        "hard_timeout_grace": (1.0, duration()),
        "preload": (False, boolean),
    },
    "queue": {
        "high_water": (1024, integer(1)),
        "low_water": (768, integer(0)),
        "max_bytes": ("256MiB", size()),
    },
    "database": {
        "dsn": ("", text),
        "max_connections": (20, integer(2, 10_000)),
        "acquire_timeout": (2.0, duration()),
    },
    "supervision": {
        "start_seconds": (1.0, duration(above=False)),
        "start_retries": (5, integer(0)),
        "stop_timeout": (30.0, duration(above=False)),
        "state_dir": ("", directory),
    },
    "log": {
        "level": ("info", one_of("debug", "info", "warning", "error")),
        "format": ("text", one_of("text", "json")),
    },
}
"""Section, key: the default and how a value is read. ``pools`` is apart, since its sections have names of their own."""

POOL_SETTINGS: Final[dict[str, tuple[Any, Reader]]] = {
    "workers": (0, integer(0, 1024)),
    "concurrency": (16, integer(1, 4096)),
    "threads": (8, integer(1, 4096)),
    "agents": (["*"], strings),
    "balance": ("least-loaded", one_of("least-loaded", "round-robin", "hash")),
}


def load(
    path: str | None,
    overrides: Sequence[str],
    environ: Mapping[str, str],
    *,
    agents: Sequence[str] = (),
    workers: int | None = None,
    bind: str | None = None,
) -> Config:
    """Read the configuration (``ConfigError``).

    ``path``: the file of ``-c``; None: ``$PENSTOCK_CONFIG``, else ``/etc/penstock/penstock.toml`` if it is there, else
    none. ``overrides``: ``KEY=VALUE`` of ``--set``. The rest are the options of ``penstock serve``; they go before all
    else.
    """
    raw = _read_file(path, environ)
    for key, value in _from_environment(environ):
        _put(raw, key, _literal(value), "the environment")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override}: write it as KEY=VALUE, such as http.bind=127.0.0.1:8080")
        _put(raw, key.strip(), _literal(value), "--set")
    if agents:
        _put(raw, "agents.modules", list(agents), "--agents")
    if bind is not None:
        _put(raw, "http.bind", bind, "--bind")
    if workers is not None:
        for name in raw.get("pools") or {"default": {}}:
            _put(raw, f"pools.{name}.workers", workers, "--workers")
    return _build(raw, environ)


def _read_file(path: str | None, environ: Mapping[str, str]) -> dict[str, Any]:
    chosen = path or environ.get("PENSTOCK_CONFIG") or ""
    if not chosen:
        if not os.path.exists(DEFAULT_PATH):
            return {}
        chosen = DEFAULT_PATH
    try:
        return tomllib.loads(Path(chosen).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{chosen}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{chosen}: not TOML: {error}") from error


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    found = []
    for name, value in sorted(environ.items()):
        if name.startswith(PREFIX) and name not in NOT_SETTINGS:
            parts = name.removeprefix(PREFIX).split("__")
            if parts[0] == "POOLS" and len(parts) == 3:
                # Names of pools keep their case; a pool whose name has capitals is written with them.
                parts[1] = parts[1] if parts[1] != parts[1].upper() else parts[1].lower()
                found.append((f"pools.{parts[1]}.{parts[2].lower()}", value))
            else:
                found.append((".".join(parts).lower(), value))
    return found


def _literal(value: str) -> Any:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def _put(raw: dict[str, Any], key: str, value: Any, source: str) -> None:
    parts = key.split(".")
    if len(parts) != (3 if parts[0] == "pools" else 2) or not all(parts):
        raise ConfigError(f"{source}: {key}: there is no such setting{_suggest(key)}")
    at = raw
    for part in parts[:-1]:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise ConfigError(f"{key}: {part} must be a table")
    at[parts[-1]] = value


def _suggest(key: str) -> str:
    known = [f"{section}.{name}" for section, names in SETTINGS.items() for name in names]
    known += [f"pools.default.{name}" for name in POOL_SETTINGS]
    close = difflib.get_close_matches(key, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _build(raw: dict[str, Any], environ: Mapping[str, str]) -> Config:
    for section in raw:
        if section not in SETTINGS and section != "pools":
            known = ", ".join([*SETTINGS, "pools"])
            raise ConfigError(f"{section}: there is no such section; there are {known}")
    values = {section: _section(section, raw.get(section, {}), names) for section, names in SETTINGS.items()}
    pools = {name: _pool(name, table) for name, table in _tables(raw).items()}
    if isinstance(queue := raw.get("queue", {}), dict) and "low_water" not in queue:
        values["queue"]["low_water"] = values["queue"]["high_water"] * 3 // 4
    values["supervision"]["state_dir"] = _state_dir(values["supervision"]["state_dir"], environ)
    config = Config(
        http=Http(**values["http"]),
        agents=Agents(**values["agents"]),
        pools=pools,
        queue=Queue(**values["queue"]),
        database=Database(**values["database"]),
        supervision=Supervision(**values["supervision"]),
        log=Log(**values["log"]),
    )
    if config.queue.low_water >= config.queue.high_water:
        raise ConfigError(
            f"queue.low_water: {config.queue.low_water} must be below queue.high_water,"
            f" which is {config.queue.high_water}"
        )
    return config


def _tables(raw: dict[str, Any]) -> dict[str, Any]:
    pools = raw.get("pools", {"default": {}})
    if not isinstance(pools, dict) or not pools:
        raise ConfigError(f"pools: {_show(pools)} must be tables with names, such as [pools.default]")
    for name in pools:
        if not POOL_NAME.fullmatch(name):
            raise ConfigError(f"pools.{name}: a pool's name has letters, digits, _ and -, at most 64")
    return pools


def _section(section: str, table: Any, names: Mapping[str, tuple[Any, Reader]]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{section}: {_show(table)} must be a table, [{section}]")
    for key in table:
        if key not in names:
            full = f"{section}.{key}"
            raise ConfigError(f"{full} = {_show(table[key])}: there is no such setting{_suggest(full)}")
    found: dict[str, Any] = {}
    for key, (default, read) in names.items():
        value = table.get(key, default)
        try:
            found[key] = read(value)
        except ValueError as error:
            raise ConfigError(f"{section}.{key}: {_show(value)} must be {error}") from None
    return found


def _pool(name: str, table: Any) -> Pool:
    section = f"pools.{name}"
    if isinstance(table, dict):
        # A smaller concurrency means fewer threads, unless somebody says otherwise.
        concurrency = table.get("concurrency")
        if isinstance(concurrency, int) and not isinstance(concurrency, bool) and concurrency > 0:
            table = {"threads": min(int(POOL_SETTINGS["threads"][0]), concurrency), **table}
    values = _section(section, table, POOL_SETTINGS)
    if values["threads"] > values["concurrency"]:
        raise ConfigError(
            f"{section}.threads: {values['threads']} must be at most {section}.concurrency,"
            f" which is {values['concurrency']}"
        )
    if not values["workers"]:
        values["workers"] = 2 * len(os.sched_getaffinity(0))
    return Pool(**values)


def _state_dir(value: str, environ: Mapping[str, str]) -> str:
    if value:
        return os.path.expanduser(value)
    # systemd may hand over several, separated by colons; the first is ours.
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return given or os.path.join(os.path.expanduser("~"), ".local", "state", "penstock")


def _show(value: Any) -> str:
    return repr(value)[:120]
