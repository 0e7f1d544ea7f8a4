"""The routes that inspect a process: ``/v1/workers/{name}/stack`` and ``/v1/workers/{name}/profile``.

The name is a worker's, or ``supervisor``. A client that goes cancels the handler, and with it the recording.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from ..core.refusals import Refusal
from ..diagnostics.profiler import LONGEST, SHORTEST, SUPERVISOR, Profiler
from ..host.pyspy import FORMATS, Recording
from .exchange import Exchange
from .headers import wants_json
from .responses import JSON, Raw, problem_response, raw, refusal_response
from .texts import to_json

DEFAULT_SECONDS: Final = 5.0

KINDS: Final = {
    "flamegraph": ("image/svg+xml", "svg", "inline"),
    "speedscope": ("application/json", "speedscope.json", "attachment"),
    "raw": ("text/plain; charset=utf-8", "txt", "attachment"),
}
"""Format: media type, ending of the file's name, and whether a browser shows it."""

COMMON: Final = "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"

POLICY: Final = "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\r\n"
"""For a flame graph: it has a script of its own for zooming and searching, and needs nothing from anywhere."""

_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_TITLE: Final = re.compile(rb'(<text id="title"[^>]*>)[^<]*')


class BadParameter(Exception):
    """A query parameter that cannot be read. The text names it and what is allowed."""


class ProfileRoutes:
    """The two actions, by the last part of their path."""

    def __init__(self, profiler: Profiler) -> None:
        self._profiler = profiler

    async def stack(self, name: str, exchange: Exchange, request_id: str) -> Raw:
        """py-spy dump, with the calls that the worker has."""
        try:
            _parameters(exchange, ())
        except BadParameter as error:
            return problem_response("bad-parameter", str(error), request_id)
        stack = await self._profiler.stack(name)
        if stack is None or isinstance(stack, Refusal):
            return _refused(stack, name, request_id)
        if wants_json(exchange.headers):
            return raw(200, to_json(stack), JSON, request_id, extra=COMMON + "Vary: Accept\r\n")
        body = stack.text().encode(errors="replace")
        return raw(200, body, "text/plain; charset=utf-8", request_id, extra=COMMON + "Vary: Accept\r\n")

    async def profile(self, name: str, exchange: Exchange, request_id: str) -> Raw:
        """py-spy record."""
        try:
            parameters = _parameters(exchange, ("seconds", "format"))
            seconds = _seconds(parameters.get("seconds"))
            form = parameters.get("format", FORMATS[0])
            if form not in FORMATS:
                raise BadParameter(f"format={form!r:.60} must be one of {', '.join(FORMATS)}")
        except BadParameter as error:
            return problem_response("bad-parameter", str(error), request_id)
        recording = await self._profiler.record(name, seconds, form)
        if recording is None or isinstance(recording, Refusal):
            return _refused(recording, name, request_id)
        kind, ending, shown = KINDS[form]
        file = f"{name.replace(':', '-')}.{ending}"
        extra = f'{COMMON}Content-Disposition: {shown}; filename="{file}"\r\n'
        body = recording.output
        if form == "flamegraph":
            body = _titled(recording, name, seconds)
            extra += POLICY
        return raw(200, body, kind, request_id, extra=extra)


def _parameters(exchange: Exchange, known: tuple[str, ...]) -> dict[str, str]:
    """The query (``BadParameter`` for what is not known here or comes twice)."""
    values: dict[str, str] = {}
    for name, value in parse_qsl(exchange.message.path.partition("?")[2], keep_blank_values=True):
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise BadParameter(f"there is no parameter {name!r:.60} here; there are: {allowed}")
        if name in values:
            raise BadParameter(f"{name} is there twice")
        values[name] = value
    return values


def _seconds(given: str | None) -> float:
    if given is None:
        return DEFAULT_SECONDS
    if not _SECONDS.fullmatch(given) or not SHORTEST <= float(given) <= LONGEST:
        raise BadParameter(f"seconds={given!r:.60} must be a number from {SHORTEST:g} to {LONGEST:g}")
    return float(given)


def _titled(recording: Recording, name: str, seconds: float) -> bytes:
    """The flame graph under a title that people understand; py-spy puts its command line there."""
    title = escape(f"{name}, {seconds:g} s, {recording.samples} samples").encode()
    if recording.samples:
        return _TITLE.sub(lambda match: match[1] + title, recording.output, count=1)
    idle = escape(f"{name} was idle: none of its threads ran in {seconds:g} s").encode()
    return (
        b'<?xml version="1.0" standalone="no"?><svg xmlns="http://www.w3.org/2000/svg" width="1200" height="60">'
        b'<text id="title" x="600" y="36" text-anchor="middle" font-family="monospace" font-size="17">'
        + idle
        + b"</text></svg>"
    )


def _refused(refusal: Refusal | None, name: str, request_id: str) -> Raw:
    if refusal is None:
        detail = f"there is no worker {name!r:.150}; the supervisor's own process is {SUPERVISOR!r}"
        return problem_response("unknown-worker", detail, request_id)
    return refusal_response(refusal, request_id, worker="" if name == SUPERVISOR else name)
