"""Traces: carried to agents and logs without spans, and with spans exported to a real collector."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fix_daemon import Daemon, DaemonFactory, eventually
from tests.fix_otlp import ERROR, INTERNAL, SERVER, UNSET, Collector, Span

CALL = "POST /v1/agents/{agent}"
_numbers = itertools.count(1)


def fresh_trace(flags: str = "01") -> tuple[str, str]:
    """A trace id and the ``traceparent`` of a client that is in it."""
    trace_id = f"{next(_numbers):032x}"
    return trace_id, f"00-{trace_id}-00f067aa0ba902b7-{flags}"


# Without spans


@pytest.fixture(scope="module")
def plain(daemons: DaemonFactory) -> Daemon:
    return daemons("traced", "basic", settings={"log.format": "json", "log.level": "debug"})


def test_modules_of_opentelemetry_are_not_imported_without_spans(plain: Daemon) -> None:
    assert not plain.call("trace").json["opentelemetry"]
    loaded = (
        "import sys, penstock.daemon.__main__, penstock.daemon.run, penstock.workers.preload;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    seen = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, env=environment, check=True)
    assert seen.stdout.strip() == "[]"


@pytest.mark.parametrize("agent", ["trace", "trace_sync"])
def test_a_trace_is_carried_to_the_agent(plain: Daemon, agent: str) -> None:
    _, given = fresh_trace()
    told = plain.call(agent, None, {"traceparent": given, "tracestate": "a=1, b=2"}).json
    assert (told["traceparent"], told["tracestate"]) == (given, "a=1,b=2")


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-unreadable", "tracestate": "a=1"}])
def test_without_a_readable_trace_none_is_begun(plain: Daemon, headers: dict[str, str]) -> None:
    reply = plain.call("trace", None, headers)
    assert (reply.status, reply.json["traceparent"], reply.json["tracestate"]) == (200, "", "")


def test_what_an_agent_asks_of_others_belongs_to_its_trace(plain: Daemon) -> None:
    _, given = fresh_trace()
    inner = json.loads(plain.call("onward", plain.port, {"traceparent": given}).json)
    assert inner["traceparent"] == given


def lines(daemon: Daemon, **wanted: str) -> list[dict[str, Any]]:
    """The lines of a JSON log of which all this is true."""
    found = [json.loads(line) for line in daemon.log.splitlines() if line.startswith("{")]
    return [line for line in found if all(line.get(name) == value for name, value in wanted.items())]


@pytest.mark.parametrize("agent", ["trace", "trace_sync"])
def test_lines_about_a_call_say_which_where_and_in_which_trace(plain: Daemon, agent: str) -> None:
    trace_id, given = fresh_trace()
    reply = plain.call(agent, None, {"traceparent": given, "X-Request-Id": f"log-{agent}"})
    assert reply.status == 200
    (line,) = eventually(lambda: lines(plain, trace_id=trace_id), "the line is written")
    assert (line["request_id"], line["agent"], line["message"]) == (f"log-{agent}", agent, "traced")
    assert line["worker"] in ("default:0", "default:1")


def test_lines_about_an_agent_that_fails_say_so_too(plain: Daemon) -> None:
    trace_id, given = fresh_trace()
    plain.call("fail", None, {"traceparent": given, "X-Request-Id": "log-fail"})
    (line,) = eventually(lambda: lines(plain, trace_id=trace_id), "the line is written")
    assert (line["request_id"], line["agent"], line["worker"][:8]) == ("log-fail", "fail", "default:")


def test_lines_of_the_supervisor_about_a_call_say_so_too(plain: Daemon) -> None:
    trace_id, given = fresh_trace()
    plain.call("die", None, {"traceparent": given, "X-Request-Id": "log-die"})
    (line,) = eventually(lambda: lines(plain, trace_id=trace_id), "the line is written")
    assert (line["request_id"], line["agent"], line["worker"][:8]) == ("log-die", "die", "default:")
    assert line["logger"] == "penstock.engine"
    plain.wait_workers(2)


def test_lines_that_name_a_worker_carry_it(plain: Daemon) -> None:
    named = re.compile(r"\b(default:[01])\b")
    about = [line for line in lines(plain) if named.search(line["message"])]
    assert "penstock.fleet" in {line["logger"] for line in about}
    for line in about:
        assert line.get("worker") in named.findall(line["message"]), line


# With spans


@pytest.fixture(scope="module")
def traced(daemons: DaemonFactory, collector: Collector) -> Daemon:
    return daemons("traced", "basic", environment=collector.environment)


def call(daemon: Daemon, agent: str, value: Any = None, **headers: str) -> tuple[str, int]:
    """Call it in a trace of its own; the trace's id and the status."""
    trace_id, given = fresh_trace()
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return trace_id, daemon.call(agent, value, {"traceparent": given, **headers}).status


def server_span(collector: Collector, trace_id: str) -> Span:
    return collector.wait(trace_id=trace_id, kind=SERVER)[0]


def agent_span(collector: Collector, trace_id: str) -> Span:
    return collector.wait(trace_id=trace_id, kind=INTERNAL)[0]


@pytest.mark.parametrize("agent", ["trace", "trace_sync"])
def test_the_agents_span_is_the_child_of_the_requests_and_that_of_the_clients(
    traced: Daemon, collector: Collector, agent: str
) -> None:
    trace_id, given = fresh_trace()
    told = traced.call(agent, None, {"traceparent": given, "tracestate": "a=1"}).json
    server, inner = server_span(collector, trace_id), agent_span(collector, trace_id)
    assert (server.name, inner.name) == (CALL, f"agent {agent}")
    assert server.parent_id == "00f067aa0ba902b7"
    assert inner.parent_id == server.span_id
    assert (server.tracestate, inner.tracestate) == ("a=1", "a=1")
    assert (told["traceparent"], told["tracestate"]) == (f"00-{trace_id}-{inner.span_id}-01", "a=1")
    assert server.seconds >= inner.seconds


def test_a_request_without_a_trace_begins_one(traced: Daemon, collector: Collector) -> None:
    told = traced.call("trace").json["traceparent"]
    server = server_span(collector, told.split("-")[1])
    assert server.parent_id == ""


def test_a_span_has_the_attributes_of_the_conventions_and_ours(traced: Daemon, collector: Collector) -> None:
    trace_id, _ = call(traced, "trace", X_Request_Id="attributes", User_Agent="test/1", Host="penstock.test:81")
    server, inner = server_span(collector, trace_id), agent_span(collector, trace_id)
    queued = server.attributes.pop("penstock.queue_seconds")
    assert 0 <= queued <= server.seconds
    worker = inner.resource["penstock.worker"]
    assert worker in ("default:0", "default:1")
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/agents/{agent}",
        "http.response.status_code": 200,
        "url.path": "/v1/agents/trace",
        "url.scheme": "http",
        "server.address": "penstock.test",
        "server.port": 81,
        "client.address": "127.0.0.1",
        "network.protocol.version": "1.1",
        "user_agent.original": "test/1",
        "penstock.agent": "trace",
        "penstock.worker": worker,
        "penstock.request_id": "attributes",
    }
    assert inner.attributes == {
        "penstock.agent": "trace",
        "penstock.request_id": "attributes",
        "code.function.name": "traced.trace",
    }
    assert server.resource["service.name"] == inner.resource["service.name"] == "penstock"
    assert (server.status, inner.status) == (UNSET, UNSET)


def test_odd_bytes_are_written_out_in_a_span(traced: Daemon, collector: Collector) -> None:
    trace_id, given = fresh_trace()
    odd = {"User-Agent": b"caf\xe9", "Host": b"h\xe9:" + b"9" * 5000, "traceparent": given.encode()}
    connection = http.client.HTTPConnection("127.0.0.1", traced.port, timeout=30)
    connection.putrequest("POST", "/v1/agents/trace", skip_host=True)
    for name, value in {**odd, "Content-Length": b"0"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 400  # no body, which comes later than the span
    connection.close()
    server = server_span(collector, trace_id)
    assert server.attributes["user_agent.original"] == "caf\\udce9"
    assert server.attributes["server.address"] == "h\\udce9"
    assert "server.port" not in server.attributes


def test_faults_of_clients_are_no_errors_of_the_server(traced: Daemon, collector: Collector) -> None:
    faults: list[tuple[str, Any, int]] = [("nobody", None, 404), ("order", [], 422), ("teapot", None, 418)]
    for agent, value, status in faults:
        trace_id, given = call(traced, agent, value)
        server = server_span(collector, trace_id)
        assert (given, server.attributes["http.response.status_code"]) == (status, status)
        assert (server.status, server.attributes.get("error.type")) == (UNSET, None)


def test_an_agent_that_raises_is_an_error_of_both(traced: Daemon, collector: Collector) -> None:
    trace_id, status = call(traced, "fail")
    server, inner = server_span(collector, trace_id), agent_span(collector, trace_id)
    assert status == server.attributes["http.response.status_code"] == 500
    assert (server.status, server.attributes["error.type"]) == (ERROR, "agent-error")
    assert (inner.status, inner.attributes["error.type"], inner.events) == (ERROR, "builtins.ValueError", ["exception"])


def test_an_exception_that_cannot_be_read_is_an_error_all_the_same(traced: Daemon, collector: Collector) -> None:
    trace_id, status = call(traced, "fail_oddly")
    assert (status, agent_span(collector, trace_id).attributes["error.type"]) == (500, "traced.OddError")


@pytest.mark.parametrize("agent", ["wait", "idle"])
def test_a_deadline_is_an_error_of_both(traced: Daemon, collector: Collector, agent: str) -> None:
    trace_id, status = call(traced, agent, {"seconds": 20.0}, Request_Timeout="0.2")
    server, inner = server_span(collector, trace_id), agent_span(collector, trace_id)
    assert status == 504
    assert (server.status, server.attributes["error.type"]) == (ERROR, "deadline-exceeded")
    assert (inner.status, inner.attributes["error.type"], inner.events) == (ERROR, "deadline-exceeded", [])


def test_a_worker_that_dies_is_an_error_of_the_request(traced: Daemon, collector: Collector) -> None:
    trace_id, status = call(traced, "die")
    assert (status, server_span(collector, trace_id).attributes["error.type"]) == (502, "worker-died")
    traced.wait_workers(2)


def test_a_client_that_goes_is_nobodys_error(traced: Daemon, collector: Collector, tmp_path: Path) -> None:
    trace_id, given = fresh_trace()
    body = json.dumps({"path": str(tmp_path / "begun"), "seconds": 20.0})
    head = f"Host: x\r\ntraceparent: {given}\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", traced.port)) as client:
        client.sendall(f"POST /v1/agents/mark_and_wait HTTP/1.1\r\n{head}\r\n{body}".encode())
        eventually((tmp_path / "begun").exists, "the call runs")
    server, inner = server_span(collector, trace_id), agent_span(collector, trace_id)
    for span in (server, inner):
        assert (span.status, span.attributes["error.type"]) == (UNSET, "client-gone")
    assert "http.response.status_code" not in server.attributes


@pytest.mark.parametrize("agent", ["nest", "nest_sync", "nest_later"])
def test_spans_of_the_agents_own_lie_within(traced: Daemon, collector: Collector, agent: str) -> None:
    trace_id, given = fresh_trace()
    span_id = traced.call(agent, None, {"traceparent": given}).json
    nested = collector.wait(span_id=span_id)[0]
    (outer,) = collector.wait(name=f"agent {agent}", trace_id=trace_id)
    assert (nested.trace_id, nested.parent_id) == (trace_id, outer.span_id)
    assert ("penstock-agent" in nested.attributes["thread"]) == (agent == "nest_sync")


@pytest.mark.parametrize("agent", ["nest_stream", "nest_stream_sync"])
def test_the_agents_span_lasts_as_long_as_its_stream(traced: Daemon, collector: Collector, agent: str) -> None:
    trace_id, given = fresh_trace()
    items = [json.loads(line) for line in traced.call(agent, None, {"traceparent": given}).body.splitlines()]
    (outer,) = collector.wait(name=f"agent {agent}", trace_id=trace_id)
    assert outer.seconds > 0.2
    for span_id in items:
        assert collector.wait(span_id=span_id)[0].parent_id == outer.span_id
    assert len(items) == 2


def test_a_stream_that_fails_is_a_failure_of_its_span(traced: Daemon, collector: Collector) -> None:
    trace_id, status = call(traced, "fail_stream")
    assert status == 200
    failed = agent_span(collector, trace_id)
    assert (failed.status, failed.attributes["error.type"]) == (ERROR, "builtins.ValueError")


def test_what_an_agent_asks_of_others_lies_within(traced: Daemon, collector: Collector) -> None:
    trace_id, _ = call(traced, "onward", traced.port)
    outer, inner = collector.wait(2, trace_id=trace_id, kind=SERVER)
    agents = {span.name: span for span in collector.wait(2, trace_id=trace_id, kind=INTERNAL)}
    assert agents["agent onward"].span_id in (outer.parent_id, inner.parent_id)


def test_a_client_that_does_not_sample_is_obeyed(traced: Daemon, collector: Collector) -> None:
    trace_id, given = fresh_trace("00")
    told = traced.call("trace", None, {"traceparent": given}).json["traceparent"]
    assert re.fullmatch(f"00-{trace_id}-[0-9a-f]{{16}}-00", told)
    after, _ = call(traced, "trace")
    assert server_span(collector, after), "and what came later is exported"
    assert agent_span(collector, after)
    assert not collector.find(trace_id=trace_id)


def test_views_make_no_spans(traced: Daemon, collector: Collector) -> None:
    trace_id, given = fresh_trace()
    assert traced.get("/v1/agents/trace", traceparent=given).status == 200
    after, _ = call(traced, "trace")
    assert server_span(collector, after)
    assert not collector.find(trace_id=trace_id)


def test_lines_of_text_say_which_trace_was_begun(traced: Daemon) -> None:
    trace_id = traced.call("trace", None, {"X-Request-Id": "r-1"}).json["traceparent"].split("-")[1]
    noted = (
        rf" WARNING penstock\.agent\.trace: request_id=r-1 trace_id={trace_id} worker=default:[01] agent=trace traced\n"
    )
    eventually(lambda: re.search(noted, traced.log), "the line is written")


# Collectors and settings


def test_the_last_spans_are_exported_at_the_stop(fresh: DaemonFactory) -> None:
    collector = Collector()
    environment = {
        **collector.environment,
        "OTEL_BSP_SCHEDULE_DELAY": "60000",
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_TRACES_SAMPLER": "always_on",
    }
    daemon = fresh("traced", settings={"pools.default.workers": 1}, environment=environment)
    trace_id, given = fresh_trace("00")
    daemon.call("trace", None, {"traceparent": given})
    assert daemon.stop() == 0
    assert {span.kind for span in collector.find(trace_id=trace_id)} == {SERVER, INTERNAL}
    assert {span.resource["service.name"] for span in collector.spans} == {"shop"}
    assert {span.resource["deployment.environment.name"] for span in collector.spans} == {"test"}
    collector.close()


def test_a_collector_that_is_not_there_costs_one_line(fresh: DaemonFactory) -> None:
    collector = Collector(open_=False)
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        "OTEL_BSP_MAX_QUEUE_SIZE": "8",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8",
    }
    daemon = fresh("traced", "basic", settings={"pools.default.workers": 1}, environment=environment)
    assert {reply.status for reply in daemon.calls("echo", list(range(50)), at_once=4)} == {200}
    eventually(lambda: "spans cannot be exported" in daemon.log, "it is said")
    assert {reply.status for reply in daemon.calls("echo", list(range(50)), at_once=4)} == {200}
    said = [line for line in daemon.log.splitlines() if "penstock.tracing" in line or "opentelemetry" in line]
    assert len(said) == 1, said
    assert f"port={collector.port}" in said[0]
    collector.open()
    eventually(lambda: daemon.call("echo").status == 200 and "spans are exported again" in daemon.log, "it is back")
    collector.close()


def test_a_collector_that_hangs_does_not_hold_up_the_stop(fresh: DaemonFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
        }
        daemon = fresh("basic", settings={"pools.default.workers": 1}, environment=environment)
        assert daemon.call("echo", 1).status == 200
        assert daemon.stop() == 0


def test_spans_that_cannot_be_had_are_missed_once(fresh: DaemonFactory) -> None:
    daemon = fresh("traced", environment={"OTEL_TRACES_EXPORTER": "zipkin"})
    assert daemon.call("trace").json["traceparent"] == ""
    assert daemon.log.count("there are no spans: no package offers the exporter 'zipkin'") == 1
    assert daemon.log.count("penstock.tracing") == 1
