"""Whichever way a setting comes in, it means the same; and whatever comes in, the answer is a configuration or one line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.daemon.config.settings import POOL_SETTINGS, SETTINGS, Config, ConfigError
from penstock.daemon.config.sources import load

Values = dict[str, dict[str, Any]]

words = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=12)
durations = st.one_of(
    st.floats(0.001, 31_536_000, allow_nan=False),
    st.integers(1, 31_536_000),
    st.builds("{}{}".format, st.integers(1, 300), st.sampled_from(["ms", "s", "m", "h", "d"])),
)
sizes = st.one_of(
    st.integers(4096, 2**62), st.builds("{}{}".format, st.integers(5, 999), st.sampled_from(["KiB", "KB", "MiB", "GB"]))
)
addresses = st.one_of(
    st.builds("{}:{}".format, words, st.integers(1, 65535)),
    st.builds("[::{:x}]:{}".format, st.integers(0, 65535), st.integers(1, 65535)),
    st.builds("unix:/{}".format, words),
)
paths = st.builds("/{}".format, words)
lists = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=3)

GOOD: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "http": {
        "bind": addresses,
        "admin_bind": addresses,
        "max_body": st.integers(1, 10**6),
        "max_connections": st.integers(1, 100_000),
        "header_timeout": durations,
        "body_timeout": durations,
        "tokens_file": paths,
        "tls_certificate": paths,
        "socket_mode": st.integers(0, 0o777).map("{:04o}".format),
        "socket_owner": st.builds("{}:{}".format, words, words),
    },
    "control": {
        "socket": paths,
        "mode": st.integers(0, 0o777).map("{:04o}".format),
        "owner": st.builds("{}:{}".format, words, words),
    },
    "agents": {
        "modules": lists,
        "timeout": durations,
        "hard_timeout_grace": durations,
        "preload": st.booleans(),
    },
    "queue": {
        "high_water": st.integers(1000, 1_000_000),
        "low_water": st.integers(0, 999),
        "max_bytes": st.integers(10**6, 2**62) | st.integers(1, 999).map("{}MiB".format),
    },
    "database": {
        "dsn": st.one_of(st.just("off"), st.builds("host={} password='{}#\"'".format, words, words)),
        "max_connections": st.integers(2, 10_000),
        "acquire_timeout": durations,
        "prepared_statements": st.booleans(),
    },
    "supervision": {
        "start_seconds": durations,
        "start_retries": st.integers(0, 100),
        "stop_timeout": durations,
        "state_dir": paths,
    },
    "log": {
        "level": st.sampled_from(["debug", "info", "warning", "error"]),
        "format": st.sampled_from(["text", "json"]),
        "file_size": sizes,
        "files": st.integers(1, 100),
    },
    "pools.default": {
        "workers": st.integers(1, 1024),
        "concurrency": st.integers(16, 4096),
        "threads": st.integers(1, 16),
        "agents": lists,
        "balance": st.sampled_from(["least-loaded", "round-robin", "hash"]),
    },
}

good = st.fixed_dictionaries(
    {section: st.fixed_dictionaries({}, optional=names) for section, names in GOOD.items()}
)  # fmt: skip


def literal(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in value)
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(literal(each) for each in value) + "]"
    return repr(value)


def from_file(text: str | bytes) -> Config:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "penstock.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(str(path), [], {})


def pairs(values: Values) -> list[tuple[str, Any]]:
    return [(f"{section}.{key}", value) for section, names in values.items() for key, value in names.items()]


EMPTY = "/dev/null"
"""A file without settings, so that none of this host's is read."""


@settings(max_examples=50, deadline=None)
@given(good)
def test_a_setting_means_the_same_from_every_source(values: Values) -> None:
    file = "".join(
        f"[{section}]\n" + "".join(f"{key} = {literal(value)}\n" for key, value in names.items())
        for section, names in values.items()
    )
    expected = from_file(file)
    assert load(EMPTY, [f"{key}={literal(value)}" for key, value in pairs(values)], {}) == expected
    environ = {"PENSTOCK_" + key.replace(".", "__").upper(): literal(value) for key, value in pairs(values)}
    assert load(EMPTY, [], environ) == expected


@settings(max_examples=50, deadline=None)
@given(good)
def test_a_bare_string_means_the_same_as_a_quoted_one(values: Values) -> None:
    plain = [(key, value) for key, value in pairs(values) if isinstance(value, str) and not value.isdecimal()]
    quoted = load(EMPTY, [f"{key}={literal(value)}" for key, value in plain], {})
    assert load(EMPTY, [f"{key}={value}" for key, value in plain], {}) == quoted


@settings(max_examples=50, deadline=None)
@given(good, good)
def test_the_later_source_wins_key_by_key(below: Values, above: Values) -> None:
    merged = {section: {**below[section], **above[section]} for section in below}
    environ = {"PENSTOCK_" + key.replace(".", "__").upper(): literal(value) for key, value in pairs(below)}
    overrides = [f"{key}={literal(value)}" for key, value in pairs(above)]
    assert load(EMPTY, overrides, environ) == load(
        EMPTY, [f"{key}={literal(value)}" for key, value in pairs(merged)], {}
    )


@settings(max_examples=50, deadline=None)
@given(good)
def test_what_was_read_reads_as_itself(values: Values) -> None:
    """Durations as seconds and sizes as bytes come out as they went in."""
    first = load(EMPTY, [f"{key}={literal(value)}" for key, value in pairs(values)], {})
    again = []
    for section, names in GOOD.items():
        found = first.pools["default"] if section == "pools.default" else getattr(first, section)
        again += [f"{section}.{key}={literal(getattr(found, key))}" for key in names if not key.endswith("mode")]
    again += [f'control.mode="{first.control.mode:04o}"', f'http.socket_mode="{first.http.socket_mode:04o}"']
    assert load(EMPTY, again, {}) == first


# Whatever comes in

keys = st.one_of(
    st.sampled_from(
        [f"{section}.{key}" for section, names in SETTINGS.items() for key in names]
        + [f"pools.{pool}.{key}" for pool in ("default", "x", "a b", "") for key in POOL_SETTINGS]
        + [*SETTINGS, "pools", "pools.default"]
    ),
    st.text(max_size=20),
)
texts = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    durations.map(str),
    sizes.map(str),
    addresses,
    st.recursive(
        st.one_of(st.booleans(), st.integers(), st.text(max_size=5)), lambda inner: st.lists(inner, max_size=3)
    ).map(literal),
    st.sampled_from(["{}", "{a = 1}", "[{}]", "1979-05-27", "07:32:00", "nan", "inf", "0xff", "'''\n'''"]),
)


def explained(read: Callable[[], Config]) -> tuple[Config | None, str]:
    """The configuration, or why there is none. Any other exception is a bug."""
    try:
        return read(), ""
    except ConfigError as error:
        return None, str(error)


def answers(overrides: list[str], environ: dict[str, str]) -> None:
    """The answer is a configuration that keeps what it promises, or an explanation."""
    config, why = explained(lambda: load(EMPTY, overrides, environ))
    if config is None:
        assert why.strip()
        assert len(why.splitlines()) == 1
        assert len(why) < 1000
        return
    assert 0 <= config.queue.low_water < config.queue.high_water
    assert config.pools
    for pool in config.pools.values():
        assert 1 <= pool.threads <= pool.concurrency
        assert pool.workers >= 1
        assert pool.agents
    assert config.agents.timeout > 0
    assert config.agents.modules
    assert config.supervision.state_dir.startswith("/")
    assert config.http.max_body >= 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(keys, texts), max_size=4))
def test_any_override_is_taken_or_explained(given_pairs: list[tuple[str, str]]) -> None:
    answers([f"{key}={text}" for key, text in given_pairs], {})


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(keys.map(lambda key: "PENSTOCK_" + key.replace(".", "__").upper()), texts, max_size=4))
def test_any_variable_is_taken_left_alone_or_explained(environ: dict[str, str]) -> None:
    answers([], {name: value for name, value in environ.items() if name != "PENSTOCK_CONFIG"})


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.tuples(st.sampled_from([*SETTINGS, "pools.a", "pools", "x"]), keys, texts), max_size=4).map(
            lambda rows: "".join(f"[{section}]\n{key} = {text}\n" for section, key, text in rows).encode(
                errors="surrogatepass"
            )
        ),
    )
)
def test_any_file_is_taken_or_explained(content: bytes) -> None:
    config, why = explained(lambda: from_file(content))
    assert config is not None or len(why.splitlines()) == 1
