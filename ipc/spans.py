"""OpenTelemetry's SDK in one process: how spans are made, exported in the background, and flushed at the end.

Imported only where spans are on; see ``tracing.py``. Exporting goes on in a thread of the SDK, which keeps as many
spans as ``OTEL_BSP_MAX_QUEUE_SIZE`` says and drops what is more. A collector that does not answer costs one line of the
log, and another when it answers again: the SDK's own lines, one for each try, are taken for the reason and not shown.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points, version
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags, Tracer
from opentelemetry.trace.span import TraceState

from .log import get_logger

log = get_logger("penstock.tracing")

FLUSH: Final = 2.0
"""Seconds that a process which stops gives its last spans."""

PROTOCOLS: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""Names of exporters, by ``OTEL_EXPORTER_OTLP_PROTOCOL``."""

QUEUE: Final = "opentelemetry.sdk._shared_internal"
"""The logger of the SDK's queue."""

GROUP: Final = "opentelemetry_traces_exporter"
"""Of the entry points by which packages offer exporters."""


class Spans:
    """The spans of this process."""

    def __init__(self, environ: Mapping[str, str], worker: str = "") -> None:
        """Raises whatever the SDK and its exporters raise for variables that they cannot use."""
        self.provider = TracerProvider(resource=_resource(worker), shutdown_on_exit=False)
        self.tracer: Tracer = self.provider.get_tracer("penstock", version("penstock"))
        _divert(QUEUE, _overflow)
        for exporter in _exporters(environ):
            self.provider.add_span_processor(BatchSpanProcessor(_Reporting(exporter(), worker)))
            _divert(exporter.__module__, _reasons)

    async def close(self, patience: float = FLUSH) -> None:
        """Export what is left, as far as these seconds suffice."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def close() -> None:
            self.provider.shutdown()
            loop.call_soon_threadsafe(done.set)

        # Not in the loop's executor, whose threads are waited for at the end of the process.
        threading.Thread(target=close, name="penstock-spans", daemon=True).start()
        try:
            async with asyncio.timeout(patience):
                await done.wait()
        except TimeoutError:
            log.debug("the last spans could not be exported within %g s", patience)


def preload(environ: Mapping[str, str]) -> None:
    """Import the exporters."""
    _exporters(environ)


def _exporters(environ: Mapping[str, str]) -> list[type[SpanExporter]]:
    """Those that ``OTEL_TRACES_EXPORTER`` names (``ValueError``)."""
    names = [name.strip() for name in (environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp").split(",")]
    return [_exporter(name, environ) for name in names if name and name != "none"]


def _exporter(name: str, environ: Mapping[str, str]) -> type[SpanExporter]:
    if name == "otlp":
        variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = next(filter(None, (environ.get(each, "").strip() for each in variables)), "http/protobuf")
        if protocol not in PROTOCOLS:
            raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; there are: {', '.join(PROTOCOLS)}")
        name = PROTOCOLS[protocol]
    for found in entry_points(group=GROUP, name=name):
        exporter: type[SpanExporter] = found.load()
        return exporter
    known = sorted({"otlp", "none", *(each.name for each in entry_points(group=GROUP))})
    raise ValueError(f"no package offers the exporter {name!r} (OTEL_TRACES_EXPORTER); there are: {', '.join(known)}")


def _resource(worker: str) -> Resource:
    """As ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` say, with a name of ours where they give none."""
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "penstock", SERVICE_VERSION: version("penstock")}))
    return resource.merge(Resource({"penstock.worker": worker})) if worker else resource


# Traces that go on


def remote(traceparent: str, tracestate: str) -> SpanContext:
    """The span that these headers name. They were checked by whoever received them."""
    _, trace_id, span_id, flags = traceparent.split("-")
    state = TraceState.from_header([tracestate]) if tracestate else None
    return SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), state)


def parent(traceparent: str, tracestate: str) -> Context:
    """The context of a span that continues these headers' trace; one without a parent if they are empty."""
    if not traceparent:
        return Context()
    return trace.set_span_in_context(NonRecordingSpan(remote(traceparent, tracestate)), Context())


def headers(span: Span) -> tuple[str, str]:
    """``traceparent`` and ``tracestate`` for what belongs to this span."""
    context = span.get_span_context()
    given = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return given, context.trace_state.to_header() if context.trace_state else ""


# Collectors that do not answer


class _Reporting(SpanExporter):
    """Says once when spans cannot be exported, and once when they can be again; and once if there are too many."""

    def __init__(self, exporter: SpanExporter, worker: str) -> None:
        self._exporter = exporter
        # The supervisor has spans of the same requests and exports them to the same place, so it speaks for all.
        self._levels = (logging.DEBUG, logging.DEBUG) if worker else (logging.WARNING, logging.INFO)
        self._lost = 0
        self._overflowed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        _reasons.first = ""
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            result = SpanExportResult.FAILURE
            _reasons.first = f"{type(error).__name__}: {error}"
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                log.log(self._levels[1], "spans are exported again; at least %d were dropped", self._lost)
            elif _overflow.heard and not self._overflowed:
                self._overflowed = True
                log.log(self._levels[0], "spans are dropped: more are created than exported (OTEL_BSP_MAX_QUEUE_SIZE)")
            self._lost = 0
            _overflow.forget()
        else:
            if not self._lost:
                why = _reasons.first or "no reason given"
                log.log(self._levels[0], "spans cannot be exported, and are dropped: %s", why)
            self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Reasons(logging.Handler):
    """Keeps the first of what an exporter's logger says about a batch: its later lines are about its tries."""

    first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage().partition("\n")[0][:400]


class _Overflow(logging.Handler):
    """Hears of a span that finds the SDK's queue full. What the SDK says of each further one is not even made."""

    heard = False

    def emit(self, record: logging.LogRecord) -> None:
        self.heard = True
        logging.getLogger(QUEUE).setLevel(logging.CRITICAL)

    def forget(self) -> None:
        self.heard = False
        logging.getLogger(QUEUE).setLevel(logging.NOTSET)


_reasons: Final = _Reasons()
_overflow: Final = _Overflow()


def _divert(logger: str, handler: logging.Handler) -> None:
    """Have a logger's lines handled here and not shown."""
    diverted = logging.getLogger(logger)
    diverted.handlers[:] = [handler]
    diverted.propagate = False
