"""Agents with PostgreSQL: transactions, limits, cut sessions, what a killed worker leaves behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.fix_daemon import PATIENT, Daemon, DaemonFactory, Reply, eventually
from tests.fix_metrics import Samples
from tests.fix_processes import family, gone, parent

ALL = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'penstock'"

pytestmark = pytest.mark.usefixtures("at_rest")


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons(
        "stored",
        "basic",
        settings={"database.dsn": "", "database.max_connections": 6, "database.acquire_timeout": 1.0},
    )
    made.wait_workers(2)
    return made


@pytest.mark.parametrize("agent", ["ask", "ask_sync", "pooled", "pooled_sync"])
def test_agents_get_what_they_are_annotated_with(daemon: Daemon, agent: str) -> None:
    reply = daemon.call(agent, "SELECT 1")
    assert (reply.status, reply.json) == (200, [[1]])


def adds_up(call: Callable[[], Reply]) -> bool:
    """Whether the parts of Server-Timing are what the client waited, but for a twentieth of it."""
    reply = call()
    assert reply.status == 200
    assert reply.seconds >= 0.1
    assert sum(reply.timing.values()) <= reply.seconds
    return sum(reply.timing.values()) >= 0.95 * reply.seconds


@pytest.mark.parametrize(
    ("agent", "value"),
    [
        ("wait", {"seconds": 0.3}),
        ("spin", {"seconds": 0.3}),
        ("ask", "SELECT pg_sleep(0.3)"),
        ("ask_sync", "SELECT pg_sleep(0.3)"),
        ("ask_and_hold", "SELECT pg_sleep(0.2)"),
        ("ask_and_hold_sync", "SELECT pg_sleep(0.2)"),
        ("ask_at_once", "SELECT pg_sleep(0.3)"),
    ],
)
def test_the_parts_of_server_timing_are_what_the_client_waits(daemon: Daemon, agent: str, value: Any) -> None:
    eventually(lambda: adds_up(lambda: daemon.call(agent, value)), "nothing but the call takes the processors")


@pytest.mark.parametrize("agent", ["ask_and_hold", "ask_and_hold_sync"])
def test_holding_a_connection_is_not_time_with_the_database(daemon: Daemon, agent: str) -> None:
    timing = daemon.call(agent, "SELECT pg_sleep(0.1)").timing
    assert timing["db"] >= 0.1
    assert timing["agent"] >= 0.19, "but for the loop's timer, which may be early by a millisecond"


def test_what_is_asked_at_once_counts_once(daemon: Daemon) -> None:
    reply = daemon.call("ask_at_once", "SELECT pg_sleep(0.2)")
    assert 0.2 <= reply.timing["db"] <= reply.seconds


@pytest.mark.parametrize("agent", ["ask_every_way", "ask_every_way_sync"])
def test_every_way_of_asking_is_measured(daemon: Daemon, agent: str) -> None:
    reply = daemon.call(agent, "SELECT pg_sleep(0.05)")
    assert reply.status == 200
    assert reply.timing["db"] >= 0.05 * reply.json


def hold_all(daemon: Daemon, agent: str, until: Path) -> list[Future[Reply]]:
    """Have every connection of this agent's kind in use until there is a file."""
    suffix = "_sync" if agent.endswith("_sync") else ""
    kind = "sync" if suffix else "async"
    eventually(lambda: all_seen(daemon, f"ask{suffix}", kind), "all pools are open and seen")
    granted = sum(worker["database"][kind]["max"] for worker in daemon.workers())
    holders = [daemon.begin(f"keep{suffix}", str(until), PATIENT) for _ in range(granted)]
    eventually(lambda: daemon.in_flight() == granted, "all connections are taken")
    return holders


def all_seen(daemon: Daemon, agent: str, kind: str) -> bool:
    daemon.calls(agent, ["SELECT pg_sleep(0.02)"] * 8, PATIENT)
    return all(kind in worker["database"] for worker in daemon.workers())


@pytest.fixture
def end(tmp_path: Path) -> Iterator[Path]:
    """A file that some wait for."""
    found = tmp_path / "end"
    yield found
    found.touch()


def waiting(daemon: Daemon) -> int:
    return int(daemon.status()["queue"]["requests"])


def waits_for(seconds: float) -> None:
    ends = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > ends, "a while has passed")


@pytest.mark.parametrize("agent", ["ask", "ask_sync"])
def test_calls_wait_for_a_connection_in_the_queue_for_longer_than_acquire_timeout(
    daemon: Daemon, agent: str, end: Path
) -> None:
    holders = hold_all(daemon, agent, end)
    seconds = "penstock_db_pool_wait_seconds_sum"
    before = Samples(daemon)(seconds)
    early = daemon.begin(agent, "SELECT 1", PATIENT)
    eventually(lambda: waiting(daemon) == 1, "it waits, and no worker has it")
    late = daemon.call(agent, "SELECT 1", {"Request-Timeout": "0.3"})
    assert late.problem == "deadline-exceeded"
    waits_for(1.2)
    assert not early.done()
    end.touch()
    reply = early.result()
    assert (reply.status, reply.problem) == (200, "")
    assert reply.timing["queue"] > 1.2
    assert Samples(daemon)(seconds) - before > 1.2, "it is counted where waits for connections are"
    assert {holder.result().status for holder in holders} == {200}


@pytest.fixture(scope="module")
def narrow(daemons: DaemonFactory) -> Daemon:
    """One worker with one connection of each kind: with more, a busy host holds up one of them and not another."""
    settings = {"database.dsn": "", "database.max_connections": 3, "pools.default.workers": 1}
    return daemons("stored", "basic", settings=settings)


@pytest.mark.parametrize("agent", ["ask", "ask_sync"])
def test_calls_that_came_first_get_a_connection_first(narrow: Daemon, agent: str, end: Path) -> None:
    assert narrow.call("ask", "CREATE SEQUENCE IF NOT EXISTS came").status == 200
    assert len(hold_all(narrow, agent, end)) == 1
    calls: list[Future[Reply]] = []
    for number in range(8):
        calls.append(narrow.begin(agent, "SELECT nextval('came')", PATIENT))
        eventually(lambda: waiting(narrow) == number + 1, "it waits")  # noqa: B023 - called here
    end.touch()
    came = [call.result().json[0][0] for call in calls]
    assert came == sorted(came)


@pytest.mark.parametrize("agent", ["pooled", "pooled_sync"])
def test_agents_with_the_pool_wait_for_a_connection_like_the_others(daemon: Daemon, agent: str, end: Path) -> None:
    hold_all(daemon, agent, end)
    calls = [daemon.begin(agent, None, PATIENT) for _ in range(4)]
    late = daemon.call(agent, None, {"Request-Timeout": "0.3"})
    assert late.problem == "deadline-exceeded"
    waits_for(1.2)
    assert not any(call.done() for call in calls), "it is longer than acquire_timeout"
    end.touch()
    assert [(call.result().status, call.result().problem) for call in calls] == [(200, "")] * 4
    assert max(call.result().timing["db"] for call in calls) > 1.0, "it is said what for"


@pytest.mark.parametrize("agent", ["pooled", "pooled_sync"])
def test_a_client_that_goes_ends_the_wait_for_a_connection(daemon: Daemon, agent: str, end: Path) -> None:
    holders = hold_all(daemon, agent, end)
    held = daemon.in_flight()
    gone = daemon.hold(agent)
    eventually(lambda: daemon.in_flight() == held + 1, "it waits in a worker")
    gone.close()
    eventually(lambda: daemon.in_flight() == held, "it waits no more", 15.0)
    assert not any(holder.done() for holder in holders)


@pytest.mark.parametrize(("hold", "agent"), [("hold_async", "ask"), ("hold_sync", "ask_sync")])
def test_what_agents_with_the_pool_hold_is_waited_for_too(daemon: Daemon, hold: str, agent: str) -> None:
    """The supervisor does not know of it, so the call waits in its worker, and is not failed there either."""
    holders = [daemon.begin(hold, 1.6) for _ in range(4)]
    eventually(lambda: daemon.in_flight() == 4, "they are at work")
    reply = daemon.call(agent, "SELECT 1")
    assert (reply.status, reply.problem) == (200, "")
    assert {holder.result().status for holder in holders} <= {200, 503}, "some may find a part of what they wanted"


@pytest.mark.parametrize("agent", ["nested", "nested_sync"])
def test_a_call_waits_for_a_second_connection_no_longer_than_acquire_timeout(daemon: Daemon, agent: str) -> None:
    replies = daemon.calls(agent, [64] * 2)
    assert {(reply.status, reply.problem) for reply in replies} == {(503, "database-unavailable")}
    assert max(reply.seconds for reply in replies) < 15.0, "and not until its deadline"


def test_a_connection_that_cannot_be_had_is_database_unavailable(fresh: DaemonFactory, tmp_path: Path) -> None:
    settings = {"database.dsn": f"host={tmp_path}/nowhere dbname=x", "database.acquire_timeout": 0.5}
    daemon = fresh("stored", settings=settings)
    for agent in ("ask", "ask_sync", "pooled", "pooled_sync"):
        reply = daemon.call(agent, "SELECT 1")
        assert (reply.status, reply.problem) == (503, "database-unavailable")
        assert reply.json["worker"].startswith("default:")
        assert int(reply.headers["Retry-After"]) >= 1
        assert reply.timing["db"] >= 0.49, "it says how long it waited for one"
        assert daemon.call(agent, "SELECT 1", {"Request-Timeout": "0.2"}).problem == "deadline-exceeded"


def test_a_transaction_is_rolled_back_when_the_agent_fails(daemon: Daemon) -> None:
    assert daemon.call("ask", "CREATE TABLE numbers (value int)").status == 200
    assert daemon.call("store_and_fail", 7).problem == "agent-error"
    assert daemon.call("ask", "SELECT count(*) FROM numbers").json == [[0]]


def test_the_connections_of_the_whole_daemon_stay_within_the_limit(daemon: Daemon) -> None:
    replies = [daemon.begin(agent, "SELECT pg_sleep(0.05)", PATIENT) for agent in ["ask", "ask_sync"] * 5]
    most = 0
    while not all(future.done() for future in replies):
        most = max(most, daemon.call("ask", ALL, PATIENT).json[0][0])
    assert {future.result().status for future in replies} == {200}
    assert 2 <= most <= 5, "one of the six is the supervisor's"


@pytest.mark.parametrize("agent", ["ask", "ask_sync"])
def test_the_statement_of_a_late_call_is_cancelled(daemon: Daemon, agent: str) -> None:
    reply = daemon.call(agent, "SELECT pg_sleep(25)", {"Request-Timeout": "0.3"})
    assert reply.problem == "deadline-exceeded"
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(25)%' AND state = 'active' AND pid <> pg_backend_pid()"
    eventually(lambda: daemon.call("ask", running).json == [[0]], "the statement was cancelled", 5.0)


@pytest.mark.parametrize("agent", ["ask", "ask_sync"])
def test_a_cut_session_is_noticed_before_an_agent_gets_it(daemon: Daemon, agent: str) -> None:
    daemon.calls(agent, ["SELECT pg_sleep(0.05)"] * 8)
    cut = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = 'penstock' AND pid <> pg_backend_pid()"
    assert daemon.call(agent, cut).json[0][0] >= 1
    replies = daemon.calls(agent, ["SELECT 1"] * 8)
    assert [(reply.status, reply.problem) for reply in replies] == [(200, "")] * 8


def test_a_killed_workers_statement_is_ended_in_the_database(daemon: Daemon) -> None:
    future = daemon.begin("ask", "SELECT pg_sleep(22)")
    who = (
        "SELECT application_name FROM pg_stat_activity"
        " WHERE query LIKE '%pg_sleep(22)%' AND state = 'active' AND pid <> pg_backend_pid()"
    )
    name = eventually(lambda: daemon.call("ask", who).json, "the statement runs")[0][0]
    worker = name.removeprefix("penstock ").partition("/")[0]
    os.kill(daemon.worker(worker)["pid"], signal.SIGKILL)
    assert future.result().problem == "worker-died"
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(22)%' AND pid <> pg_backend_pid()"
    eventually(lambda: daemon.call("ask", running).json == [[0]], "its session was ended", 10.0)
    assert f"penstock.sessions: worker={worker} ended 1 database sessions of {name}\n" in daemon.log


def test_pools_are_seen_with_their_connections_and_waits(daemon: Daemon) -> None:
    def pools() -> list[dict[str, Any]]:
        return [worker["database"].get("async", {}) for worker in daemon.workers()]

    daemon.calls("ask", ["SELECT 1"] * 8)
    before = eventually(lambda: [pool["requests"] for pool in pools() if pool], "the pools are seen")
    samples = Samples(daemon)
    holders = [daemon.begin("ask", "SELECT pg_sleep(1.5)", {"Request-Timeout": "10"}) for _ in range(3)]
    holders += [daemon.begin("pooled", 1, {"Request-Timeout": "10"}) for _ in range(4)]
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
    postmaster = next(each for each in family(daemon.pid, "postgres") if parent(each.pid) == daemon.pid)
    postmaster.kill()
    eventually(lambda: daemon.call("ask", "SELECT 1").status == 200, "the database is back")


def test_no_postgres_outlives_its_supervisor(fresh: DaemonFactory) -> None:
    daemon = fresh("stored", settings={"database.dsn": ""})
    daemon.call("ask", "SELECT 1")
    assert family(daemon.pid, "postgres")
    everything = family(daemon.pid)
    os.kill(daemon.pid, signal.SIGKILL)
    eventually(lambda: gone(everything), "all processes are gone")


def test_without_a_database_its_agents_say_so(fresh: DaemonFactory) -> None:
    daemon = fresh("stored")
    reply = daemon.call("ask", "SELECT 1")
    assert (reply.status, reply.problem) == (503, "database-unavailable")


@pytest.mark.parametrize("what", ["rows", "autocommit", "read only"])
@pytest.mark.parametrize(("alter", "ask"), [("alter", "ask"), ("alter_sync", "ask_sync")])
def test_what_an_agent_does_to_a_connection_ends_with_its_call(daemon: Daemon, alter: str, ask: str, what: str) -> None:
    daemon.calls(alter, [what] * 8)
    query = "SELECT current_setting('transaction_read_only') AS first"
    assert {str(reply.json) for reply in daemon.calls(ask, [query] * 8)} == {"[['off']]"}
    failed = daemon.calls(ask, ["CREATE TABLE left_over (x int); SELECT 1 / 0"] * 4)
    assert {reply.problem for reply in failed} == {"agent-error"}
    assert daemon.call(ask, "SELECT to_regclass('left_over')").json == [[None]], "it was rolled back"


def test_a_call_that_waits_in_a_pool_at_its_deadline_costs_no_connection(daemon: Daemon) -> None:
    """It is interrupted while it waits, and must not be given what comes back then, only to lose it."""
    before = [worker["pid"] for worker in daemon.workers()]
    for _ in range(3):
        holding = [daemon.begin("hold_sync", 0.5) for _ in range(8)]
        waiting = [daemon.begin("pooled_sync", 1, {"Request-Timeout": "0.3"}) for _ in range(6)]
        assert {future.result().status for future in waiting} <= {200, 504}
        assert {future.result().status for future in holding} <= {200, 503}
    eventually(lambda: daemon.in_flight() == 0, "nothing is left running")
    assert {reply.status for reply in daemon.calls("pooled_sync", [1] * 12, at_once=4)} == {200}
    assert [worker["pid"] for worker in daemon.workers()] == before


def test_a_pool_that_gives_no_connection_is_told_apart_from_a_failure(daemon: Daemon) -> None:
    holding = [daemon.begin("hold_sync", 1.5) for _ in range(2)]
    eventually(lambda: daemon.in_flight() == 2, "both are at work")
    replies = daemon.calls("pooled_sync", [0.3] * 4)
    assert {reply.problem for reply in replies} <= {"database-unavailable", ""}
    assert "database-unavailable" in {reply.problem for reply in replies}
    assert [future.result().json for future in holding]
