"""How the metrics' form is chosen, and that what ships for Prometheus and Grafana names only metrics that exist."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from penstock.daemon.engine.engine import Engine
from penstock.daemon.fleet.journal import Journal
from penstock.daemon.telemetry.metrics import OPENMETRICS, TEXT, Metrics, wants_openmetrics
from penstock.daemon.telemetry.monitor import Monitor
from penstock.daemon.telemetry.poolstats import DatabasePools
from penstock.daemon.telemetry.traffic import Traffic

ETC = Path(__file__).parents[2] / "etc"
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)

SPECIFIED = {
    "penstock_requests_total": {"agent", "code"},
    "penstock_request_seconds": {"agent"},
    "penstock_queue_seconds": set[str](),
    "penstock_queue_requests": set[str](),
    "penstock_queue_bytes": set[str](),
    "penstock_in_flight": {"worker"},
    "penstock_worker_up": {"worker"},
    "penstock_worker_restarts_total": {"worker", "reason"},
    "penstock_worker_cpu_ratio": {"worker"},
    "penstock_worker_rss_bytes": {"worker"},
    "penstock_worker_loop_lag_seconds": {"worker"},
    "penstock_throttle_limit": set[str](),
    "penstock_throttle_rejected_total": {"reason", "priority"},
    "penstock_refusals_paced_total": set[str](),
    "penstock_db_pool_connections": {"worker", "state"},
    "penstock_db_pool_wait_seconds": set[str](),
    "penstock_deadline_exceeded_total": {"agent", "stage"},
    "penstock_batch_size": {"agent"},
    "penstock_batch_wait_seconds": {"agent"},
    "penstock_streams": set[str](),
    "penstock_stream_items_total": {"agent"},
    "penstock_stream_stalled_seconds_total": {"agent"},
    "penstock_calls_nested_total": {"agent"},
    "penstock_build_info": {"version"},
}
"""Every metric with its labels."""


@pytest.fixture
def parts() -> Iterator[Metrics]:
    loop = asyncio.new_event_loop()
    engine, journal = Engine(loop), Journal()
    traffic = Traffic(0.0)
    fleet = Mock(**{"workers.return_value": []})
    monitor = Monitor(loop, engine, traffic, fleet)
    yield Metrics("1.2.3", engine, monitor, traffic, DatabasePools(), journal, fleet)
    monitor.close()
    loop.close()


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0", True),
        ("application/openmetrics-text; version=2.0.0", False),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.3", False),
        ("application/openmetrics-text;q=0", False),
        ("text/plain, application/openmetrics-text", True),
        (PROMETHEUS, True),
        (";;,=,q=", False),
    ],
)
def test_the_form_follows_what_is_preferred(accept: str, openmetrics: bool, parts: Metrics) -> None:
    assert wants_openmetrics(accept) is openmetrics
    body, media_type = parts.expose(accept)
    assert media_type == (OPENMETRICS if openmetrics else TEXT)
    assert body.endswith(b"# EOF\n") is openmetrics
    assert b'penstock_build_info{version="1.2.3"} 1.0' in body


def test_every_metric_is_there_and_has_a_type(parts: Metrics) -> None:
    lines = parts.expose("")[0].decode().splitlines()
    types = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE"))
    assert set(types) == set(SPECIFIED)
    for name, kind in types.items():
        histogram = name.endswith(("_seconds", "_size")) and "loop_lag" not in name
        assert kind == ("counter" if name.endswith("_total") else "histogram" if histogram else "gauge"), name


# What ships


def check(expression: str) -> None:
    """Only metrics and labels that exist, and balanced brackets."""
    for one, other in ("()", "[]", "{}"):
        assert expression.count(one) == expression.count(other), expression
    names = re.findall(r"\bpenstock_\w+", expression)
    assert names or expression.startswith("up{"), expression
    for name in names:
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        assert base in SPECIFIED, f"{name} in {expression}"
        histogram = base.endswith(("_seconds", "_size")) and "loop_lag" not in base
        assert (base == name) != histogram, f"{name} in {expression}"
        labels = re.findall(name + r"\{([^}]*)\}", expression)
        used = {label for group in labels for label in re.findall(r"(\w+)=", group)}
        assert used <= SPECIFIED[base] | {"instance"}, expression
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    known = set[str]().union(*(SPECIFIED[re.sub(r"_(bucket|count|sum)$", "", name)] for name in names))
    assert grouped <= known | {"instance", "le"}, expression


def test_alerts_name_metrics_and_labels_that_exist() -> None:
    rules = yaml.safe_load((ETC / "prometheus-rules.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 5
    for rule in alerts:
        check(rule["expr"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        text = json.dumps(rule["annotations"])
        kept = set(re.findall(r"by \(([^)]*)\)", rule["expr"])[0].split(", ")) if " by (" in rule["expr"] else None
        used = set(re.findall(r"\$labels\.(\w+)", text))
        assert kept is None or used <= kept, rule["alert"]


def expressions(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            if key in ("expr", "query") and isinstance(each, str) and "penstock" in each.replace('"penstock"', ""):
                yield each
            yield from expressions(each)
    elif isinstance(value, list):
        for each in value:
            yield from expressions(each)


def test_the_dashboard_names_metrics_and_labels_that_exist_and_shows_all_of_them() -> None:
    dashboard = json.loads((ETC / "grafana-dashboard.json").read_text())
    found = list(expressions(dashboard))
    for expression in found:
        check(expression.replace("$__rate_interval", "5m"))
    shown = {
        re.sub(r"_(bucket|count|sum)$", "", name) for each in found for name in re.findall(r"\bpenstock_\w+", each)
    }
    assert shown == set(SPECIFIED)
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert all(p["x"] + p["w"] <= 24 for p in places)
