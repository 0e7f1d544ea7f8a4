"""Agents with PostgreSQL: transactions, limits, cut sessions, what a killed worker leaves behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.fix_daemon import Daemon, DaemonFactory, eventually
from tests.fix_metrics import Samples

ALL = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'penstock'"


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons(
        "stored",
        "basic",
        settings={"database.dsn": "", "database.max_connections": 6, "database.acquire_timeout": 1.0},
    )
    made.wait_workers(2)
    return made


@pytest.fixture(autouse=True)
def at_rest(daemon: Daemon) -> Iterator[None]:
    yield
    daemon.wait_workers(2)
    eventually(lambda: daemon.in_flight() == 0, "nothing is left running")


@pytest.mark.parametrize("agent", ["ask", "ask_sync", "pooled", "pooled_sync"])
def test_agents_get_what_they_are_annotated_with(daemon: Daemon, agent: str) -> None:
    reply = daemon.call(agent, "SELECT 1")
    assert (reply.status, reply.json) == (200, [[1]])


def test_server_timing_tells_the_time_with_the_database(daemon: Daemon) -> None:
    timing = daemon.call("ask", "SELECT pg_sleep(0.05)::text").headers["Server-Timing"]
    assert float(timing.rpartition("db;dur=")[2]) >= 50


def test_a_transaction_is_rolled_back_when_the_agent_fails(daemon: Daemon) -> None:
    assert daemon.call("ask", "CREATE TABLE numbers (value int)").status == 200
    assert daemon.call("store_and_fail", 7).problem == "agent-error"
    assert daemon.call("ask", "SELECT count(*) FROM numbers").json == [[0]]


def test_the_connections_of_the_whole_daemon_stay_within_the_limit(daemon: Daemon) -> None:
    replies = [daemon.begin(agent, "SELECT pg_sleep(0.05)") for agent in ["ask", "ask_sync"] * 16]
    most = 0
    while not all(future.done() for future in replies):
        most = max(most, daemon.call("ask", ALL).json[0][0])
    assert {future.result().status for future in replies} == {200}
    assert 2 <= most <= 5, "one of the six is the supervisor's"


@pytest.mark.parametrize("agent", ["ask", "ask_sync"])
def test_a_pool_without_a_free_connection_is_database_unavailable_or_late(daemon: Daemon, agent: str) -> None:
    holders = [daemon.begin(agent, "SELECT pg_sleep(3)", {"Request-Timeout": "10"}) for _ in range(4)]
    eventually(lambda: daemon.in_flight() == 4, "all connections are taken")
    replies = [
        daemon.call(agent, "SELECT 1"),
        daemon.call(agent, "SELECT 1", {"Request-Timeout": "0.3"}),
    ]
    assert [reply.problem for reply in replies] == ["database-unavailable", "deadline-exceeded"]
    assert replies[0].status == 503
    assert int(replies[0].headers["Retry-After"]) >= 1
    assert daemon.call("echo", 1).status == 200
    assert {holder.result().status for holder in holders} <= {200, 503}


@pytest.mark.parametrize("agent", ["ask", "ask_sync"])
def test_the_statement_of_a_late_call_is_cancelled(daemon: Daemon, agent: str) -> None:
    reply = daemon.call(agent, "SELECT pg_sleep(25)", {"Request-Timeout": "0.3"})
    assert reply.problem == "deadline-exceeded"
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(25)%' AND state = 'active' AND pid <> pg_backend_pid()"
    eventually(lambda: daemon.call("ask", running).json == [[0]], "the statement was cancelled", 5.0)


@pytest.mark.parametrize("agent", ["ask", "ask_sync"])
def test_a_cut_session_is_noticed_before_an_agent_gets_it(daemon: Daemon, agent: str) -> None:
    daemon.calls(agent, ["SELECT pg_sleep(0.05)"] * 8)
    cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'penstock' AND pid <> pg_backend_pid()"
    assert daemon.call(agent, cut).json[0][0] >= 1
    replies = daemon.calls(agent, ["SELECT 1"] * 8)
    assert [reply.status for reply in replies] == [200] * 8


def test_a_killed_workers_statement_is_ended_in_the_database(daemon: Daemon) -> None:
    future = daemon.begin("ask", "SELECT pg_sleep(22)")
    who = (
        "SELECT application_name FROM pg_stat_activity"
        " WHERE query LIKE '%pg_sleep(22)%' AND state = 'active' AND pid <> pg_backend_pid()"
    )
    name = eventually(lambda: daemon.call("ask", who).json, "the statement runs")[0][0]
    os.kill(daemon.worker(name.removeprefix("penstock ").partition("/")[0])["pid"], signal.SIGKILL)
    assert future.result().problem == "worker-died"
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(22)%' AND pid <> pg_backend_pid()"
    eventually(lambda: daemon.call("ask", running).json == [[0]], "its session was ended", 10.0)


def test_pools_are_seen_with_their_connections_and_waits(daemon: Daemon) -> None:
    def pools() -> list[dict[str, Any]]:
        return [worker["database"].get("async", {}) for worker in daemon.workers()]

    daemon.calls("ask", ["SELECT 1"] * 8)
    before = eventually(lambda: [pool["requests"] for pool in pools() if pool], "the pools are seen")
    samples = Samples(daemon)
    holders = [daemon.begin("ask", "SELECT pg_sleep(1.5)", {"Request-Timeout": "10"}) for _ in range(5)]
    eventually(lambda: any(pool.get("waiting") for pool in pools()), "one is seen to wait")
    used = Samples(daemon)("penstock_db_pool_connections", state="used")
    assert 1 <= used <= 5
    assert all(0 <= pool["available"] <= pool["size"] <= pool["max"] for pool in pools() if pool)
    assert {holder.result().status for holder in holders} <= {200, 503}
    waits = "penstock_db_pool_wait_seconds_count"
    eventually(lambda: Samples(daemon)(waits) - samples(waits) >= 5, "all waits are counted")
    assert Samples(daemon)("penstock_db_pool_wait_seconds_sum") > samples("penstock_db_pool_wait_seconds_sum")
    eventually(lambda: sum(pool.get("requests", 0) for pool in pools()) >= sum(before) + 5, "by worker, too")


def test_agents_are_served_again_after_the_database_was_restarted(daemon: Daemon) -> None:
    daemon.calls("ask", ["SELECT 1"] * 4)
    postmaster = next(
        process for process in psutil.Process(daemon.pid).children() if process.name().startswith("postgres")
    )
    postmaster.kill()
    eventually(lambda: daemon.call("ask", "SELECT 1").status == 200, "the database is back")


def test_no_postgres_outlives_its_supervisor(fresh: DaemonFactory) -> None:
    daemon = fresh("stored", settings={"database.dsn": ""})
    daemon.call("ask", "SELECT 1")
    family = psutil.Process(daemon.pid).children(recursive=True)
    assert any(process.name().startswith("postgres") for process in family)
    os.kill(daemon.pid, signal.SIGKILL)
    eventually(
        lambda: not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE],
        "all processes are gone",
    )


def test_without_a_database_its_agents_say_so(fresh: DaemonFactory) -> None:
    daemon = fresh("stored")
    reply = daemon.call("ask", "SELECT 1")
    assert (reply.status, reply.problem) == (503, "database-unavailable")
