"""Conditional GET: ETag and 304."""

from __future__ import annotations

import hashlib

from .exchange import Exchange
from .responses import Raw, raw


def entity_tag(body: bytes) -> str:
    """A strong tag: other bytes, another tag."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def tagged(exchange: Exchange, body: bytes, tag: str, content_type: str, request_id: str, extra: str = "") -> Raw:
    """The body, or 304 where the client has it. It has to ask each time, which is what ``no-cache`` means."""
    lines = f"ETag: {tag}\r\nCache-Control: no-cache\r\n{extra}"
    known = exchange.headers.get("If-None-Match")
    status = 304 if known is not None and _among(tag, known) else 200
    return raw(status, body, content_type, request_id, extra=lines)


def _among(tag: str, known: str) -> bool:
    """Whether ``If-None-Match`` has the tag, compared weakly (RFC 9110, 13.1.2)."""
    return known.strip() == "*" or tag in (each.strip().removeprefix("W/") for each in known.split(","))
