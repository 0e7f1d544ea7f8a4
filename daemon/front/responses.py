"""Responses as they go onto the wire: one formatted head, one write.

aiohttp's own ``Response`` builds a case-insensitive multidict, serializes it and writes twice; for small answers that
is a fifth of the supervisor's time. What Penstock answers mostly has a body known beforehand and a handful of headers,
so it is formatted here and written by ``front.connection``. A body that comes piece by piece is a ``Stream``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Collection
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

from ..core.refusals import Refusal
from .problems import MEDIA_TYPE, problem
from .texts import to_json

JSON: Final = "application/json"

_PASSING: Final = ("overloaded", "throttled", "unavailable")
"""Problems that another try, a little later, may not have."""

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_BODILESS: Final = frozenset({204, 304})

Headers = Collection[tuple[str, str]]


class Raw:
    """A whole response: the lines of its head (without the last, empty one) and its body."""

    __slots__ = ("body", "close", "head", "keep_alive", "problem", "status")

    def __init__(self, status: int, head: str, body: bytes, *, close: bool = False) -> None:
        """``close``: say so, and close the connection afterwards."""
        self.status = status
        self.head = head
        self.body = body
        self.close = close
        self.keep_alive: bool = not close
        self.problem = ""
        """The NAME of the problem that it is."""


class Stream:
    """A response whose body comes piece by piece: the lines of its head but those that frame it, and the pieces.

    The pieces are asked for one at a time, each after the client has taken most of those before, and ``aclose`` is
    called in every case: when the client goes away what the generator awaits is cancelled. A generator that raises
    ends the connection without the mark that a complete body ends with.
    """

    __slots__ = ("head", "pieces", "problem", "status")

    def __init__(self, status: int, head: str, pieces: AsyncGenerator[bytes, None]) -> None:
        self.status = status
        self.problem = ""
        """As of ``Raw``: what streams has begun well."""
        self.head = head
        self.pieces = pieces


Response = Raw | Stream


class _Clock:
    """The ``Date`` header, formatted once a second."""

    __slots__ = ("line", "second")

    def __init__(self) -> None:
        self.second = 0
        self.line = ""

    def date(self) -> str:
        now = int(time.time())
        if now != self.second:
            self.second = now
            self.line = f"Date: {formatdate(now, usegmt=True)}\r\n"
        return self.line


_clock = _Clock()


def raw(
    status: int,
    body: bytes,
    content_type: str,
    request_id: str,
    *,
    extra: str = "",
    headers: Headers | None = None,
    close: bool = False,
) -> Raw:
    """A response with this body. ``extra`` are header lines, each with its CRLF. ``headers`` are the agent's: pairs
    already checked to be free of CR and LF, and of what frames the message; each goes before one of ours.
    """
    lines = f"{_clock.date()}X-Request-Id: {request_id}\r\n{extra}"
    if headers:
        lines = _merged(lines, headers)
    if status in _BODILESS:
        body = b""
        length = ""
    else:
        length = f"Content-Length: {len(body)}\r\nContent-Type: {content_type}\r\n"
    return Raw(status, f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n{length}{lines}", body, close=close)


def stream(
    pieces: AsyncGenerator[bytes, None],
    content_type: str,
    request_id: str,
    *,
    status: int = 200,
    extra: str = "",
    headers: Headers | None = None,
) -> Stream:
    """A response with these pieces for its body. ``extra`` and ``headers`` as for ``raw``."""
    lines = f"{_clock.date()}X-Request-Id: {request_id}\r\n{extra}"
    if headers:
        lines = _merged(lines, headers)
    head = f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\nContent-Type: {content_type}\r\n{lines}"
    return Stream(status, head, pieces)


def _merged(lines: str, headers: Headers) -> str:
    """Our header lines, without those that the agent gives, and the agent's."""
    given = "".join(f"{name}: {value}\r\n" for name, value in headers)
    names = {name.lower() for name, _ in headers}
    ours = (line for line in lines.split("\r\n")[:-1] if line.partition(":")[0].lower() not in names)
    return "".join(f"{line}\r\n" for line in ours) + given


def retry_after(seconds: float) -> str:
    """The header line that says after how many seconds another try is worth it."""
    return f"Retry-After: {max(1, int(seconds + 0.999))}\r\n"


def problem_response(
    name: str,
    detail: str,
    request_id: str,
    *,
    agent: str = "",
    worker: str = "",
    status: int = 0,
    extra: str = "",
    close: bool = False,
) -> Raw:
    """The problem of this NAME. ``status`` overrides that of the table, ``extra`` and ``close`` are as for ``raw``."""
    status, body = problem(name, detail, request_id, agent=agent, worker=worker, status=status)
    response = raw(status, body, MEDIA_TYPE, request_id, extra=extra, close=close)
    response.problem = name
    return response


def refusal_response(
    refusal: Refusal, request_id: str, *, agent: str = "", worker: str = "", extra: str = "", close: bool = False
) -> Raw:
    """A refusal as a response, with the time of another try where that is worth it. ``worker``: where the refusal names
    none.
    """
    name = refusal.problem.value
    return problem_response(
        name,
        refusal.detail,
        request_id,
        agent=agent,
        worker=refusal.worker or worker,
        extra=extra + retry_after(refusal.retry_after) if name in _PASSING else extra,
        close=close,
    )


def json_response(value: Any, request_id: str, status: int = 200) -> Raw:
    """Plain data as JSON."""
    return raw(status, to_json(value), JSON, request_id)
