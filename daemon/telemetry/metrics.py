"""The metrics of ``GET /metrics``: collected when they are asked for, from what the daemon counts anyway.

The counters are plain integers that the supervisor owns (``traffic``, ``journal``, ``poolstats``); only the text is
``prometheus_client``'s. Its own counters and histograms take a lock for each step, on the request path, and cost some
five times as much; and its answer to several processes is files that grow with every worker that dies. A scrape costs
the same however long the daemon has run: it depends on the number of agents and workers.

Labels: a worker is its name, never its pid; agents are those that exist or did.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest as prometheus_text
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from penstock.ipc.messages import WAIT_BOUNDS

from ..core.lifecycle import SeatState
from ..core.window import Histogram
from ..engine.engine import Engine
from ..fleet.fleet import Fleet
from ..fleet.journal import Journal
from ..fleet.views import WorkerView
from .engine_views import call_limit
from .monitor import Monitor, loop_lag
from .poolstats import DatabasePools
from .traffic import Traffic

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

BUCKETS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0),
)
"""Upper bounds in seconds of the histograms of requests; all of them are among ``core.window.BOUNDS``."""

SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the histogram of batches."""

_QUALITY: Final = re.compile(r"q=([01](?:\.[0-9]{0,3})?)")


class Metrics(Collector):
    """Collects everything."""

    def __init__(
        self,
        version: str,
        engine: Engine,
        monitor: Monitor,
        traffic: Traffic,
        pools: DatabasePools,
        journal: Journal,
        fleet: Fleet,
    ) -> None:
        self._version = version
        self._engine = engine
        self._monitor = monitor
        self._traffic = traffic
        self._pools = pools
        self._journal = journal
        self._fleet = fleet
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """The text in the form that this ``Accept`` asks for, and its media type."""
        if wants_openmetrics(accept):
            return openmetrics_text(self._registry), OPENMETRICS  # type: ignore[no-untyped-call] # it has none
        return prometheus_text(self._registry), TEXT

    def describe(self) -> Iterable[Metric]:
        """Nothing: it would be collected once for that."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every family, one after another."""
        yield InfoMetricFamily("penstock_build", "Version of the daemon.", value={"version": self._version})
        yield from self._requests()
        yield from self._queue()
        yield from self._workers()
        yield from self._throttle()
        yield from self._database()
        yield from self._batches()

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "penstock_requests",
            "Requests for agents by the status of their answer; 499 where the client had gone.",
            labels=("agent", "code"),
        )
        expired = CounterMetricFamily(
            "penstock_deadline_exceeded",
            "Deadlines that could not be met at admission, or expired in the queue or in the agent.",
            labels=("agent", "stage"),
        )
        seconds = HistogramMetricFamily(
            "penstock_request_seconds",
            "Time from a whole request to its end, of those that were not refused at once.",
            labels=("agent",),
        )
        items = CounterMetricFamily("penstock_stream_items", "Items of streamed results.", labels=("agent",))
        stalled = CounterMetricFamily(
            "penstock_stream_stalled_seconds",
            "Time that streams had to wait for their readers, of those that have ended.",
            labels=("agent",),
        )
        nested = CounterMetricFamily(
            "penstock_calls_nested", "Times that other agents have asked for it.", labels=("agent",)
        )
        for name, agent in sorted(self._traffic.agents.items()):
            for code, count in sorted(agent.codes.items()):
                requests.add_metric((name, str(code)), count)
            for stage, count in sorted(agent.expired.items()):
                expired.add_metric((name, stage), count)
            _add_histogram(seconds, (name,), agent.responses)
            items.add_metric((name,), agent.items)
            stalled.add_metric((name,), agent.stalled)
            nested.add_metric((name,), agent.nested)
        yield requests
        yield expired
        yield seconds
        yield items
        yield stalled
        yield nested
        yield GaugeMetricFamily("penstock_streams", "Streamed answers that are being sent.", self._engine.streams)

    def _queue(self) -> Iterator[Metric]:
        backlog = self._engine.scheduler.backlog
        seconds = HistogramMetricFamily(
            "penstock_queue_seconds",
            "Time from a whole request to its worker, of those not refused at once.",
            labels=(),
        )
        _add_histogram(seconds, (), self._traffic.queue)
        yield seconds
        yield GaugeMetricFamily("penstock_queue_requests", "Requests that wait for a worker.", backlog.requests)
        yield GaugeMetricFamily(
            "penstock_queue_bytes", "Bodies of requests that wait or arrive, in bytes.", backlog.bytes
        )

    # Workers

    def _workers(self) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(f"penstock_{name}", text, labels=("worker",))
            for name, text in (
                ("in_flight", "Calls in flight on the worker."),
                ("worker_up", "Whether the worker serves (its state is RUNNING)."),
                ("worker_cpu_ratio", "CPU that the worker uses, in parts of one core."),
                ("worker_rss_bytes", "Resident memory of the worker."),
                ("worker_loop_lag_seconds", "Delay of the worker's event loop."),
            )
        }
        now = time.monotonic()
        for view in self._fleet.workers():
            for name, value in self._of_worker(view, now):
                families[name].add_metric((view.name,), value)
        yield from families.values()
        restarts = CounterMetricFamily(
            "penstock_worker_restarts",
            "Processes of the worker that ended or were replaced.",
            labels=("worker", "reason"),
        )
        for labels, count in sorted(self._journal.restarts.items()):
            restarts.add_metric(labels, count)
        yield restarts

    def _of_worker(self, view: WorkerView, now: float) -> Iterator[tuple[str, float]]:
        yield "worker_up", float(view.state is SeatState.RUNNING)
        yield "in_flight", view.in_flight
        usage = self._monitor.usage(view.pid) if view.pid else None
        if usage is not None:
            yield "worker_rss_bytes", usage.rss
            if usage.cpu is not None:
                yield "worker_cpu_ratio", usage.cpu
        if view.vitals is not None and view.vitals.turned_at:
            yield "worker_loop_lag_seconds", loop_lag(view.vitals, now)[0]

    # Throttle and database

    def _throttle(self) -> Iterator[Metric]:
        rejected = CounterMetricFamily(
            "penstock_throttle_rejected", "Requests that were refused under load.", labels=("reason", "priority")
        )
        for (reason, priority), count in sorted(self._engine.refused.items()):
            rejected.add_metric((reason, str(priority)), count)
        yield rejected
        yield CounterMetricFamily(
            "penstock_refusals_paced",
            "Refusals that were delayed, since their clients had retried before their Retry-After.",
            self._engine.screening.paced,
        )
        limit = call_limit(self._engine.scheduler)
        yield GaugeMetricFamily("penstock_throttle_limit", "Concurrency limit: calls that may run at once now.", limit)

    def _database(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily(
            "penstock_db_pool_connections", "Connections of the worker's pools.", labels=("worker", "state")
        )
        for view in self._fleet.workers():
            pools = self._pools.of(view.name, view.generation)
            if pools:
                idle = sum(pool.now.available for pool in pools.values())
                connections.add_metric((view.name, "idle"), idle)
                connections.add_metric((view.name, "used"), sum(pool.now.size for pool in pools.values()) - idle)
        yield connections
        waits = HistogramMetricFamily(
            "penstock_db_pool_wait_seconds", "Time spent waiting for a connection.", labels=()
        )
        totals = [sum(self._pools.waits[: at + 1]) for at in range(len(self._pools.waits))]
        waits.add_metric((), _buckets(WAIT_BOUNDS, totals), self._pools.wait_seconds)
        yield waits

    def _batches(self) -> Iterator[Metric]:
        sizes = HistogramMetricFamily("penstock_batch_size", "Requests of a batch.", labels=("agent",))
        seconds = HistogramMetricFamily(
            "penstock_batch_wait_seconds",
            "Time from the arrival of a batch's first request until it went to a worker.",
            labels=("agent",),
        )
        for name, agent in sorted(self._traffic.agents.items()):
            if agent.batches:
                found = [*agent.batches.items()]
                totals = [sum(count for size, count in found if size <= bound) for bound in (*SIZES, math.inf)]
                sizes.add_metric((name,), _buckets(SIZES, totals), sum(size * count for size, count in found))
                _add_histogram(seconds, (name,), agent.gathered)
        yield sizes
        yield seconds


def _add_histogram(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    family.add_metric(labels, _buckets(BUCKETS, histogram.cumulative(BUCKETS)), histogram.seconds)


def _buckets(bounds: Sequence[float], totals: Sequence[int]) -> list[tuple[str, float]]:
    """Pairs of bound and count as the library wants them, the last one without a bound."""
    return list(zip([*map(floatToGoString, bounds), "+Inf"], totals, strict=True))


def wants_openmetrics(accept: str) -> bool:
    """Whether ``Accept`` prefers OpenMetrics 1.0 to the older text."""
    best = {"openmetrics": 0.0, "text": 0.0}
    for item in accept.split(","):
        media, *parameters = (part.strip().lower() for part in item.split(";"))
        found = [match[1] for part in parameters if (match := _QUALITY.fullmatch(part))]
        quality = float(found[0]) if found else 1.0
        if media == "application/openmetrics-text":
            version = next((part.partition("=")[2] for part in parameters if part.startswith("version=")), "1.0.0")
            if version == "1.0.0":
                best["openmetrics"] = max(best["openmetrics"], quality)
        elif media == "text/plain":
            best["text"] = max(best["text"], quality)
    return best["openmetrics"] > 0.0 and best["openmetrics"] >= best["text"]
