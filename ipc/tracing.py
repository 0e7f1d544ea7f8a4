"""Whether spans are on, found out without importing OpenTelemetry.

Spans are OpenTelemetry's, by the extra ``otel``, set up by the environment variables that its specification names. They
are on when ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or the one for traces) or ``OTEL_TRACES_EXPORTER`` is set. Supervisor and
workers look at the same environment; each has its own SDK (``spans.py``), made after the worker was forked, since there
is a thread in it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from .log import get_logger

if TYPE_CHECKING:
    from .spans import Spans

log = get_logger("penstock.tracing")

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for spans."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporters:
        return exporters.lower() != "none"
    return any(environ.get(name, "").strip() for name in ENDPOINTS)


def preload(environ: Mapping[str, str]) -> None:
    """Import what ``open_spans`` is going to need, if it is. Starts nothing."""
    if wanted(environ):
        try:
            from .spans import preload as preload_spans

            preload_spans(environ)
        except Exception as error:
            log.debug("OpenTelemetry could not be preloaded: %s", error)  # each process says what it lacks


def open_spans(environ: Mapping[str, str], worker: str = "") -> Spans | None:
    """The spans of this process; None if the environment does not ask for them, or they cannot be had.

    ``worker``: its name. Why they cannot be had is said once for the daemon, by the supervisor.
    """
    if not wanted(environ):
        return None
    level = logging.DEBUG if worker else logging.ERROR
    try:
        from .spans import Spans
    except ImportError as error:
        log.log(level, "there are no spans: %s; they need the extra: pip install 'penstock[otel]'", error)
        return None
    try:
        return Spans(environ, worker)
    except Exception as error:
        # Of all kinds: what the variables say is read in many places of the SDK, by entry points of anybody's too.
        log.log(level, "there are no spans: %s", error)
        return None
