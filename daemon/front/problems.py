"""Every error a client can get, in one table, and its form: RFC 9457 problem details."""

from __future__ import annotations

from typing import Final

import msgspec

from .texts import to_json

MEDIA_TYPE: Final = "application/problem+json"

FAILED: Final = "the supervisor failed to handle this request"
"""The detail of a fault of our own, whatever it is: the log has it, the client has no use for it."""

PROBLEMS: Final[dict[str, tuple[int, str]]] = {
    "malformed-body": (400, "The body is not JSON"),
    "bad-header": (400, "A header cannot be read"),
    "bad-parameter": (400, "A query parameter cannot be read"),
    "http-error": (400, "The request is not valid HTTP"),
    "unauthorized": (401, "A token is missing or wrong"),
    "forbidden": (403, "The token does not allow this"),
    "unknown-agent": (404, "There is no such agent"),
    "unknown-worker": (404, "There is no such worker"),
    "not-found": (404, "There is no resource at this path"),
    "method-not-allowed": (405, "The path does not support this method"),
    "request-timeout": (408, "The request did not arrive in time"),
    "reload-failed": (409, "The new code or configuration is broken; the old serves on"),
    "body-too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body's media type or encoding is not supported"),
    "invalid-body": (422, "The body does not fit the agent's type"),
    "poison-request": (422, "Several workers died while they worked on this request"),
    "throttled": (429, "This client asks for more than its share"),
    "agent-error": (500, "The agent failed"),
    "worker-died": (502, "The worker died while it worked on this request"),
    "overloaded": (503, "Too many requests are waiting"),
    "unavailable": (503, "The agent is unavailable now"),
    "database-unavailable": (503, "The database gave no connection in time"),
    "deadline-exceeded": (504, "The deadline expired"),
}
"""NAME: (HTTP status, title)."""


class _Problem(msgspec.Struct, omit_defaults=True):
    type: str
    title: str
    status: int
    detail: str
    request_id: str
    agent: str = ""
    worker: str = ""


def problem(
    name: str, detail: str, request_id: str, *, agent: str = "", worker: str = "", status: int = 0
) -> tuple[int, bytes]:
    """The status and the body of a problem. ``status`` overrides the table's, for ``http-error``."""
    usual, title = PROBLEMS[name]
    status = status or usual
    return status, to_json(_Problem(f"urn:penstock:problem:{name}", title, status, detail, request_id, agent, worker))
