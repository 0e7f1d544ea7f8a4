"""The one holder of the configuration."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest

from penstock.daemon.config.configuration import Configuration
from penstock.daemon.config.settings import Config, ConfigError
from penstock.daemon.config.sources import load


def read(*settings: str) -> Config:
    return load("/dev/null", settings, {})


def test_subscribers_get_what_is_in_force_at_once_and_each_later_one_in_order() -> None:
    first, second = read(), read("queue.high_water=7")
    configuration = Configuration(first, lambda: second)
    taken: list[tuple[str, Config, Config]] = []

    def take(name: str, config: Config) -> None:
        taken.append((name, config, configuration.current))

    for name in ("a", "b"):
        configuration.subscribe(partial(take, name))
    configuration.replace(second)
    assert taken == [("a", first, first), ("b", first, first), ("a", second, second), ("b", second, second)]
    assert configuration.current is second


def test_reading_anew_replaces_nothing() -> None:
    first, second = read(), read("queue.high_water=7")
    configuration = Configuration(first, lambda: second)
    assert configuration.reread() is second
    assert configuration.current is first


HELD = [
    "http.bind=127.0.0.1:1",
    "http.socket_mode='0600'",
    "http.socket_owner=daemon",
    "http.admin_bind=127.0.0.1:1",
    "http.tls_certificate=/a",
    "control.socket=/a",
    "control.mode='0660'",
    "control.owner=daemon",
    "database.dsn=off",
    "database.max_connections=7",
    "supervision.state_dir=/a",
]


@pytest.mark.parametrize("setting", HELD)
def test_what_is_held_open_cannot_change(setting: str) -> None:
    fixed = ["control.socket=/s"] if not setting.startswith("control.socket") else []
    configuration = Configuration(read(*fixed), lambda: read(*fixed, setting))
    with pytest.raises(ConfigError, match=rf"^{setting.partition('=')[0]} cannot change in a reload"):
        configuration.reread()


def test_another_certificate_can_be_taken_but_not_none() -> None:
    configuration = Configuration(read("http.tls_certificate=/a"), lambda: read("http.tls_certificate=/b"))
    assert configuration.reread().http.tls_certificate == "/b"


def test_everything_else_can_change() -> None:
    held = {setting.partition("=")[0] for setting in HELD}
    first = read()
    for section in ("http", "control", "agents", "queue", "throttle", "database", "supervision", "log"):
        values = getattr(first, section)
        for field in msgspec.structs.fields(values):
            if f"{section}.{field.name}" not in held:
                # Whether the values fit together is for the sources to say.
                other = msgspec.structs.replace(values, **{field.name: object()})
                changed = msgspec.structs.replace(first, **{section: other})
                assert Configuration(first, [changed].pop).reread() is changed
