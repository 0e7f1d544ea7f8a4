"""``/metrics`` of a real daemon: what is counted when requests succeed, fail, are refused, come too late; and deaths."""

from __future__ import annotations

import http.client
import json
import os
import signal

import pytest

from tests.fix_daemon import PATIENCE, Daemon, DaemonFactory, eventually
from tests.fix_metrics import Samples

OPENMETRICS = "application/openmetrics-text; version=1.0.0"

pytestmark = pytest.mark.usefixtures("at_rest")


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    settings = {
        "pools.default.concurrency": 2,
        "queue.high_water": 6,
        "queue.low_water": 3,
        "agents.hard_timeout_grace": 0.3,
        "supervision.start_seconds": 0.1,
    }
    made = daemons("basic", settings=settings)
    made.wait_workers(2)
    return made


def grown(daemon: Daemon, before: Samples, name: str, by: int, **labels: str) -> None:
    eventually(lambda: Samples(daemon)(name, **labels) - before(name, **labels) == by, f"{name}{labels} grew by {by}")


def leave(daemon: Daemon, agent: str, body: object) -> None:
    """Send a request and go as soon as it is taken."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    connection.request("POST", f"/v1/agents/{agent}", json.dumps(body))
    eventually(lambda: daemon.in_flight() > 0, "it runs")
    connection.close()


def test_requests_are_counted_by_agent_and_code_and_timed(daemon: Daemon) -> None:
    before = Samples(daemon)
    for value in range(3):
        assert daemon.call("echo", value).status == 200
    assert daemon.call("fail", 1).status == 500
    assert daemon.call("teapot", 1).status == 418
    assert daemon.call("echo", 1, {"Request-Timeout": "never"}).status == 400
    assert daemon.request("POST", "/v1/agents/echo", b"x", {"Content-Type": "text/plain"}).status == 415
    leave(daemon, "wait", {"seconds": 20})
    for agent, code, count in [
        ("echo", "200", 3),
        ("fail", "500", 1),
        ("teapot", "418", 1),
        ("echo", "400", 1),
        ("echo", "415", 1),
        ("wait", "499", 1),
    ]:
        grown(daemon, before, "penstock_requests_total", count, agent=agent, code=code)
    grown(daemon, before, "penstock_request_seconds_count", 3, agent="echo")
    grown(daemon, before, "penstock_request_seconds_count", 1, agent="wait")
    grown(daemon, before, "penstock_request_seconds_bucket", 3, agent="echo", le="+Inf")
    grown(daemon, before, "penstock_queue_seconds_count", 6)


def test_what_clients_make_up_becomes_no_label(daemon: Daemon) -> None:
    for name in ("made-up", "ech", "echo2", "%22%7D%0A"):
        assert daemon.call(name, 1).status == 404
    known = {each["name"] for each in daemon.get("/v1/agents").json["agents"]}
    assert Samples(daemon).labels("agent") <= known


def test_both_formats_say_the_same_and_head_is_answered(daemon: Daemon) -> None:
    daemon.call("echo", 1)
    text, openmetrics = Samples(daemon), Samples(daemon, OPENMETRICS)
    assert text.media_type == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics.media_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert set(text.values) == set(openmetrics.values)
    assert text("penstock_requests_total") == openmetrics("penstock_requests_total") > 0
    head = daemon.request("HEAD", "/metrics", headers={"Accept": OPENMETRICS})
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Type"] == openmetrics.media_type
    assert daemon.request("POST", "/metrics").status == 405


def test_deadlines_are_counted_by_the_stage_where_they_were_over(daemon: Daemon) -> None:
    before = Samples(daemon)
    assert daemon.call("brief", 5).problem == "deadline-exceeded"
    grown(daemon, before, "penstock_deadline_exceeded_total", 1, agent="brief", stage="agent")
    daemon.calls("wait_again", [0.2] * 12, at_once=4)  # it learns what one takes
    holders = [daemon.begin("wait_again", 2) for _ in range(4)]
    eventually(lambda: daemon.in_flight() == 4, "all slots are taken")
    assert daemon.call("echo", 1, {"Request-Timeout": "0.2"}).problem == "deadline-exceeded"
    grown(daemon, before, "penstock_deadline_exceeded_total", 1, agent="echo", stage="queue")
    waiting = [daemon.begin("wait_again", 0.1) for _ in range(3)]
    eventually(lambda: Samples(daemon)("penstock_queue_requests") == 3, "three wait")
    reply = daemon.call("echo", 1, {"Request-Timeout": "0.01"})
    assert (reply.problem, "have to wait" in reply.json["detail"]) == ("deadline-exceeded", True)
    grown(daemon, before, "penstock_deadline_exceeded_total", 1, agent="echo", stage="admission")
    reason = {"reason": "deadline", "priority": "3"}
    grown(daemon, before, "penstock_throttle_rejected_total", 1, **reason)
    assert {future.result().status for future in holders + waiting} == {200}


def test_refusals_are_counted_by_reason_and_priority(daemon: Daemon) -> None:
    before = Samples(daemon)
    holders = [daemon.begin("wait", {"seconds": 1.5}, {"Request-Timeout": "20"}) for _ in range(4)]
    eventually(lambda: daemon.in_flight() == 4, "all slots are taken")
    waiting = [daemon.begin("echo", "x" * 100) for _ in range(6)]
    eventually(lambda: Samples(daemon)("penstock_queue_requests") == 6, "six wait")
    now = Samples(daemon)
    assert now("penstock_queue_bytes") == 6 * 102
    assert now("penstock_in_flight") == 4
    assert daemon.call("echo", 1, {"Priority": "u=6"}).problem == "overloaded"
    assert daemon.call("made-up", 1).problem == "unknown-agent"
    grown(daemon, before, "penstock_throttle_rejected_total", 1, reason="requests", priority="6")
    grown(daemon, before, "penstock_requests_total", 1, agent="echo", code="503")
    assert {future.result().status for future in holders + waiting} == {200}
    assert Samples(daemon)("penstock_request_seconds_count", agent="echo") - before(
        "penstock_request_seconds_count", agent="echo"
    ) == len(waiting), "what is refused at once is not timed"


def test_no_counter_falls_when_workers_die_and_restarts_are_counted_by_reason(daemon: Daemon) -> None:
    daemon.calls("echo", list(range(50)), at_once=4)
    before = Samples(daemon)
    pids = {worker["name"]: worker["pid"] for worker in daemon.workers()}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    for name in pids:
        grown(daemon, before, "penstock_worker_restarts_total", 1, worker=name, reason="died")
    daemon.wait_workers(2)
    assert daemon.request("POST", "/v1/workers/default:1/restart").status == 202
    grown(daemon, before, "penstock_worker_restarts_total", 1, worker="default:1", reason="requested")
    eventually(lambda: daemon.in_flight() == 0, "the old one is gone")
    daemon.begin("stubborn", 5, {"Request-Timeout": "0.2"})
    reason = {"reason": "deadline"}
    eventually(lambda: Samples(daemon)("penstock_worker_restarts_total", **reason) == 1, "one was too stubborn")
    daemon.wait_workers(2)
    after = Samples(daemon)
    for key, value in before.counters().items():
        assert after.values[key] >= value, key
    assert after.labels("worker") == set(pids), "by name, and no name more than there are workers"
    assert sum(worker["restarts"] for worker in daemon.workers()) == after("penstock_worker_restarts_total")
    every = {value for _, has in after.values for _, value in has}
    assert not every & {str(worker["pid"]) for worker in daemon.workers()}


def test_a_worker_that_is_stopped_is_down(daemon: Daemon) -> None:
    assert Samples(daemon)("penstock_worker_up", worker="default:0") == 1
    pid = daemon.worker("default:0")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        lag = {"worker": "default:0"}
        eventually(lambda: Samples(daemon)("penstock_worker_loop_lag_seconds", **lag) > 0.5, "its loop is seen to hang")
        assert Samples(daemon)("penstock_worker_loop_lag_seconds", worker="default:1") < 0.5
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: Samples(daemon)("penstock_worker_loop_lag_seconds", **lag) < 0.5, "it turns again")
