"""What clients say in headers, read once: total functions that give a value or raise ``BadHeader``."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Final


class BadHeader(Exception):
    """A header that cannot be read. The text names it and what is allowed."""


_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SECONDS: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_GRPC: Final = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_GRPC_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_QUALITY: Final = re.compile(r"[01](\.[0-9]{0,3})?")
_URGENCY: Final = re.compile(r"u=([0-7])")
_JSON: Final = re.compile(r"application/(?:json|[a-z0-9.+-]+\+json)|text/json")

_prefix = os.urandom(6).hex()
_numbers = itertools.count(1)


def fresh_request_id() -> str:
    """Unique among all daemons (48 random bits) and rising within one."""
    return f"{_prefix}-{next(_numbers):x}"


def request_id(headers: Mapping[str, str]) -> str:
    """The client's ``X-Request-Id`` if it is well formed, else a fresh one."""
    text = headers.get("X-Request-Id")
    if text is not None and _REQUEST_ID.fullmatch(text):
        return text
    return fresh_request_id()


def timeout(headers: Mapping[str, str], limit: float) -> tuple[float, bool]:
    """Seconds the client gives, cut to ``limit``, and whether it gives any. Three header fields are understood and the
    smallest wins.
    """
    least = limit
    given = False
    for name in ("Request-Timeout", "X-Request-Timeout-Seconds"):
        text = headers.get(name)
        if text is not None:
            if not _SECONDS.fullmatch(text) or float(text) == 0.0:
                raise BadHeader(f"{name} must be seconds above 0, as digits[.digits], not {text!r:.60}")
            least = min(least, float(text))
            given = True
    text = headers.get("grpc-timeout")
    if text is not None:
        match = _GRPC.fullmatch(text)
        if match is None or not int(match[1]):
            raise BadHeader(f"grpc-timeout must be 1 to 8 digits, above 0, and one of H M S m u n, not {text!r:.60}")
        least = min(least, int(match[1]) * _GRPC_UNITS[match[2]])
        given = True
    return least, given


def priority(headers: Mapping[str, str], default: int) -> int:
    """The urgency of RFC 9218, 0 to 7. What cannot be read is ignored, as the standard says."""
    text = headers.get("Priority")
    if text is None:
        return default
    for item in text.split(","):
        match = _URGENCY.fullmatch(item.partition(";")[0].strip(" \t"))
        if match is not None:
            default = int(match[1])
    return default


def is_json(content_type: str) -> bool:
    """Whether a media type is one of JSON's, whatever its parameters."""
    return _JSON.fullmatch(content_type.partition(";")[0].strip().lower()) is not None


def wants_html(headers: Mapping[str, str]) -> bool:
    """Whether a person's browser asks: programs take JSON, or anything."""
    return "text/html" in headers.get("Accept", "")


def wants_json(headers: Mapping[str, str]) -> bool:
    """Whether ``Accept`` asks for JSON, and not for text at least as much."""
    weights = {"application/json": 0.0, "text/plain": 0.0}
    weights.update((kind, quality) for kind, quality in _accepted(headers) if kind in weights)
    return weights["application/json"] > weights["text/plain"]


_OF_EVENTS: Final = {"text/event-stream": 2, "text/*": 1}
_OF_LINES: Final = {"application/x-ndjson": 2, "application/*": 1, "*/*": 0}
"""Media ranges, and how exactly each names what is meant."""


def wants_events(headers: Mapping[str, str]) -> bool:
    """Whether a stream is wanted as server-sent events rather than as lines: by the ``q`` of ``Accept``, and where they
    are the same by what is named more exactly. ``text/*`` counts for events, ``application/*`` and ``*/*`` for lines.
    """
    events = lines = (-1, 0.0)
    for kind, quality in _accepted(headers):
        if kind in _OF_EVENTS:
            events = max(events, (_OF_EVENTS[kind], quality))
        if kind in _OF_LINES:
            lines = max(lines, (_OF_LINES[kind], quality))
    return events[1] > 0.0 and (events[1], events[0]) > (lines[1], lines[0])


def _accepted(headers: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    """The media ranges of ``Accept``, each with its ``q``, 0 to 1: 1 where there is none, 0 where it cannot be read."""
    for part in headers.get("Accept", "").lower().split(","):
        kind, *parameters = (word.strip() for word in part.split(";"))
        quality = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        yield kind, float(quality) if _QUALITY.fullmatch(quality) else 0.0
