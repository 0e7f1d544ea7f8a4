"""What the document at ``/openapi.json`` says of every route: the one place where they are described.

A route that is served and missing here fails a test, and so does one that is described wrongly enough for the daemon's
own answers not to fit. What is described here and not served (by this listener) does not get into the document.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from .problems import PROBLEMS

JSON: Final = "application/json"
HTML: Final = "text/html"
TEXT: Final = "text/plain"

Route = tuple[str, str]
"""A method and a path, whose variable parts are in braces."""

TAGS: Final = {
    "agents": "Calling the agents.",
    "catalogue": "Descriptions of the agents.",
    "daemon": "Health, status and metrics of the daemon.",
    "administration": "Changes to the daemon, and inspection of its processes; where tokens are in use, scope `admin`.",
    "pages": "Pages for people, and their files.",
}


def ref(kind: str, name: str) -> dict[str, str]:
    """A reference to a component of the document."""
    return {"$ref": f"#/components/{kind}/{name}"}


def _list(name: str, of: str) -> dict[str, Any]:
    items = {"type": "array", "items": ref("schemas", of)}
    return {"type": "object", "required": [name], "properties": {name: items}}


def _object(**properties: Any) -> dict[str, Any]:
    """An object that has these for certain, and perhaps others."""
    return {"type": "object", "required": list(properties), "properties": properties}


_STRING: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_SECONDS: Final = {"type": "number", "minimum": 0}
_SCHEMA: Final = {"type": ["object", "boolean"], "description": "A JSON Schema of 2020-12."}
_FLAG: Final = {"type": "boolean"}

SCHEMAS: Final[dict[str, Any]] = {
    "Problem": {
        **_object(
            type={"type": "string", "enum": [f"urn:penstock:problem:{name}" for name in PROBLEMS]},
            title=_STRING,
            status={"type": "integer", "minimum": 400, "maximum": 599},
            detail={"type": "string", "description": "What was wrong, and what is allowed."},
            request_id=_STRING,
        ),
        "description": "Every error of the daemon, after RFC 9457. `agent` and `worker` are there where one is known.",
    },
    "Alive": _object(status=_STRING),
    "Agent": _object(
        name=_STRING,
        doc=_STRING,
        pool=_STRING,
        kind=_STRING,
        idempotent=_FLAG,
        timeout=_SECONDS,
        priority={"type": "integer", "minimum": 0, "maximum": 7},
        body_schema=_SCHEMA,
        result_schema=_SCHEMA,
    ),
    "Worker": _object(
        name={"type": "string", "examples": ["default:0"]},
        pool=_STRING,
        pid={"type": ["integer", "null"]},
        state={"type": "string", "examples": ["RUNNING"]},
        generation=_COUNT,
        in_flight=_COUNT,
        slots=_COUNT,
        load={"type": "number", "minimum": 0, "description": "Expected seconds of work in flight."},
        restarts=_COUNT,
        answered=_COUNT,
        since={"type": "number", "minimum": 0, "description": "Seconds in this state."},
        reason={"type": "string", "description": "Why its last process ended; empty if nothing went wrong."},
        code={"type": "string", "description": "A fingerprint of the code that it runs; empty until it is ready."},
    ),
    "Queue": _object(
        requests=_COUNT, bytes=_COUNT, high_water=_COUNT, low_water=_COUNT, max_bytes=_COUNT, refusing=_FLAG
    ),
    "Status": _object(
        version=_STRING,
        state={"type": "string", "description": "`ready`, or why not."},
        uptime=_SECONDS,
        workers={"type": "array", "items": ref("schemas", "Worker")},
        queue=ref("schemas", "Queue"),
        throttle={"type": "object"},
        database={"type": "object"},
        agents={"type": "array"},
    ),
    "Restarting": _object(worker=_STRING, restarting=_FLAG),
    "Reloading": _object(reloading=_FLAG),
}
"""The daemon's own."""

_SECONDS_TEXT: Final = r"^(?=.*[1-9])[0-9]+(\.[0-9]+)?$"


def _header(name: str, description: str, pattern: str = "", example: str = "") -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if pattern:
        schema["pattern"] = pattern
    if example:
        schema["examples"] = [example]
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _path(name: str, description: str, example: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "examples": [example]}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-Id": _header(
        "X-Request-Id",
        "The request's name in answers and logs: letters, digits and . _ : -, at most 128. Another form is replaced"
        " by a fresh one.",
    ),
    "Request-Timeout": _header(
        "Request-Timeout",
        "Seconds until the deadline, cut to the agent's timeout. X-Request-Timeout-Seconds and grpc-timeout are"
        " understood too; the smallest wins.",
        _SECONDS_TEXT,
        "2.5",
    ),
    "Priority": _header(
        "Priority", "The urgency of RFC 9218: `u=0` goes first, `u=7` last. What cannot be read is ignored.", "", "u=3"
    ),
    "Affinity-Key": _header(
        "Affinity-Key", 'Equal keys go to the same worker, in pools with `balance = "hash"`.', "", "user-42"
    ),
    "worker": _path("name", "The worker's name.", "default:0"),
    "file": _path("file", "A file of the page.", "style.css"),
    "seconds": {
        "name": "seconds",
        "in": "query",
        "description": "How long to record.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    "format": {
        "name": "format",
        "in": "query",
        "description": "The format of the recording.",
        "schema": {"type": "string", "enum": ["flamegraph", "speedscope", "raw"]},
    },
}

HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-Id": {"description": "The request's name, in every answer.", "schema": _STRING},
    "Server-Timing": {
        "description": "Where the time went, in milliseconds: `queue`, `agent`, and `db` where one was used.",
        "schema": {"type": "string", "examples": ["queue;dur=0.041, agent;dur=1.204"]},
    },
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string", "const": "Bearer"}},
    "ETag": {"description": "Changes with the content; send it as If-None-Match.", "schema": _STRING},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """What one route does."""

    name: str
    """Its ``operationId``."""
    summary: str
    tag: str
    schema: Any = None
    """Of what it answers when all is well; None where that is no JSON."""
    media: str = JSON
    status: int = 200
    problems: tuple[str, ...] = ()
    """Beside those of tokens, which are added where there are some."""
    parameters: tuple[str, ...] = ()
    tagged: bool = False
    """It has an ETag, and answers 304."""
    more: dict[str, Any] = field(default_factory=dict)
    """Other media types of the same answer, with their schemas."""


CALL_PARAMETERS: Final = ("Request-Timeout", "Priority", "Affinity-Key", "X-Request-Id")
CALL_PROBLEMS: Final = (
    *("malformed-body", "bad-header", "unknown-agent", "request-timeout", "body-too-large"),
    *("unsupported-media-type", "invalid-body", "poison-request", "throttled", "agent-error", "worker-died"),
    *("overloaded", "unavailable", "database-unavailable", "deadline-exceeded"),
)
CALL: Final[Route] = ("POST", "/v1/agents/{agent}")
DESCRIBE: Final[Route] = ("GET", "/v1/agents/{agent}")
"""The document has these two once for each agent, with its name in the path: there, concrete paths go first."""

_WORKER: Final = ("worker",)
_TEXT: Final = {"type": "string"}

OPERATIONS: Final[dict[Route, Operation]] = {
    ("GET", "/v1/agents"): Operation("list_agents", "All agents", "catalogue", _list("agents", "Agent")),
    DESCRIBE: Operation(
        "describe",
        "Its schemas and settings",
        "catalogue",
        ref("schemas", "Agent"),
        problems=("unknown-agent", "unavailable"),
    ),
    ("GET", "/healthz"): Operation("healthz", "The process lives", "daemon", ref("schemas", "Alive")),
    ("GET", "/livez"): Operation("livez", "The process lives", "daemon", ref("schemas", "Alive")),
    ("GET", "/readyz"): Operation(
        "readyz", "Requests are accepted", "daemon", ref("schemas", "Alive"), problems=("unavailable",)
    ),
    ("GET", "/v1/status"): Operation("get_status", "The whole status", "daemon", ref("schemas", "Status")),
    ("GET", "/v1/events"): Operation(
        "get_events",
        "The status, each second, as server-sent events",
        "daemon",
        _TEXT,
        "text/event-stream",
        problems=("overloaded",),
    ),
    ("GET", "/metrics"): Operation(
        "get_metrics", "Metrics for Prometheus", "daemon", _TEXT, TEXT, more={"application/openmetrics-text": _TEXT}
    ),
    ("GET", "/v1/workers"): Operation("list_workers", "All workers", "administration", _list("workers", "Worker")),
    ("GET", "/v1/workers/{name}"): Operation(
        "get_worker",
        "One worker",
        "administration",
        ref("schemas", "Worker"),
        problems=("unknown-worker",),
        parameters=_WORKER,
    ),
    ("POST", "/v1/workers/{name}/restart"): Operation(
        "restart_worker",
        "Replace a worker's process, when it has drained",
        "administration",
        ref("schemas", "Restarting"),
        status=202,
        problems=("unknown-worker",),
        parameters=_WORKER,
    ),
    ("GET", "/v1/workers/{name}/stack"): Operation(
        "get_stack",
        "The stack of each thread of a worker",
        "administration",
        _TEXT,
        TEXT,
        problems=("unknown-worker", "bad-parameter", "unavailable"),
        parameters=_WORKER,
        more={JSON: {"type": "object"}},
    ),
    ("GET", "/v1/workers/{name}/profile"): Operation(
        "get_profile",
        "Where a worker spends its time",
        "administration",
        _TEXT,
        "image/svg+xml",
        problems=("unknown-worker", "bad-parameter", "unavailable"),
        parameters=("worker", "seconds", "format"),
        more={JSON: {"type": "object"}, TEXT: _TEXT},
    ),
    ("POST", "/v1/reload"): Operation(
        "reload",
        "Take new code and configuration",
        "administration",
        ref("schemas", "Reloading"),
        status=202,
        problems=("reload-failed",),
    ),
    ("GET", "/"): Operation("dashboard", "The live dashboard", "pages", _TEXT, HTML, tagged=True),
    ("GET", "/dashboard/{file}"): Operation(
        "dashboard_file",
        "A file of that page",
        "pages",
        _TEXT,
        "text/javascript",
        problems=("not-found",),
        parameters=("file",),
        tagged=True,
        more={"text/css": _TEXT, "image/svg+xml": _TEXT},
    ),
    ("GET", "/openapi.json"): Operation("openapi", "This document", "pages", {"type": "object"}, tagged=True),
    ("GET", "/docs"): Operation("docs", "A page to try the agents", "pages", _TEXT, HTML, tagged=True),
    ("GET", "/docs/{file}"): Operation(
        "docs_file",
        "A file of that page",
        "pages",
        _TEXT,
        "text/javascript",
        problems=("not-found",),
        parameters=("file",),
        tagged=True,
        more={"text/css": _TEXT, "image/png": {}},
    ),
}
