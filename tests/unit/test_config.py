"""The configuration: its sources and their order, what is read how, and the one line for everything that is wrong."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.daemon.config import sources as module
from penstock.daemon.config.settings import POOL_SETTINGS, SETTINGS, Config, ConfigError
from penstock.daemon.config.sources import load

REFERENCE = Path(__file__).parents[2] / "etc" / "penstock.toml"

Write = Callable[[str], str]


@pytest.fixture(autouse=True)
def no_file_of_this_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "DEFAULT_PATH", str(tmp_path / "none.toml"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        path = tmp_path / "penstock.toml"
        path.write_text(text)
        return str(path)

    return write


def read(*overrides: str, path: str | None = None, environ: Mapping[str, str] | None = None, **more: Any) -> Config:
    return load(path, overrides, environ or {}, **more)


def wrong(*overrides: str, path: str | None = None, environ: Mapping[str, str] | None = None, **more: Any) -> str:
    """The one line for a configuration that is refused."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, environ or {}, **more)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


def value_of(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


# Defaults and the reference


def test_without_any_source_all_is_built_in() -> None:
    config = read()
    assert config.http.bind == "127.0.0.1:8080"
    assert config.http.max_body == 8 * 2**20
    assert config.agents.modules == ["penstock.workers.demo"]
    assert list(config.pools) == ["default"]
    assert (config.queue.high_water, config.queue.low_water, config.queue.max_bytes) == (1024, 768, 256 * 2**20)
    assert config.database.dsn == ""
    assert os.path.isabs(config.supervision.state_dir)


def test_the_reference_shows_every_setting_with_its_default() -> None:
    shown = tomllib.loads(REFERENCE.read_text())
    pools = shown.pop("pools")
    assert shown == {
        section: {key: setting.default for key, setting in names.items()} for section, names in SETTINGS.items()
    }
    assert pools == {"default": {key: setting.default for key, setting in POOL_SETTINGS.items()}}


def test_the_reference_says_something_about_every_setting() -> None:
    lines = REFERENCE.read_text().splitlines()
    settings = [line for line in lines if re.match(r"[a-z_]+ = ", line)]
    assert settings
    assert [line for line in settings if "#" not in line] == []


def test_the_reference_is_the_default_configuration() -> None:
    assert read(path=str(REFERENCE)) == read()


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(AttributeError):
        read().http.bind = "0.0.0.0:80"  # type: ignore[misc]


# Sources


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(write: Write) -> None:
    path = write("[agents]\ntimeout = 1\nhard_timeout_grace = 1\n[log]\nlevel = 'error'\n[queue]\nhigh_water = 50\n")
    environ = {"PENSTOCK_AGENTS__TIMEOUT": "2", "PENSTOCK_LOG__LEVEL": "debug"}
    config = read("agents.timeout=3", path=path, environ=environ)
    assert config.agents.timeout == 3.0
    assert config.log.level == "debug"
    assert config.agents.hard_timeout_grace == 1.0
    assert config.queue.high_water == 50


def test_of_two_overrides_the_last_counts() -> None:
    assert read("http.bind=a:1", "http.bind=a:2").http.bind == "a:2"


def test_the_options_of_serve_go_before_all_else(write: Write) -> None:
    path = write("[pools.fast]\nworkers = 1\n[pools.slow]\n")
    config = read(
        "http.bind=a:1", "agents.modules=['x']", "pools.fast.workers=7",
        path=path, agents=["one", "two"], workers=3, bind="b:2",
    )  # fmt: skip
    assert config.http.bind == "b:2"
    assert config.agents.modules == ["one", "two"]
    assert {name: pool.workers for name, pool in config.pools.items()} == {"fast": 3, "slow": 3}


def test_the_option_workers_sets_the_pool_that_is_built_in() -> None:
    assert {name: pool.workers for name, pool in read(workers=5).pools.items()} == {"default": 5}


def test_the_file_is_the_named_one_else_the_environments_else_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("named", "environment", "host"):
        (tmp_path / name).write_text(f"[http]\nbind = '{name}:1'\n")
    environ = {"PENSTOCK_CONFIG": str(tmp_path / "environment")}
    assert read(path=str(tmp_path / "named"), environ=environ).http.bind == "named:1"
    assert read(environ=environ).http.bind == "environment:1"
    assert read(environ={"PENSTOCK_CONFIG": ""}).http.bind == "127.0.0.1:8080"
    monkeypatch.setattr(module, "DEFAULT_PATH", str(tmp_path / "host"))
    assert read().http.bind == "host:1"
    assert module.file(None, {}) == str(tmp_path / "host")


def test_a_file_of_the_host_that_cannot_be_seen_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(module, "DEFAULT_PATH", str(tmp_path / "loop"))
    with pytest.raises(ConfigError, match=r"loop: Too many levels"):
        read()


@pytest.mark.parametrize(
    ("variable", "given", "key", "value"),
    [
        ("PENSTOCK_HTTP__BIND", "[::1]:9", "http.bind", "[::1]:9"),
        ("PENSTOCK_HTTP__BIND", '"h:9"', "http.bind", "h:9"),
        ("PENSTOCK_HTTP__MAX_BODY", "1KiB", "http.max_body", 1024),
        ("PENSTOCK_HTTP__MAX_BODY", "1_000", "http.max_body", 1000),
        ("PENSTOCK_AGENTS__MODULES", '["a", "b"]', "agents.modules", ["a", "b"]),
        ("PENSTOCK_AGENTS__MODULES", "a.b", "agents.modules", ["a.b"]),
        ("PENSTOCK_AGENTS__PRELOAD", "true", "agents.preload", True),
        ("PENSTOCK_DATABASE__DSN", "host=h dbname=d", "database.dsn", "host=h dbname=d"),
        ("PENSTOCK_DATABASE__DSN", "postgresql://u:p@h/d?x=1#y", "database.dsn", "postgresql://u:p@h/d?x=1#y"),
    ],
)
def test_values_of_the_environment_and_of_set_are_literals_else_bare_strings(
    variable: str, given: str, key: str, value: Any
) -> None:
    assert value_of(read(environ={variable: given}), key) == value
    assert value_of(read(f"{key}={given}"), key) == value
    assert value_of(read(f" {key} = {given} "), key) == value


def test_a_value_of_several_lines_is_no_literal() -> None:
    assert "'127.0.0.1:1\\nqueue = 2'" in wrong("http.bind=127.0.0.1:1\nqueue = 2")
    assert "'1\\nx = 2'" in wrong("queue.high_water=1\nx = 2")


@pytest.mark.parametrize("name", ["PENSTOCK_CONFIG", "PENSTOCK_PRELOAD", "PENSTOCK_TOKEN", "PENSTOCK_URL"])
def test_variables_of_the_commands_are_no_settings(name: str, write: Write) -> None:
    assert read(environ={name: write("")}) == read()


@pytest.mark.parametrize("name", ["PENSTOCK_PORT", "PENSTOCK_SERVICE_HOST", "PENSTOCK_PORT_8080_TCP_ADDR", "OTHER__X"])
def test_variables_of_other_programs_are_left_alone(name: str) -> None:
    assert read(environ={name: "tcp://10.0.0.1:8080"}) == read()


# Pools


def test_zero_workers_are_two_for_each_cpu_that_may_be_used() -> None:
    assert read().pools["default"].workers == 2 * len(os.sched_getaffinity(0))
    assert read("pools.default.workers=1").pools["default"].workers == 1


def test_a_pool_that_is_named_takes_the_place_of_the_one_that_is_built_in(write: Write) -> None:
    config = read(path=write("[pools.gpu]\nworkers = 1\nagents = 'score*'\nbalance = 'hash'\n"))
    assert list(config.pools) == ["gpu"]
    assert config.pools["gpu"].agents == ["score*"]
    assert config.pools["gpu"].balance == "hash"


def test_pools_keep_the_order_of_the_file(write: Write) -> None:
    assert list(read(path=write("[pools.z]\n[pools.a]\n[pools.m]\n")).pools) == ["z", "a", "m"]


@pytest.mark.parametrize(
    ("variable", "pool"),
    [
        ("PENSTOCK_POOLS__DEFAULT__WORKERS", "default"),
        ("PENSTOCK_POOLS__GPU__WORKERS", "GPU"),
        ("PENSTOCK_POOLS__BIG_ONES__WORKERS", "Big-Ones"),
        ("PENSTOCK_POOLS__Big-Ones__WORKERS", "Big-Ones"),
        ("PENSTOCK_POOLS__NEW__WORKERS", "new"),
        ("PENSTOCK_POOLS__New__WORKERS", "New"),
    ],
)
def test_a_variable_finds_the_files_pool_in_any_case(variable: str, pool: str, write: Write) -> None:
    path = write("[pools.default]\nworkers = 1\n[pools.GPU]\nworkers = 1\n[pools.Big-Ones]\nworkers = 1\n")
    pools = read(path=path, environ={variable: "9"}).pools
    assert {name for name, each in pools.items() if each.workers == 9} == {pool}


def test_a_smaller_concurrency_brings_fewer_threads_unless_said_otherwise() -> None:
    assert read("pools.default.concurrency=4").pools["default"].threads == 4
    assert read("pools.default.concurrency=32").pools["default"].threads == 8
    assert read("pools.default.concurrency=4", "pools.default.threads=2").pools["default"].threads == 2
    assert "pools.default.threads: 5" in wrong("pools.default.concurrency=4", "pools.default.threads=5")


# What follows from something else


def test_the_low_mark_is_three_quarters_of_the_high_one() -> None:
    assert read("queue.high_water=100").queue.low_water == 75
    assert read("queue.high_water=1").queue.low_water == 0
    assert read("queue.high_water=100", "queue.low_water=99").queue.low_water == 99


def test_a_body_is_never_larger_than_what_may_wait() -> None:
    assert read().http.max_body == 8 * 2**20
    assert read("queue.max_bytes=1MiB").http.max_body == 2**20
    assert read("queue.max_bytes=1MiB", "http.max_body=1MiB").http.max_body == 2**20
    assert read("http.max_body=256MiB").http.max_body == read().queue.max_bytes
    said = wrong("http.max_body=300MiB")
    assert said.startswith("http.max_body: 314572800 must be at most queue.max_bytes, which is 268435456")
    assert "http.max_body: 2048 must be at most" in wrong("queue.max_bytes=1KiB", "http.max_body=2KiB")


@pytest.mark.parametrize(
    ("given", "environ", "found"),
    [
        ("/set", {"STATE_DIRECTORY": "/systemd"}, "/set"),
        ("", {"STATE_DIRECTORY": "/systemd"}, "/systemd"),
        ("", {"STATE_DIRECTORY": "/one:/two"}, "/one"),
        ("", {}, "/home/somebody/.local/state/penstock"),
        ("~/here", {}, "/home/somebody/here"),
    ],
)
def test_where_the_state_is_kept(
    given: str, environ: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert read(f"supervision.state_dir={given}", environ=environ).supervision.state_dir == found


def test_without_a_home_the_state_directory_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(path: str) -> str:
        return path

    monkeypatch.setattr(os.path, "expanduser", nowhere)
    assert wrong().startswith("supervision.state_dir: ")
    assert read("supervision.state_dir=/x").supervision.state_dir == "/x"


def test_the_control_socket_lies_in_the_runtime_directory_else_with_the_state() -> None:
    environ = {"STATE_DIRECTORY": "/state"}
    assert read(environ=environ).control.socket == "/state/control.sock"
    assert read(environ={**environ, "RUNTIME_DIRECTORY": "/run/p:/run/q"}).control.socket == "/run/p/control.sock"
    assert read("control.socket=/x/y", environ=environ).control.socket == "/x/y"


# How values are read


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("3", 3.0), ("0.25", 0.25), ('"3s"', 3.0), ("3s", 3.0), ("250ms", 0.25), ("1.5m", 90.0), ("2h", 7200.0),
     ("7d", 604800.0), ("365d", 31536000.0)],
)  # fmt: skip
def test_durations(given: str, seconds: float) -> None:
    found = read(f"agents.timeout={given}").agents.timeout
    assert found == pytest.approx(seconds)
    assert isinstance(found, float)


@pytest.mark.parametrize(
    "given",
    ["0", "-1", "-1s", "nan", "inf", "-inf", "true", '""', "", "s", "3 s", "3S", "3w", "1e3s", "366d", "1e400", "[3]",
     "9" * 400, "9" * 5000 + "d", "3s\n"],
)  # fmt: skip
def test_what_is_no_duration(given: str) -> None:
    line = wrong(f'agents.timeout="""{given}"""' if "\n" in given else f"agents.timeout={given}")
    assert line.startswith("agents.timeout: ")
    assert "250ms" in line


def test_some_durations_may_be_zero() -> None:
    assert read("supervision.start_seconds=0").supervision.start_seconds == 0.0
    assert read("supervision.stop_timeout=0s").supervision.stop_timeout == 0.0
    assert "from 0 up" in wrong("supervision.stop_timeout=-1")


@pytest.mark.parametrize(
    ("given", "size"),
    [("1", 1), ("65536", 65536), ("64KiB", 65536), ("64 KiB", 65536), ("8MiB", 8388608), ("1GiB", 2**30),
     ("5B", 5), ("2kB", 2000), ("2KB", 2000), ("2MB", 2_000_000), ("2GB", 2_000_000_000)],
)  # fmt: skip
def test_sizes(given: str, size: int) -> None:
    assert read(f"http.max_body={given}", "queue.max_bytes=4GiB").http.max_body == size


@pytest.mark.parametrize(
    "given", ["0", "-1", "1.5", "1.5MiB", "true", "MiB", "1kib", "1TiB", "", "9" * 5000 + "B", "[]"]
)
def test_what_is_no_size(given: str) -> None:
    line = wrong(f"http.max_body={given}")
    assert line.startswith("http.max_body: ")
    assert "64KiB" in line


@pytest.mark.parametrize(
    "bind",
    ["127.0.0.1:8080", "127.0.0.1:0", "0.0.0.0:1", "localhost:65535", "a-b.example.org:80", "[::]:80", "[::1]:80", "[fe80::1%eth0]:80",
     "unix:/run/penstock/http.sock", "unix:/" + "x" * 106],
)  # fmt: skip
def test_addresses(bind: str) -> None:
    assert read(bind=bind).http.bind == bind


@pytest.mark.parametrize(
    "bind",
    ["", "8080", ":8080", "localhost", "localhost:", "localhost:65537", "localhost:65536", "localhost:http", "localhost:-1",
     "localhost:+80", "localhost: 80", "a b:80", "a/b:80", "http://localhost:80", "::1:80", "[::1]", "[::1", "[::1:80", "[:80",
     "[]:80", "[zz]:80", "[127.0.0.1]:80", "[[::1]]:80", "*:80", "-x:80", "localhost:\u0661", "a\nb:80",
     "unix:", "unix:relative", "unix:/" + "x" * 107, "unix:/a\0b"],
)  # fmt: skip
def test_what_is_no_address(bind: str) -> None:
    line = wrong(bind=bind)
    assert line.startswith(f"http.bind: {bind!r}"[:120])
    assert '"HOST:PORT"' in line


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("http.bind=8080", '"HOST:PORT"'),
        ("http.admin_bind=nonsense", '"HOST:PORT"'),
        ("http.max_connections=0", "an integer from 1 to"),
        ("http.tokens_file=relative", "an absolute path"),
        ('http.tls_certificate="/a\\u0000b"', "an absolute path"),
        ("control.socket=relative", "an absolute path"),
        ("control.socket=/" + "x" * 107, "107 bytes"),
        ("control.mode=600", "octal as a string"),
        ('control.mode="0888"', "octal as a string"),
        ('control.owner="a:b:c"', '"USER:GROUP"'),
        ("agents.modules=[]", "at least one"),
        ("agents.modules=['']", "at least one"),
        ("agents.modules=''", "at least one"),
        ("agents.modules=[1]", "a list of strings"),
        ("agents.modules=7", "a list of strings"),
        ("agents.preload=1", "true or false"),
        ("agents.preload='true'", "true or false"),
        ("agents.preload=yes", "true or false"),
        ("pools.default.workers=-1", "an integer from 0 to 1024"),
        ("pools.default.workers=2.0", "an integer from 0 to 1024"),
        ("pools.default.workers=two", "an integer from 0 to 1024"),
        ("pools.default.concurrency=0", "an integer from 1 to 4096"),
        ("pools.default.threads=0", "an integer from 1 to 4096"),
        ("pools.default.agents=[]", "at least one"),
        ("pools.default.balance=random", '"least-loaded", "round-robin", "hash"'),
        ("pools.default.balance=[1]", '"least-loaded", "round-robin", "hash"'),
        ("queue.high_water=0", "an integer from 1 to"),
        ("queue.low_water=-1", "an integer from 0 to"),
        ("queue.max_bytes=many", "64KiB"),
        ("database.dsn=1", '"off"'),
        ("database.dsn=none", '"off"'),
        ("database.max_connections=1", "an integer from 2 to"),
        ("database.acquire_timeout=0", "seconds above 0"),
        ("supervision.start_retries=-1", "an integer from 0 to"),
        ("supervision.state_dir=relative/path", "an absolute path"),
        ("supervision.state_dir=~nobody-of-that-name/x", "an absolute path"),
        ("log.level=verbose", '"debug", "info", "warning", "error"'),
        ("log.level=INFO", '"debug", "info", "warning", "error"'),
        ("log.format=xml", '"text", "json"'),
        ("log.file_size=1", "bytes from 4096 up"),
        ("log.files=0", "an integer from 1 to 100"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(override: str, allowed: str) -> None:
    key, _, value = override.partition("=")
    line = wrong(override)
    assert line.startswith(f"{key}: ")
    assert value.strip("'\"[]")[:80].replace("\\u0000", "\\x00") in line
    assert " must be " in line
    assert allowed in line


@pytest.mark.parametrize(
    "key", ["agents.modules", "pools.default.agents", "database.dsn", "control.password", "supervision.state_dir"]
)
def test_bytes_that_are_no_text_are_refused_where_a_text_is_needed(key: str) -> None:
    assert wrong(f"{key}=/x=caf\udce9") in (
        f"{key}: '/x=caf\\udce9' must be UTF-8 text",
        f"{key}: ['/x=caf\\udce9'] must be UTF-8 text",
    )


# What two settings say together


@pytest.mark.parametrize(
    ("overrides", "key", "other"),
    [
        (["queue.high_water=10", "queue.low_water=11"], "queue.low_water: 11", "queue.high_water, which is 10"),
        (["queue.high_water=10", "queue.low_water=10"], "queue.low_water: 10", "queue.high_water, which is 10"),
        (["queue.low_water=2000"], "queue.low_water: 2000", "queue.high_water, which is 1024"),
        (["pools.default.threads=17"], "pools.default.threads: 17", "pools.default.concurrency, which is 16"),
        (["http.tls_key=/key"], "http.tls_key: '/key'", "http.tls_certificate"),
        (["control.username=me"], "control.username", "control.password"),
        (["control.password=secret"], "control.username", "control.password"),
        (["control.username=a:b", "control.password=x"], "control.username: 'a:b'", "no colon"),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(overrides: list[str], key: str, other: str) -> None:
    line = wrong(*overrides)
    assert line.startswith(key)
    assert other in line


# Names that there are not


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("http.bnid=1", "did you mean http.bind?"),
        ("http.max_bodies=1", "did you mean http.max_body?"),
        ("htpp.bind=1", "did you mean [http]?"),
        ("pool.default.workers=1", "did you mean pools.default.workers?"),
        ("pools.default.worker=1", "did you mean pools.default.workers?"),
        ("pools.other.treads=1", "did you mean pools.other.threads?"),
        ("pools.workers=1", "did you mean pools.default.workers?"),
        ("bind=127.0.0.1:1", "did you mean http.bind?"),
        ("timeout=1", "did you mean agents.timeout?"),
        ("queue.zzz=1", "[queue] has high_water, low_water"),
        ("zzz=1", "the sections are http, "),
        ("zzz.zzz=1", "the sections are http, "),
        ("http.bind.x=1", "did you mean http.bind?"),
        ("http..bind=1", "did you mean http.bind?"),
        ("pools..workers=1", "did you mean"),
        ("=1", "the sections are"),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest_one(override: str, hint: str) -> None:
    line = wrong(override)
    assert "there is no such" in line
    assert hint in line


@pytest.mark.parametrize("override", ["http.bind", "", "nonsense"])
def test_set_needs_a_value(override: str) -> None:
    assert "write it as KEY=VALUE" in wrong(override)


@pytest.mark.parametrize("section", [*SETTINGS, "pools"])
def test_a_section_must_be_a_table(section: str, write: Write) -> None:
    line = wrong(path=write(f"{section} = 7\n"))
    assert line.startswith(f"{section}: 7 must be ")
    line = wrong(path=write(f"[[{section}]]\n"))
    assert line.startswith(f"{section}: [{{}}] must be ")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("nonsense = 1", "nonsense = 1: there is no such section"),
        ("[nonsense]\nx = 1", "nonsense = {'x': 1}: there is no such section"),
        ("[http]\nnonsense = 1", "http.nonsense = 1: there is no such setting"),
        ("[pools]\nworkers = 3", "pools.workers: 3 must be a table"),
        ("[pools]", "pools: {} must be tables"),
        ("[pools.default]\nnonsense = 1", "pools.default.nonsense = 1: there is no such setting"),
        ("[pools.'a b']", "pools.a b: a pool's name"),
        ("[pools.'']", "pools.: a pool's name"),
        ("[pools.-a]", "pools.-a: a pool's name"),
        ("[pools.'a.b']", "pools.a.b: a pool's name"),
        ("[pools.'ä']", "pools.ä: a pool's name"),
        ('[pools."a\\n"]', "pools.a"),
        ("[pools." + "x" * 65 + "]", "pools.xxx"),
    ],
)
def test_what_a_file_can_have_wrong(text: str, start: str, write: Write) -> None:
    assert wrong(path=write(text)).startswith(start)


@pytest.mark.parametrize("text", ["pools = 1", "pools = 'ab'", "[[pools]]", "pools.a = 1"])
def test_options_over_a_wrong_file_do_not_hide_what_is_wrong_in_it(text: str, write: Write) -> None:
    path = write(text)
    assert wrong(path=path, workers=2).startswith("pools")
    assert wrong("pools.a.workers=1", path=path).startswith("pools")
    assert wrong(path=path, environ={"PENSTOCK_POOLS__A__WORKERS": "1"}).startswith("pools")
    assert wrong("http.bind=a:1", path=path, bind="b:1").startswith("pools")


@pytest.mark.parametrize(
    ("variable", "start"),
    [
        ("PENSTOCK_HTTP__BIND", "http.bind: 'nonsense'"),
        ("PENSTOCK_POOLS__DEFAULT__WORKERS", "pools.default.workers: 'nonsense'"),
        ("PENSTOCK_HTTP__BNID", "http.bnid = 'nonsense'"),
        ("PENSTOCK_NONE__KEY", "none = {'key': 'nonsense'}"),
        ("PENSTOCK_POOLS__WORKERS", "PENSTOCK_POOLS__WORKERS: pools.workers = 'nonsense'"),
        ("PENSTOCK_HTTP__BIND__X", "PENSTOCK_HTTP__BIND__X: http.bind.x = 'nonsense'"),
        ("PENSTOCK_HTTP__", "PENSTOCK_HTTP__: http. = 'nonsense'"),
        ("PENSTOCK_HTTP_BIND", "PENSTOCK_HTTP_BIND: write it with two underscores"),
        ("PENSTOCK_POOLS_DEFAULT_WORKERS", "PENSTOCK_POOLS_DEFAULT_WORKERS: write it with two underscores"),
    ],
)
def test_what_a_variable_can_have_wrong(variable: str, start: str) -> None:
    assert wrong(environ={variable: "nonsense"}).startswith(start)


# Files that cannot be read


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "missing.toml")
    assert wrong(path=path) == f"{path}: No such file or directory"
    assert wrong(environ={"PENSTOCK_CONFIG": path}) == f"{path}: No such file or directory"
    assert wrong(path=str(tmp_path)) == f"{tmp_path}: Is a directory"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[http]\nbind = \n", "line 2"),
        (b"[http]\nbind = 'a:1'\nbind = 'b:1'\n", "line 3"),
        (b"[http\n", "line 1"),
        (b"\xff\xfe", "utf-8"),
        (b"x = " + b"[" * 100_000, "recursion"),
        (b"x = " + b"9" * 5000, "4300"),
    ],
)
def test_a_file_that_is_not_toml_says_where(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    line = wrong(path=str(path))
    assert line.startswith(f"{path}: not TOML: ")
    assert why in line


def test_long_values_are_cut_short() -> None:
    assert len(wrong("log.level=" + "x" * 10_000)) < 300


def _keys() -> Sequence[str]:
    return [f"{section}.{key}" for section, names in SETTINGS.items() for key in names] + [
        f"pools.default.{key}" for key in POOL_SETTINGS
    ]


@pytest.mark.parametrize("key", _keys())
@pytest.mark.parametrize("given", ["{}", "[[]]", "[{x = 1}]", "1979-05-27", "-7", "-0.5", "nan"])
def test_no_setting_takes_what_none_can_mean(key: str, given: str) -> None:
    assert wrong(f"{key}={given}").startswith(f"{key}: ")
