"""Properties of what is counted: no counter ever falls, and nothing is counted twice or not at all."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from penstock.daemon.core.model import Agent, Worker
from penstock.daemon.core.window import BOUNDS, bucket, quantile
from penstock.daemon.engine.engine import Engine
from penstock.daemon.engine.tickets import Ticket
from penstock.daemon.fleet.journal import Journal
from penstock.daemon.telemetry import traffic as traffic_module
from penstock.daemon.telemetry.metrics import Metrics
from penstock.daemon.telemetry.monitor import Monitor
from penstock.daemon.telemetry.poolstats import DatabasePools
from penstock.daemon.telemetry.traffic import Traffic
from penstock.ipc.messages import WAIT_BOUNDS, PoolStatistics, Statistics
from tests.fix_sinks import Awaited

AGENTS = st.sampled_from(["a", "b"])
STEPS = st.one_of(
    st.tuples(st.just("responded"), AGENTS, st.sampled_from([200, 404, 429, 500, 503, 504])),
    st.tuples(st.just("answered"), AGENTS, st.tuples(st.floats(0, 50), st.floats(0, 50))),
    st.tuples(st.just("ended"), AGENTS, st.tuples(st.floats(0, 50), st.floats(0, 50))),
    st.tuples(st.just("refused"), st.sampled_from(["requests", "share"]), st.integers(0, 7)),
    st.tuples(st.just("expired"), AGENTS, st.sampled_from(["admission", "queue", "agent"])),
    st.tuples(st.just("restarted"), st.sampled_from(["p:0", "p:1"]), st.sampled_from(["died", "reload"])),
    st.tuples(st.just("statistics"), st.sampled_from(["p:0", "p:1"]), st.integers(1, 3)),
    st.tuples(st.just("tick"), st.just(""), st.just(0)),
    st.tuples(st.just("look"), st.just(""), st.just(0)),
)


@pytest.fixture(autouse=True, scope="module")
def _few_are_noted() -> Iterator[None]:
    """So that answers are counted both when there are enough of them, and when somebody looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traffic_module, "NOTED", 3)
        yield


class Ground:
    """Everything that counts, with time in our hand."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.engine = Engine(self.loop)
        self.journal = Journal()
        self.pools = DatabasePools()
        self.now = time.monotonic()
        self.traffic = Traffic(self.now)
        fleet = Mock(**{"workers.return_value": []})
        self.monitor = Monitor(self.loop, self.engine, self.traffic, fleet)
        self.metrics = Metrics("1", self.engine, self.monitor, self.traffic, self.pools, self.journal, fleet)

    def close(self) -> None:
        self.monitor.close()
        self.loop.close()

    def ticket(self, agent: str, waited: float, ran: float) -> Ticket:
        now = time.monotonic()
        ticket = Ticket(
            Agent(agent, "p"),
            now - waited - ran,
            now + 60,
            request_id="r",
            body=b"",
            headers=None,
            priority=3,
            client="c",
            affinity="",
            sink=Awaited(),
        )
        ticket.dispatched_at = now - ran
        return ticket

    def step(self, what: str, name: str, detail: Any) -> None:
        traffic = self.traffic
        if what == "answered":
            traffic.answered(self.ticket(name, *detail), Worker("p:0", 1, "p", 4, 4), time.monotonic())
        elif what == "ended":
            traffic.ended(self.ticket(name, *detail))
        elif what == "refused":
            self.engine.refused[name, detail] += 1
        elif what == "restarted":
            self.journal.restarted(name, detail, "text")
        elif what == "statistics":
            waits = [detail] + [0] * len(WAIT_BOUNDS)
            self.pools.received(Statistics(name, detail, [PoolStatistics("async", 1, 1, 0, 2, waits, 0.1, 0)]))
        elif what == "look":
            self.metrics.expose("")
        elif what == "tick":
            self.now += 1.0
            traffic.tick(self.now)
        else:
            getattr(traffic, what)(name, detail)

    def samples(self, accept: str, parse: Callable[[str], Any]) -> tuple[dict[Any, float], dict[str, str]]:
        families = list(parse(self.metrics.expose(accept)[0].decode()))
        values = {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}
        return values, {family.name: family.type for family in families}


@given(st.lists(STEPS, max_size=40))
def test_no_counter_falls_and_both_formats_say_the_same(steps: list[tuple[str, str, Any]]) -> None:
    ground = Ground()
    try:
        before: dict[Any, float] = {}
        for step in steps:
            ground.step(*step)
            after, types = ground.samples("", parse_text)
            for key, value in before.items():
                if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
                    assert after[key] >= value, key
            before = after
        text, _ = ground.samples("", parse_text)
        open_text, types = ground.samples("application/openmetrics-text", parse_openmetrics)
        assert text == open_text
        assert types["penstock_requests"] == types["penstock_worker_restarts"] == "counter"
        assert types["penstock_request_seconds"] == types["penstock_db_pool_wait_seconds"] == "histogram"
    finally:
        ground.close()


@given(st.lists(STEPS, max_size=60))
def test_everything_is_counted_once(steps: list[tuple[str, str, Any]]) -> None:
    ground = Ground()
    try:
        for step in steps:
            ground.step(*step)
        values, _ = ground.samples("", parse_text)
        codes = Counter((name, str(detail)) for what, name, detail in steps if what == "responded")
        for (agent, code), count in codes.items():
            assert values["penstock_requests_total", ("agent", agent), ("code", code)] == count
        ends = Counter(name for what, name, _ in steps if what in ("answered", "ended"))
        for agent, count in ends.items():
            assert values["penstock_request_seconds_count", ("agent", agent)] == count
        assert values["penstock_queue_seconds_count",] == ends.total()
        waits = sum(detail for what, _, detail in steps if what == "statistics")
        assert values["penstock_db_pool_wait_seconds_count",] == waits
    finally:
        ground.close()


@given(st.lists(st.lists(STEPS, max_size=10), min_size=1, max_size=15))
def test_rates_are_what_came_in_the_last_turns(turns: list[list[tuple[str, str, Any]]]) -> None:
    ground = Ground()
    try:
        for steps in turns:
            for step in steps:
                if step[0] != "tick":
                    ground.step(*step)
            ground.step("tick", "", 0)
        last = [step for steps in turns[-10:] for step in steps]
        summary = ground.traffic.summary()
        seconds = min(10, len(turns))
        codes = [detail for what, _, detail in last if what == "responded"]
        assert round(summary.rate * seconds) == sum(code == 200 for code in codes)
        assert round(summary.refused * seconds) == sum(code in (429, 503) for code in codes)
        assert round(summary.failed * seconds) == sum(code in (500, 504) for code in codes)
        answers = sum(what == "answered" for what, _, _ in last)
        pace, by_agent = ground.traffic.paces("p:0")
        assert round(pace.rate * seconds) == answers
        assert (pace.p50 is None) == (answers == 0)
        assert round(sum(each.rate for each in by_agent.values()) * seconds) == answers
    finally:
        ground.close()


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=12))
def test_a_workers_pace_is_its_own_part_of_the_time(answers: list[tuple[float, float]]) -> None:
    ground = Ground()
    try:
        ran, waits = [], []
        for waited, runs in answers:
            ticket = ground.ticket("a", waited, runs)
            ended = ticket.arrived_at + waited + runs
            ran.append((ended - ticket.arrived_at) - (ticket.dispatched_at - ticket.arrived_at))
            waits.append(ticket.dispatched_at - ticket.arrived_at)
            ground.traffic.answered(ticket, Worker("p:0", 1, "p", 4, 4), ended)
        counts = Counter(map(bucket, waits))
        assert ground.traffic.queue.counts == [counts[at] for at in range(len(BOUNDS) + 1)]
        ground.step("tick", "", 0)
        pace, _ = ground.traffic.paces("p:0")
        assert pace.p50 == quantile(Counter(map(bucket, ran)), 0.5)
        assert pace.p95 == quantile(Counter(map(bucket, ran)), 0.95)
    finally:
        ground.close()
