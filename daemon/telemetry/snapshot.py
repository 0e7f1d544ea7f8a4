"""Everything that there is to see of the daemon, as plain data for JSON: ``/v1/status`` and ``/v1/workers``.

It is put together from where things are known at the moment that somebody asks. What has not been measured (yet) is
null, never a number that stands for it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from typing import Any, Final

from ..config.configuration import Configuration
from ..engine.catalogue import Listing
from ..engine.engine import Engine
from ..fleet.fleet import Fleet
from ..fleet.journal import Journal
from ..fleet.views import WorkerView
from ..host.listeners import Listeners
from .engine_views import queue_view, throttle_view
from .monitor import Monitor, Usage, loop_lag
from .poolstats import DatabasePools
from .traffic import Pace, Summary, Traffic

SHOWN: Final = (
    *("name", "pool", "pid", "state", "generation", "in_flight", "slots", "load", "restarts", "answered", "since"),
    *("reason", "health", "code", "oldest"),
)
"""What people see of a worker as it is."""


class Snapshot:
    """Reads from all parts of the daemon."""

    def __init__(
        self,
        version: str,
        engine: Engine,
        monitor: Monitor,
        traffic: Traffic,
        pools: DatabasePools,
        journal: Journal,
        fleet: Fleet,
        configuration: Configuration,
        listeners: Listeners,
    ) -> None:
        self._version = version
        self._engine = engine
        self._monitor = monitor
        self._traffic = traffic
        self._pools = pools
        self._journal = journal
        self._listeners = listeners
        self._started_at = time.monotonic()
        self._fleet = fleet
        self._configuration = configuration

    def status(self, history_since: float = 0.0) -> dict[str, Any]:
        """The whole; of history and events what is newer than this time in unix seconds."""
        queue = queue_view(self._engine)
        return {
            "version": self._version,
            "state": self._engine.ready or "ready",
            "uptime": time.monotonic() - self._started_at,
            "pid": os.getpid(),
            "at": time.time(),
            "listening": {"http": self._listeners.http, "admin": self._listeners.admin},
            "workers": self.workers(),
            "queue": dataclasses.asdict(queue),
            "throttle": dataclasses.asdict(throttle_view(self._engine)),
            "database": self._database(),
            "agents": self._agents(queue.by_agent),
            "host": None if self._monitor.host is None else dataclasses.asdict(self._monitor.host),
            "supervisor": self._supervisor(),
            "traffic": _summary(self._traffic.summary()),
            "events": self._journal.since(history_since),
            "history": self._monitor.history.since(history_since),
        }

    def _database(self) -> dict[str, Any]:
        settings = self._configuration.current.database
        dsn = settings.dsn
        return {
            "mode": "embedded" if not dsn else "off" if dsn == "off" else "external",
            "max_connections": settings.max_connections,
            "granted": self._fleet.granted,
        }

    def _supervisor(self) -> dict[str, Any]:
        usage = self._monitor.usage(os.getpid())
        return {"pid": os.getpid(), **_usage(usage), "loop_lag": self._monitor.lag}

    # Agents

    def _agents(self, waiting: dict[str, int]) -> list[dict[str, Any]]:
        running = Counter(
            request.agent.name
            for pool in self._engine.scheduler.pools.values()
            for worker in pool.workers
            for request in worker.calls.values()
        )
        listings = sorted(self._engine.catalogue.items())
        return [self._agent(each, running[name], waiting.get(name, 0)) for name, each in listings]

    def _agent(self, listing: Listing, in_flight: int, waiting: int) -> dict[str, Any]:
        name, cost = listing.agent.name, listing.agent.cost
        seen = self._traffic.agent(name)
        summary = Summary(0.0, 0.0, 0.0, None, None, None) if seen is None else self._traffic.summary(agent=seen)
        return {
            "name": name,
            "pool": listing.agent.pool,
            "kind": listing.info.kind,
            "in_flight": in_flight,
            "waiting": waiting,
            "rate": summary.rate,
            "p50": summary.p50,
            "p95": summary.p95,
            "p99": summary.p99,
            "errors": summary.failed,
            "wall": cost.wall if cost.calls else None,
            "cpu": cost.cpu if cost.calls else None,
            "db": cost.db if cost.calls else None,
        }

    # Workers

    def workers(self) -> list[dict[str, Any]]:
        """Every worker, in order."""
        return [self._worker(view) for view in self._fleet.workers()]

    def worker(self, name: str) -> dict[str, Any] | None:
        """One worker; None: there is none of that name."""
        view = self._fleet.worker(name)
        return None if view is None else self._worker(view)

    def _worker(self, view: WorkerView) -> dict[str, Any]:
        lag, turned = None, None
        if view.vitals is not None and view.vitals.turned_at:
            lag, turned = loop_lag(view.vitals, time.monotonic())
        whole, by_agent = self._traffic.paces(view.name)
        return {
            **{name: getattr(view, name) for name in SHOWN},
            "state": view.state.value,
            **_usage(self._monitor.usage(view.pid) if view.pid else None),
            "loop_lag": lag,
            "turned": turned,
            **_pace(whole),
            "agents": {name: _pace(pace) for name, pace in by_agent.items()},
            "database": {kind: pool.view() for kind, pool in self._pools.of(view.name, view.generation).items()},
        }


def _usage(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return dict.fromkeys(("cpu", "rss", "uss", "threads", "fds", "switches"))
    rates = {"voluntary": usage.voluntary, "involuntary": usage.involuntary}
    switches = None if usage.voluntary is None else rates
    return {
        "cpu": usage.cpu,
        "rss": usage.rss,
        "uss": usage.uss,
        "threads": usage.threads,
        "fds": usage.fds,
        "switches": switches,
    }


def _pace(pace: Pace) -> dict[str, Any]:
    return {"rate": pace.rate, "p50": pace.p50, "p95": pace.p95}


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "rate": summary.rate,
        "refused": summary.refused,
        "failed": summary.failed,
        "p50": summary.p50,
        "p95": summary.p95,
        "p99": summary.p99,
    }
