"""What an agent returns when it wants to say more than a value, and how results become bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_to_json = msgspec.json.Encoder().encode


class Response:
    """A result with a status, headers and a media type of its own.

    ``body``: bytes are sent as they are (``application/octet-stream`` unless ``content_type`` says otherwise), a str as
    UTF-8 text, anything else as JSON. ``status``: 200 to 599. ``headers``: names and values that HTTP allows; those
    that frame the message (``Content-Length``, ``Connection``, …) stay the daemon's. A wrong one is a ``ValueError``
    here, in the agent, which is answered as ``agent-error``.
    """

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self,
        body: Any = b"",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str = "",
    ) -> None:
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise ValueError(f"the status of a Response is 200 to 599, not {status!r}")
        self.body = body
        self.status = status
        self.content_type = _checked("Content-Type", content_type)
        self.headers = [(_name(name), _checked(name, value)) for name, value in (headers or {}).items()]


def _name(name: str) -> str:
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a header")
    return name


def _checked(name: str, value: str) -> str:
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ValueError(f"the header {name} has a value with characters that HTTP does not allow: {value!r:.80}")
    return value


def encode_json(value: Any) -> bytes:
    """JSON, with integers of any size as they are. What JSON cannot say is a ``TypeError`` or a ``ValueError``."""
    encoded = _to_json(value)
    if b"null" in encoded:
        # msgspec writes NaN and the infinities as null, where a client could not tell them from None.
        json.dumps(msgspec.to_builtins(value, str_keys=True), allow_nan=False)
    return encoded


def encode_result(result: Any) -> tuple[int, str, list[tuple[str, str]] | None, bytes]:
    """Status, media type, headers and body of what an agent returned."""
    if isinstance(result, Response):
        if isinstance(result.body, str):
            content_type, body = "text/plain; charset=utf-8", result.body.encode()
        else:
            content_type, body = _encode(result.body)
        return result.status, result.content_type or content_type, result.headers or None, body
    content_type, body = _encode(result)
    return 200, content_type, None, body


def _encode(body: Any) -> tuple[str, bytes]:
    if isinstance(body, bytes):
        return "application/octet-stream", body
    if isinstance(body, (bytearray, memoryview)):
        return "application/octet-stream", bytes(body)
    return "application/json", encode_json(body)
