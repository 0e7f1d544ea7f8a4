"""Behind a pooler that gives each transaction another session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.fix_daemon import Daemon, DaemonFactory, eventually
from tests.fix_pooler import pgbouncer, stand_in
from tests.fix_postgres import serving, short_directory

SESSIONS = 2
AGENTS = ("ask", "ask_sync", "pooled", "pooled_sync")
Made = Callable[[str, Path, int], AbstractContextManager[str]]
IS_THERE = shutil.which("pgbouncer") is not None or Path("/usr/sbin/pgbouncer").exists()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as dsn:
        yield dsn


@pytest.fixture(
    params=[
        pytest.param(stand_in, id="stand-in"),
        pytest.param(
            pgbouncer,
            id="pgbouncer",
            marks=pytest.mark.skipif(not IS_THERE, reason="PgBouncer is not installed; the stand-in shows the same"),
        ),
    ]
)
def pooler(request: pytest.FixtureRequest, server: str) -> Iterator[str]:
    made: Made = request.param
    with short_directory() as directory, made(server, directory, SESSIONS) as dsn:
        yield dsn


def start(fresh: DaemonFactory, dsn: str, **settings: Any) -> Daemon:
    daemon = fresh("stored", settings={"database.dsn": dsn, "pools.default.workers": 2, **settings})
    daemon.wait_workers(2)
    return daemon


def statuses(daemon: Daemon) -> list[int]:
    """Of many calls at once of all kinds of agents, each of which runs one statement again and again."""
    return [reply.status for agent in AGENTS for reply in daemon.calls(agent, ["SELECT 1"] * 40, at_once=8)]


def test_without_prepared_statements_every_call_works(fresh: DaemonFactory, pooler: str) -> None:
    daemon = start(fresh, pooler, **{"database.prepared_statements": False})
    assert statuses(daemon) == [200] * 160
    found = daemon.call("ask", "SELECT count(*) FROM pg_prepared_statements").json
    assert found == [[0]]
    # A deadline cancels the statement by way of the pooler.
    late = daemon.call("ask", "SELECT pg_sleep(60)", {"Request-Timeout": "0.3"})
    assert late.problem == "deadline-exceeded"
    eventually(lambda: daemon.in_flight() == 0, "the worker has it back")
    assert statuses(daemon) == [200] * 160
    assert "is killed" not in daemon.log


def test_a_worker_that_meets_another_session_prepares_no_more(fresh: DaemonFactory, pooler: str) -> None:
    daemon = start(fresh, pooler)

    def learnt() -> bool:
        statuses(daemon)
        return daemon.log.count("set database.prepared_statements = false") == 2

    eventually(learnt, "both workers have met one and said so")
    assert statuses(daemon) == [200] * 160
    assert daemon.log.count("set database.prepared_statements = false") == 2


@pytest.mark.parametrize(("prepared", "count"), [(True, 1), (False, 0)])
def test_directly_statements_are_prepared_unless_told_otherwise(
    fresh: DaemonFactory, server: str, prepared: bool, count: int
) -> None:
    settings = {"database.prepared_statements": prepared, "pools.default.workers": 1, "database.max_connections": 2}
    daemon = fresh("stored", settings={"database.dsn": server, **settings})
    for _ in range(8):
        assert daemon.call("ask", "SELECT 42").status == 200
    asked = "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 42'"
    assert daemon.call("ask", asked).json == [[count]]
