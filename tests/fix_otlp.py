"""A collector: an HTTP server on loopback that takes OTLP's traces, as protobuf, and keeps the spans."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.fix_daemon import eventually

SERVER = trace_pb2.Span.SPAN_KIND_SERVER
INTERNAL = trace_pb2.Span.SPAN_KIND_INTERNAL
ERROR = trace_pb2.Status.STATUS_CODE_ERROR
UNSET = trace_pb2.Status.STATUS_CODE_UNSET


@dataclass(frozen=True)
class Span:
    """A span as the collector got it."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    status: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: list[str]
    tracestate: str
    seconds: float


def _value(value: AnyValue) -> Any:
    return getattr(value, str(value.WhichOneof("value")))


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


class Collector:
    """Takes spans for as long as it is open. Its port is its own before that, and refuses connections."""

    def __init__(self, open_: bool = True) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                """Into nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.server_bind()
        self.port = self._server.server_port
        if open_:
            self.open()

    def open(self) -> None:
        """Begin to take them."""
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """For a daemon that is to send its spans here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}", "OTEL_BSP_SCHEDULE_DELAY": "50"}

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_span(each, about) for each in scope.spans]

    def find(self, **wanted: Any) -> list[Span]:
        """The spans of which all this is true so far."""
        return [span for span in list(self.spans) if all(getattr(span, name) == it for name, it in wanted.items())]

    def wait(self, count: int = 1, **wanted: Any) -> list[Span]:
        """So many spans of which all this is true, once they are here."""
        eventually(lambda: len(self.find(**wanted)) >= count, f"{count} spans with {wanted} are exported", 15.0)
        return self.find(**wanted)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _span(span: trace_pb2.Span, resource: dict[str, Any]) -> Span:
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.status.code,
        _attributes(span.attributes),
        resource,
        [event.name for event in span.events],
        span.trace_state,
        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
    )


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()
