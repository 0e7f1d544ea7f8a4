"""Where the configuration comes from, and what is wrong with it.

Three sources, the later before the earlier: the TOML file, the environment (``PENSTOCK_HTTP__BIND``), the command line
(``--set http.bind=...``). A value from the last two is a TOML literal, else a bare string. Every error is one line that
names the key, the value and what is allowed.

A variable without ``__`` is no setting and left alone, since other programs make such names: Kubernetes gives every
container ``PENSTOCK_PORT`` and more when a service is called penstock. One that has a section's name and a single
``_`` after it is taken for a slip, and said so.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from penstock.ipc.texts import encodable

from ..host.cgroups import processors
from .settings import POOL_SETTINGS, SECTIONS, SETTINGS, Config, ConfigError, Pool, Setting

DEFAULT_PATH: Final = "/etc/penstock/penstock.toml"
PREFIX: Final = "PENSTOCK_"
NOT_SETTINGS: Final = frozenset({"PENSTOCK_CONFIG", "PENSTOCK_PRELOAD", "PENSTOCK_TOKEN", "PENSTOCK_URL"})
POOL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


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
    sections: dict[str, Any] = {name: section(**values[name]) for name, section in SECTIONS.items()}
    config = Config(pools=pools, **sections)
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
            f" which is {config.queue.max_bytes}: a larger body would never fit into the queue"
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


def _section(section: str, table: Any, names: Mapping[str, Setting]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{section}: {_show(table)} must be a table, [{section}]")
    for key in table:
        if key not in names:
            full = f"{section}.{key}"
            raise ConfigError(f"{full} = {_show(table[key])}: there is no such setting{_suggest(full)}")
    found: dict[str, Any] = {}
    for key, setting in names.items():
        value = table.get(key, setting.default)
        try:
            found[key] = setting.read(value)
        except ValueError as error:
            raise ConfigError(f"{section}.{key}: {_show(value)} must be {error}") from None
    return found


def _pool(name: str, table: Any) -> Pool:
    section = f"pools.{name}"
    if isinstance(table, dict):
        # A smaller concurrency means fewer threads, unless somebody says otherwise.
        concurrency = table.get("concurrency")
        if isinstance(concurrency, int) and not isinstance(concurrency, bool) and concurrency > 0:
            table = {"threads": min(int(POOL_SETTINGS["threads"].default), concurrency), **table}
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
        raise ConfigError(f"supervision.state_dir: {_show(found)}, the default here, is not an absolute path: set one")
    if encodable(found) != found:
        # It holds sockets of ZeroMQ, whose addresses are texts.
        raise ConfigError(f"supervision.state_dir: {_show(found)} must be UTF-8 text")
    return found


def _show(value: Any) -> str:
    return repr(value)[:120]
