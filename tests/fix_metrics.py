"""What a daemon's ``/metrics`` says, read with Prometheus's own parsers."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.fix_daemon import Daemon

Key = tuple[str, frozenset[tuple[str, str]]]


class Samples:
    """One scrape."""

    def __init__(self, daemon: Daemon, accept: str = "text/plain") -> None:
        reply = daemon.get("/metrics", Accept=accept)
        assert reply.status == 200
        self.media_type = reply.headers["Content-Type"]
        parse = parse_openmetrics if self.media_type.startswith("application/openmetrics-text") else parse_text
        self.families = list(parse(reply.body.decode()))
        self.values: dict[Key, float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name that have these labels."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.values.items() if found == name and wanted <= has)

    def labels(self, label: str) -> set[str]:
        """Every value of a label."""
        return {value for _, has in self.values for name, value in has if name == label}

    def counters(self) -> dict[Key, float]:
        """All that must never fall."""
        endings = ("_total", "_bucket", "_count", "_sum")
        return {key: value for key, value in self.values.items() if key[0].endswith(endings)}
