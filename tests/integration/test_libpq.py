"""Of libpq's environment and files nothing counts for the embedded server, and everything for any other."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import pq

from penstock.ipc import libpq
from penstock.ipc.libpq import HIDDEN, complete, hidden, is_private, private_dsn
from tests.fix_daemon import DaemonFactory
from tests.fix_postgres import serving

VARIABLES = [option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar]
"""All that libpq itself says it takes parameters from, whatever its version."""

OTHERS = {"PGTZ", "PGDATESTYLE", "PGGEQO", "PGSERVICEFILE", "PGSYSCONFDIR", "PGLOCALEDIR", "PGREQUIRESSL", "PGREALM"}
"""What its documentation names besides."""

TELLING = {
    "PGHOST": "127.0.0.1",
    "PGHOSTADDR": "127.0.0.1",
    "PGPORT": "1",
    "PGSSLMODE": "verify-full",
    "PGREQUIRESSL": "1",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGCHANNELBINDING": "require",
    "PGGSSENCMODE": "require",
    "PGTARGETSESSIONATTRS": "standby",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGCLIENTENCODING": "LATIN1",
    "PGAPPNAME": "other",
    "PGCONNECT_TIMEOUT": "-",
}
"""Values that would be seen, or keep it from connecting; for all others one that means nothing."""

SESSION = """
SELECT current_user, current_database(), current_setting('TimeZone'), current_setting('DateStyle'),
       current_setting('geqo'), current_setting('client_encoding'), current_setting('application_name'),
       current_setting('default_transaction_read_only'), inet_server_addr()
"""


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    """Of an embedded server."""
    with serving() as found:
        yield found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with files that libpq looks for, which say the wrong thing."""
    (tmp_path / ".pg_service.conf").write_text("[elsewhere]\nhostaddr=127.0.0.1\nport=1\nkeepalives=nonsense\n")
    (tmp_path / ".pgpass").write_text("*:*:*:*:wrong\n")  # readable by others, at which libpq complains
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql" / "postgresql.crt").write_text("nonsense")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def session(dsn: str) -> Any:
    """What a session is like, the same of a thread and of a coroutine."""

    async def ask() -> Any:
        async with await libpq.AsyncConnection.connect(dsn) as connection:
            return await (await connection.execute(SESSION)).fetchone()

    with libpq.Connection.connect(dsn) as connection:
        found = connection.execute(SESSION).fetchone()
    assert asyncio.run(ask()) == found
    return found


@pytest.mark.parametrize("name", sorted({*VARIABLES, *OTHERS}))
def test_no_variable_counts(
    dsn: str, name: str, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usual = session(dsn)
    monkeypatch.setenv(name, TELLING.get(name, "nonsense"))
    assert session(dsn) == usual
    assert capfd.readouterr().err == "", "libpq has nothing to complain of"


def test_no_service_counts(dsn: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there, by its own file or the home's, and all other variables at once."""
    usual = session(dsn)
    for name in {*VARIABLES, *OTHERS} - {"PGSERVICE", "PGSERVICEFILE"}:
        monkeypatch.setenv(name, TELLING.get(name, "nonsense"))
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    assert session(dsn) == usual
    monkeypatch.setenv("PGSERVICEFILE", str(home / ".pg_service.conf"))
    assert session(dsn) == usual


def test_for_other_servers_the_environment_counts(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = psycopg.conninfo.conninfo_to_dict(dsn)["host"]
    for name, value in {
        "PGHOST": str(host),
        "PGUSER": "penstock",
        "PGDATABASE": "penstock",
        "PGTZ": "Asia/Tokyo",
    }.items():
        monkeypatch.setenv(name, value)
    assert is_private(dsn)
    assert not is_private("")
    assert session("")[2] == "Asia/Tokyo"


def test_every_parameter_with_a_variable_is_said() -> None:
    short = private_dsn(host="/somewhere")
    said = psycopg.conninfo.conninfo_to_dict(complete(short))
    assert said.items() >= psycopg.conninfo.conninfo_to_dict(short).items()
    assert complete("host=/elsewhere") == "host=/elsewhere"
    options = pq.Conninfo.get_defaults()
    assert {option.keyword.decode() for option in options if option.envvar} - said.keys() == {"service"}


def test_other_libraries_with_older_libpq_can_have_it_and_come_to_the_right_server(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As agents with psycopg2, psql and others do: by what has been there since version 13, and the bare class here."""
    since = {"sslcertmode", "require_auth", "sslnegotiation", "min_protocol_version", "load_balance_hosts", "sslsni"}
    assert not since & psycopg.conninfo.conninfo_to_dict(dsn).keys()
    for name in (
        "PGHOST",
        "PGHOSTADDR",
        "PGPORT",
        "PGSSLMODE",
        "PGCHANNELBINDING",
        "PGOPTIONS",
        "PGTARGETSESSIONATTRS",
    ):
        monkeypatch.setenv(name, TELLING[name])
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("penstock",)


def _seen(name: str) -> bytes | None:
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    found: bytes | None = getenv(name.encode())
    return found


def test_what_is_hidden_is_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HIDDEN:
        monkeypatch.setenv(name, "x")
    with hidden():
        assert [_seen(name) for name in HIDDEN] == [None] * len(HIDDEN)
        assert _seen("PATH") == os.environb[b"PATH"]
    assert [_seen(name) for name in HIDDEN] == [b"x"] * len(HIDDEN)
    with hidden():
        monkeypatch.setenv("PENSTOCK_TEST_NEW", "y")  # as another thread may, in this moment
    assert [_seen(name) for name in HIDDEN] == [b"x"] * len(HIDDEN)
    assert _seen("PENSTOCK_TEST_NEW") == b"y"
    assert _seen("PATH") == os.environb[b"PATH"]


AGENTS = """
import os, subprocess
import psycopg
from penstock.workers import agent

@agent
async def session(body: str, db: psycopg.AsyncConnection) -> list:
    return list(await (await db.execute(body)).fetchone())

@agent
def session_sync(body: str, db: psycopg.Connection) -> list:
    return list(db.execute(body).fetchone())

@agent
def environment(body: str) -> list:
    lines = subprocess.run(["env"], capture_output=True, text=True).stdout.splitlines()
    return [os.environ.get(body), [line for line in lines if line.startswith(body + "=")]]
"""


def test_a_daemon_with_everything_set_serves_from_its_own_server(tmp_path: Path, fresh: DaemonFactory) -> None:
    """It never speaks to the server that the environment names, and its agents see the environment that it got."""
    (tmp_path / "own.py").write_text(AGENTS)
    hostile = {name: TELLING.get(name, "nonsense") for name in {*VARIABLES, *OTHERS}}
    with socket.create_server(("127.0.0.1", 0)) as decoy:
        decoy.setblocking(False)
        hostile |= {"PGPORT": str(decoy.getsockname()[1]), "PGDATA": "/nowhere", "PG_COLOR": "always"}
        daemon = fresh("own", settings={"database.dsn": ""}, environment=hostile, directory=tmp_path)
        for name in ("session", "session_sync"):
            found = daemon.call(name, SESSION).json
            assert found[:6] == ["penstock", "penstock", found[2], "ISO, MDY", "on", "UTF8"]
            assert found[2] != "nonsense"
            assert found[6].startswith("penstock default:")
            assert found[7:] == ["off", None]
        for name in hostile:
            assert daemon.call("environment", name).json == [hostile[name], [f"{name}={hostile[name]}"]]
        with pytest.raises(BlockingIOError):
            decoy.accept()
