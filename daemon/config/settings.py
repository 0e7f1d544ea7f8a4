"""The configuration: what can be set, from where, and what is wrong with it.

Three sources, the later before the earlier: the TOML file, the environment (``PENSTOCK_HTTP__BIND``), the command line
(``--set http.bind=...``). A value from the last two is a TOML literal, else a bare string. Every error is one line that
names the key, the value and what is allowed.

A variable without ``__`` is no setting and left alone, since other programs make such names: Kubernetes gives every
container ``PENSTOCK_PORT`` and more when a service is called penstock. One that has a section's name and a single
``_`` after it is taken for a slip, and said so.

To add a setting: a field here with its reader, a line in ``etc/penstock.toml``. A test holds the two together.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from penstock.ipc.texts import encodable

from ..host.cgroups import processors

DEFAULT_PATH: Final = "/etc/penstock/penstock.toml"
PREFIX: Final = "PENSTOCK_"
NOT_SETTINGS: Final = frozenset({"PENSTOCK_CONFIG", "PENSTOCK_PRELOAD", "PENSTOCK_TOKEN", "PENSTOCK_URL"})
BIND: Final = "127.0.0.1:8080"
"""``http.bind`` where nothing is configured."""

SUN_PATH: Final = 107
"""Bytes that the path of a Unix socket may have."""
POOL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class ConfigError(Exception):
    """What is wrong, in one line, whatever line breaks the names and values in it have."""

    def __init__(self, why: str) -> None:
        super().__init__(" ".join(why.splitlines()))


class Http(msgspec.Struct, frozen=True):
    bind: str
    socket_mode: int
    socket_owner: str
    admin_bind: str
    max_body: int
    max_connections: int
    header_timeout: float
    body_timeout: float
    stall_timeout: float
    tokens_file: str
    tls_certificate: str
    tls_key: str


class Control(msgspec.Struct, frozen=True):
    socket: str
    mode: int
    owner: str
    username: str
    password: str


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
    max_requests: int
    max_rss: int


class Queue(msgspec.Struct, frozen=True):
    high_water: int
    low_water: int
    max_bytes: int
    target_delay: float


class Throttle(msgspec.Struct, frozen=True):
    enabled: bool
    objective: float


class Database(msgspec.Struct, frozen=True):
    dsn: str
    max_connections: int
    acquire_timeout: float
    prepared_statements: bool


class Supervision(msgspec.Struct, frozen=True):
    start_seconds: float
    start_retries: int
    start_timeout: float
    stop_timeout: float
    state_dir: str


class Log(msgspec.Struct, frozen=True):
    level: str
    format: str
    file_size: int
    files: int


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


# Readers: a raw value to the setting's own type, or ValueError with what is allowed.

Reader = Callable[[Any], Any]
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"([0-9]{1,18})\s*(B|KiB|MiB|GiB|kB|KB|MB|GB)?")
_SIZES: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
LONGEST: Final = 365 * 86400.0
"""Seconds: more than a year is a slip, and what is much more no clock can count to."""
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def duration(least: float = 0.0, above: bool = True) -> Reader:
    """Seconds, as a number or ``"3s"``; above ``least``, or ``least`` and more; at most a year."""
    words = "above" if above else "from"
    allowed = f'seconds {words} {least:g} up to 365 days, as a number or "250ms", "3s", "5m", "7d"'

    def read(value: Any) -> float:
        if isinstance(value, str) and (found := _DURATION.fullmatch(value)):
            value = float(found[1]) * _UNITS[found[2]]
        # Not a number compares false to everything, so it fails here too.
        if not _is_number(value) or not least <= value <= LONGEST or (above and value == least):
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
    return _utf8(value)


def _utf8(value: str) -> str:
    """A text from an argument or the environment may hold bytes that are none, and that workers, libpq and ZeroMQ could
    not be told.
    """
    if encodable(value) != value:
        raise ValueError("UTF-8 text")
    return value


def dsn(value: Any) -> str:
    """Empty, ``off``, or what libpq takes: a URI, or words with ``=`` between."""
    if not isinstance(value, str) or (value not in ("", "off") and "=" not in value and "://" not in value):
        raise ValueError('empty, "off", "postgresql://..." or "host=... dbname=..."')
    return _utf8(value)


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
    return [_utf8(each) for each in value]


def address(value: Any) -> str:
    """``HOST:PORT``, ``[V6]:PORT`` or ``unix:/PATH``. With port 0 the system chooses one that is free."""
    allowed = '"HOST:PORT" (port 0 to 65535; 0: any that is free), "[IPV6]:PORT" or "unix:/ABSOLUTE/PATH"'
    if not isinstance(value, str):
        raise ValueError(allowed)
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > SUN_PATH:
            raise ValueError(f"{allowed} of at most {SUN_PATH} bytes")
        return value
    host, _, port = value.rpartition(":")
    if not _is_host(host) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(allowed)
    return value


def _is_host(host: str) -> bool:
    """Whether it has the form of a name, of an IPv4 address, or of an IPv6 address in brackets."""
    if not host.startswith("["):
        return _HOST.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return host.endswith("]")


def second_address(value: Any) -> str:
    """As ``address``; empty for none."""
    return "" if value == "" else address(value)


def absolute_path(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value or (value and not os.path.isabs(os.path.expanduser(value))):
        raise ValueError("an absolute path, or empty for the default")
    return os.path.expanduser(value)


def socket_path(value: Any) -> str:
    found = absolute_path(value)
    if len(os.fsencode(found)) > SUN_PATH:
        raise ValueError(f"an absolute path of at most {SUN_PATH} bytes, which is all that a Unix socket's can have")
    return found


def file_mode(value: Any) -> int:
    """Permission bits in octal digits."""
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError('permission bits in octal as a string, such as "0600" or "0660"')
    return int(value, 8)


def owner(value: Any) -> str:
    """``USER``, ``USER:GROUP`` or ``:GROUP``; empty for the daemon's own."""
    if not isinstance(value, str) or (value and not re.fullmatch(r"[^:\s]*(:[^:\s]+)?", value)):
        raise ValueError('"USER", "USER:GROUP" or ":GROUP", or empty')
    return value


SETTINGS: Final[dict[str, dict[str, tuple[Any, Reader]]]] = {
    "http": {
        "bind": (BIND, address),
        "socket_mode": ("0660", file_mode),
        "socket_owner": ("", owner),
        "admin_bind": ("", second_address),
        "max_body": ("8MiB", size()),
        "max_connections": (10_000, integer(1)),
        "header_timeout": (5.0, duration()),
        "body_timeout": (30.0, duration()),
        "stall_timeout": (30.0, duration()),
        "tokens_file": ("", absolute_path),
        "tls_certificate": ("", absolute_path),
        "tls_key": ("", absolute_path),
    },
    "control": {
        "socket": ("", socket_path),
        "mode": ("0600", file_mode),
        "owner": ("", owner),
        "username": ("", text),
        "password": ("", text),
    },
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
        "target_delay": (0.05, duration()),
    },
    "throttle": {
        "enabled": (True, boolean),
        "objective": (0.5, duration()),
    },
    "database": {
        "dsn": ("", dsn),
        "max_connections": (20, integer(2, 10_000)),
        "acquire_timeout": (2.0, duration()),
        "prepared_statements": (True, boolean),
    },
    "supervision": {
        "start_seconds": (1.0, duration(above=False)),
        "start_retries": (5, integer(0)),
        "start_timeout": (300.0, duration()),
        "stop_timeout": (30.0, duration(above=False)),
        "state_dir": ("", absolute_path),
    },
    "log": {
        "level": ("info", one_of("debug", "info", "warning", "error")),
        "format": ("text", one_of("text", "json")),
        "file_size": ("10MiB", size(4096)),
        "files": (3, integer(1, 100)),
    },
}
"""Section, key: the default and how a value is read. ``pools`` is apart, since its sections have names of their own."""

POOL_SETTINGS: Final[dict[str, tuple[Any, Reader]]] = {
    "workers": (0, integer(0, 1024)),
    "concurrency": (16, integer(1, 4096)),
    "threads": (8, integer(1, 4096)),
    "agents": (["*"], strings),
    "balance": ("least-loaded", one_of("least-loaded", "round-robin", "hash")),
    "max_requests": (0, integer(0, 1_000_000_000)),
    "max_rss": ("0", size(0)),
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
    for name, key, value in _from_environment(environ, raw.get("pools")):
        _put(raw, key, _literal(value), name)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override}: write it as KEY=VALUE, such as http.bind=127.0.0.1:8080")
        _put(raw, key.strip(), _literal(value.strip()), "--set")
    if agents:
        _put(raw, "agents.modules", list(agents), "--agents")
    if bind is not None:
        _put(raw, "http.bind", bind, "--bind")
    if workers is not None:
        for name in _tables(raw):
            _put(raw, f"pools.{name}.workers", workers, "--workers")
    return _build(raw, environ)


def file(path: str | None, environ: Mapping[str, str]) -> str:
    """The file that ``load`` reads; empty: none, all is built in."""
    return path or environ.get("PENSTOCK_CONFIG") or (DEFAULT_PATH if _is_there(DEFAULT_PATH) else "")


def _is_there(path: str) -> bool:
    """Also if it is not to be seen by this user, who must not get other settings for that."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # reading it will say why not
    return True


def _read_file(path: str | None, environ: Mapping[str, str]) -> dict[str, Any]:
    chosen = file(path, environ)
    if not chosen:
        return {}
    try:
        return tomllib.loads(Path(chosen).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{chosen}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{chosen}: not TOML: {error}") from error


def _from_environment(environ: Mapping[str, str], pools: Any) -> list[tuple[str, str, str]]:
    """Name, key and value of each variable that is a setting. ``pools``: those of the file."""
    found = []
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        section, *parts = name.removeprefix(PREFIX).split("__")
        if not parts:
            _refuse_slip(name, section)
            continue
        if section.lower() == "pools" and len(parts) == 2:
            parts = [_pool_name(parts[0], pools), parts[1].lower()]
        else:
            parts = [part.lower() for part in parts]
        found.append((name, ".".join([section.lower(), *parts]), value))
    return found


def _refuse_slip(name: str, rest: str) -> None:
    """``PENSTOCK_HTTP_BIND`` was meant to be a setting (``ConfigError``); ``PENSTOCK_PORT`` was not."""
    section, separator, key = rest.partition("_")
    if separator and section.lower() in (*SETTINGS, "pools"):
        raise ConfigError(f"{name}: write it with two underscores after the section, {PREFIX}{section}__{key}")


def _pool_name(given: str, pools: Any) -> str:
    """The file's pool of that name, whatever its case, with ``_`` for ``-`` too; else the name in small letters."""
    alike = given.upper().replace("-", "_")
    names = [name for name in pools if name.upper().replace("-", "_") == alike] if isinstance(pools, dict) else []
    return given if given in names or given != given.upper() else next(iter(names), given.lower())


def _literal(value: str) -> Any:
    try:
        found = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        return value
    # More than one key came out of a text of several lines, which is no literal.
    return found["value"] if len(found) == 1 else value


def _put(raw: dict[str, Any], key: str, value: Any, source: str) -> None:
    parts = key.split(".")
    if len(parts) != (3 if parts[0] == "pools" else 2) or not all(parts):
        raise ConfigError(f"{source}: {key} = {_show(value)}: there is no such setting{_suggest(key)}")
    at = raw
    for part in parts[:-1]:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise ConfigError(f"{key}: {part} is {_show(at)} and must be a table")
    at[parts[-1]] = value


def _suggest(key: str) -> str:
    """What may have been meant by a key that is none: the nearest setting, else what there is."""
    section, _, last = key.rpartition(".")
    names = POOL_SETTINGS if section.startswith("pools.") else SETTINGS.get(section, {})
    known = [f"{section}.{name}" for name in names]
    if not known:
        known = [f"{section}.{name}" for section, names in SETTINGS.items() for name in names]
        known += [f"pools.default.{name}" for name in POOL_SETTINGS]
    if close := difflib.get_close_matches(key, known, 1, 0.6):
        return f"; did you mean {close[0]}?"
    if same := [each for each in known if each.rpartition(".")[2] == last]:
        return f"; did you mean {same[0]}?"
    return f"; [{section}] has {', '.join(names)}" if names else f"; the sections are {', '.join([*SETTINGS, 'pools'])}"


def _build(raw: dict[str, Any], environ: Mapping[str, str]) -> Config:
    for section in raw:
        if section not in SETTINGS and section != "pools":
            known = ", ".join([*SETTINGS, "pools"])
            close = difflib.get_close_matches(section, [*SETTINGS, "pools"], 1, 0.6)
            meant = f"did you mean [{close[0]}]?" if close else f"the sections are {known}"
            raise ConfigError(f"{section} = {_show(raw[section])}: there is no such section; {meant}")
    values = {section: _section(section, raw.get(section, {}), names) for section, names in SETTINGS.items()}
    pools = {name: _pool(name, table) for name, table in _tables(raw).items()}
    if isinstance(queue := raw.get("queue", {}), dict) and "low_water" not in queue:
        values["queue"]["low_water"] = values["queue"]["high_water"] * 3 // 4
    if isinstance(http := raw.get("http", {}), dict) and "max_body" not in http:
        values["http"]["max_body"] = min(values["http"]["max_body"], values["queue"]["max_bytes"])
    values["supervision"]["state_dir"] = _state_dir(values["supervision"]["state_dir"], environ)
    values["control"]["socket"] = values["control"]["socket"] or os.path.join(
        environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or values["supervision"]["state_dir"], "control.sock"
    )
    config = Config(
        http=Http(**values["http"]),
        control=Control(**values["control"]),
        agents=Agents(**values["agents"]),
        pools=pools,
        queue=Queue(**values["queue"]),
        throttle=Throttle(**values["throttle"]),
        database=Database(**values["database"]),
        supervision=Supervision(**values["supervision"]),
        log=Log(**values["log"]),
    )
    _check_pairs(config)
    return config


def _check_pairs(config: Config) -> None:
    """What two settings say together."""
    if config.http.tls_key and not config.http.tls_certificate:
        raise ConfigError(f"http.tls_key: {_show(config.http.tls_key)} needs http.tls_certificate, which is empty")
    if bool(config.control.username) != bool(config.control.password):
        raise ConfigError("control.username and control.password: both must be set, or none")
    if ":" in config.control.username:
        raise ConfigError(f"control.username: {_show(config.control.username)} must have no colon")
    if config.http.max_body > config.queue.max_bytes:
        raise ConfigError(
            f"http.max_body: {config.http.max_body} must be at most queue.max_bytes,"
            f" which is {config.queue.max_bytes}: a larger body would never find room"
        )
    if config.queue.low_water >= config.queue.high_water:
        raise ConfigError(
            f"queue.low_water: {config.queue.low_water} must be below queue.high_water,"
            f" which is {config.queue.high_water}"
        )


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
        values["workers"] = 2 * math.ceil(processors())
    return Pool(**values)


def _state_dir(value: str, environ: Mapping[str, str]) -> str:
    # systemd may hand over several, separated by colons; the first is ours.
    given = value or environ.get("STATE_DIRECTORY", "").partition(":")[0]
    found = os.path.expanduser(given or os.path.join("~", ".local", "state", "penstock"))
    if not os.path.isabs(found):
        raise ConfigError(f"supervision.state_dir: {_show(found)}, the default here, is no absolute path: set one")
    if encodable(found) != found:
        # It holds sockets of ZeroMQ, whose addresses are texts.
        raise ConfigError(f"supervision.state_dir: {_show(found)} must be UTF-8 text")
    return found


def _show(value: Any) -> str:
    return repr(value)[:120]
