"""The document at ``/openapi.json``: OpenAPI 3.1 of the agents that run now, and of the routes that this listener has.

Each agent has a path of its own, with the schemas that its workers reported (``schemas`` puts them together); the other
routes are described in ``operations``. It is made when somebody asks and kept until the catalogue has changed, or what
the listener shows and whether it wants tokens. Calls of agents know nothing of it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from penstock.ipc.messages import EVENTS, LINES, AgentInfo

from ..engine.catalogue import Listing
from .etags import entity_tag
from .operations import (
    CALL,
    CALL_PARAMETERS,
    CALL_PROBLEMS,
    DESCRIBE,
    HEADERS,
    JSON,
    OPERATIONS,
    PARAMETERS,
    SCHEMAS,
    TAGS,
    Operation,
    Route,
    ref,
)
from .problems import MEDIA_TYPE, PROBLEMS
from .schemas import Bundle
from .texts import to_json
from .tokens import ADMIN, is_admin, is_open
from .tokens import CALL as CALL_SCOPE

VERSION: Final = "3.1.1"
DESCRIPTION: Final = """\
Python functions behind HTTP, in worker processes, under load. `POST /v1/agents/NAME` calls an agent.

Every answer brings `X-Request-Id`. Errors are problems of RFC 9457. HEAD is answered wherever GET is."""

RAW_BODY: Final[dict[str, Any]] = {"content": {"application/octet-stream": {}, "*/*": {}}}
"""Any media type is taken; the first is what tools offer."""

_RETRIED: Final = frozenset({"throttled", "overloaded", "unavailable", "database-unavailable"})


class Document:
    """The document of one listener."""

    def __init__(self, routes: Collection[Route]) -> None:
        """``routes``: what the listener has."""
        self._routes = routes
        self._state: object = None
        """What the document was made of."""
        self._made = (b"", "")

    def current(self, catalogue: Mapping[str, Listing], *, secured: bool, hide_admin: bool) -> tuple[bytes, str]:
        """The document and its entity tag. ``secured``: tokens are asked for; ``hide_admin``: admin routes are not
        here.
        """
        state = (secured, hide_admin, [(each.info, each.agent.timeout) for each in catalogue.values()])
        if state != self._state:
            routes = [route for route in self._routes if not (hide_admin and is_admin(route[1]))]
            body = to_json(build(catalogue.values(), routes, secured=secured))
            self._made = (body, entity_tag(body))
        self._state = state
        return self._made


def build(listings: Iterable[Listing], routes: Collection[Route], *, secured: bool) -> dict[str, Any]:
    """The document as plain data. Routes that ``operations`` does not describe are left out."""
    listings = sorted(listings, key=lambda listing: listing.info.name)
    sides = [((each.info.name, "body"), each.info.body_schema) for each in listings]
    sides += [((each.info.name, "result"), each.info.result_schema) for each in listings]
    bundle = Bundle(sides, SCHEMAS)
    paths: dict[str, dict[str, Any]] = {}
    for listing in listings:
        path = CALL[1].replace("{agent}", listing.info.name)
        described = _operation(path, OPERATIONS[DESCRIBE], secured)
        described["operationId"] += f"_{listing.info.name}"
        paths[path] = {"post": _call(listing, bundle, secured), "get": described}
    for route, operation in OPERATIONS.items():
        if route in routes and route != DESCRIBE:
            method, path = route
            paths.setdefault(path, {})[method.lower()] = _operation(path, operation, secured)
    components: dict[str, Any] = {"schemas": bundle.components, "parameters": PARAMETERS, "headers": HEADERS}
    if secured:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": VERSION,
        "info": {
            "title": "Penstock",
            "version": importlib.metadata.version("penstock"),
            "description": DESCRIPTION,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": components,
    }


def _call(listing: Listing, bundle: Bundle, secured: bool) -> dict[str, Any]:
    """A call of one agent."""
    info = listing.info
    summary, _, more = info.doc.partition("\n")
    settings = (
        f"{info.kind}{', streams' if info.stream else ''}, pool `{info.pool}`, at most {listing.agent.timeout:g} s"
    )
    settings += f", in batches of up to {info.batch}" if info.batch else ""
    settings += ", idempotent" if info.idempotent else ""
    made: dict[str, Any] = {
        "operationId": f"call_{info.name}",
        "summary": summary.strip() or info.name,
        "description": f"{more.strip()}\n\n{settings}".strip(),
        "tags": ["agents"],
        "parameters": [ref("parameters", name) for name in CALL_PARAMETERS],
    }
    if info.body_schema != {"type": "null"}:
        schema = bundle.schema((info.name, "body"))
        made["requestBody"] = RAW_BODY if info.raw_body else {"required": True, "content": {JSON: {"schema": schema}}}
    headers = {"Server-Timing": ref("headers", "Server-Timing")}
    text, content = _result(info, bundle.schema((info.name, "result")))
    made["responses"] = {
        "200": _response(text, content, headers),
        **_problems(CALL_PROBLEMS, CALL_SCOPE if secured else ""),
    }
    made |= _security(CALL_SCOPE if secured else "")
    return made


def _result(info: AgentInfo, schema: Any) -> tuple[str, dict[str, Any]]:
    """What a call gives, and in which media types."""
    if info.stream:
        # A schema of each item: ``itemSchema`` is OpenAPI 3.2's, and what a line or an event holds.
        described = {"schema": {"type": "string"}, "x-item-schema": schema}
        text = (
            "What the agent streams, item by item: a line of JSON for each, or an event whose data is JSON where "
            "Accept prefers that. The last item of a stream that failed is its problem (an event of the kind error)"
        )
        return f"{text}.", {LINES: described, EVENTS: described}
    media = schema.get("contentMediaType", JSON) if isinstance(schema, dict) else JSON
    return "What the agent returned.", {media: {"schema": schema} if media == JSON else {}}


def _operation(path: str, operation: Operation, secured: bool) -> dict[str, Any]:
    scope = "" if not secured or is_open(path) else ADMIN if is_admin(path) else CALL_SCOPE
    content = {operation.media: operation.schema, **operation.more}
    described = {media: {"schema": schema} if schema else {} for media, schema in content.items()}
    headers = {"ETag": ref("headers", "ETag")} if operation.tagged else {}
    responses = {str(operation.status): _response(f"{operation.summary}.", described, headers)}
    if operation.tagged:
        responses["304"] = _response("Not modified.", {}, headers)
    return {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [ref("parameters", name) for name in (*operation.parameters, "X-Request-Id")],
        "responses": {**responses, **_problems(operation.problems, scope)},
        **_security(scope),
    }


def _security(scope: str) -> dict[str, Any]:
    return {"security": [{"bearer": [scope]}]} if scope else {}


def _response(description: str, content: dict[str, Any], headers: dict[str, Any]) -> dict[str, Any]:
    made = {"description": description, "headers": {"X-Request-Id": ref("headers", "X-Request-Id"), **headers}}
    return {**made, "content": content} if content else made


def _problems(names: Iterable[str], scope: str) -> dict[str, Any]:
    """A response for each status, which names the problems that have it. ``scope``: of the token that is asked for."""
    found: dict[int, list[str]] = {}
    of_tokens = {"": (), CALL_SCOPE: ("unauthorized",), ADMIN: ("unauthorized", "forbidden")}[scope]
    for name in (*names, *of_tokens):
        if name in PROBLEMS:
            found.setdefault(PROBLEMS[name][0], []).append(name)
    return {str(status): _problem(status, found[status]) for status in sorted(found)}


def _problem(status: int, names: list[str]) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    if not _RETRIED.isdisjoint(names):
        headers["Retry-After"] = ref("headers", "Retry-After")
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = ref("headers", "WWW-Authenticate")
    text = "; ".join(f"`{name}`: {PROBLEMS[name][1][0].lower()}{PROBLEMS[name][1][1:]}" for name in names)
    return _response(f"{text}.", {MEDIA_TYPE: {"schema": ref("schemas", "Problem")}}, headers)
