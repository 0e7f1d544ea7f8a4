"""What an agent returns when it wants to say more than a value, and how results become bytes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Never

import msgspec

from penstock.ipc.messages import Head

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FRAMING: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that say where a message ends and what becomes of its connection: the daemon alone knows."""
_ONCE: Final = frozenset({"content-length", "content-type", "date", "retry-after", "x-request-id"})
"""Of the headers that the daemon sets, those of which there can be only one."""
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NOT_FINITE: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
"""How MessagePack writes NaN and the infinities: doubles with an exponent of all ones. (Other bytes may be so too.)"""


class Response:
    """A result with a status, headers and a media type of its own.

    ``body``: bytes are sent as they are (``application/octet-stream`` unless ``content_type`` says otherwise), a str as
    UTF-8 text, anything else as JSON. ``status``: 200 to 599. ``headers``: names and values that HTTP allows, as a
    mapping, or as pairs where a name comes more than once. One that the daemon sets, too (``Content-Type``, ``Date``,
    ``Server-Timing``, ``X-Request-Id``), takes the place of the daemon's. Those that frame the message stay the
    daemon's: ``Connection``, ``Transfer-Encoding`` and their like are refused, ``Content-Length`` may be given if it is
    right. A wrong one is a ``ValueError``, here or when the result is encoded, which is answered as ``agent-error``.
    Nothing can be changed afterwards.
    """

    __slots__ = ("body", "content_type", "headers", "status")

    body: Any
    status: int
    headers: tuple[tuple[str, str], ...]
    content_type: str

    def __init__(
        self,
        body: Any = b"",
        status: int = 200,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        content_type: str = "",
    ) -> None:
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise ValueError(f"the status of a Response is 200 to 599, not {status!r}")
        pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
        checked = tuple((_name(name), _checked(name, value)) for name, value in pairs)
        _check_framing(checked)
        typed = [value for name, value in checked if name.lower() == "content-type"]
        if typed and content_type not in ("", typed[0]):
            raise ValueError(
                f"a Response has one media type: content_type is {content_type!r:.80}, and headers say {typed[0]!r:.80}"
            )
        for name, value in (
            ("body", body),
            ("status", int(status)),
            ("content_type", typed[0] if typed else _checked("Content-Type", content_type)),
            ("headers", tuple(pair for pair in checked if pair[0].lower() != "content-type")),
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> Never:
        raise AttributeError(f"a Response stays as it was made; pass {name}= when you make it")


def _name(name: str) -> str:
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a header")
    return str.__str__(name)


def _checked(name: str, value: str) -> str:
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ValueError(f"the header {name} has a value with characters that HTTP does not allow: {value!r:.80}")
    return str.__str__(value)


def _check_framing(headers: tuple[tuple[str, str], ...]) -> None:
    seen: set[str] = set()
    for name, _ in headers:
        small = name.lower()
        if small in _FRAMING:
            raise ValueError(f"the header {name} frames the message and is the daemon's; leave it out of a Response")
        if small in _ONCE and small in seen:
            raise ValueError(f"the header {name} is there more than once; a Response has one at most")
        seen.add(small)


def _plain(value: object) -> object:
    """What msgspec does not know itself: the descendants of str, int and float (NumPy's and others') are these."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError("the agent returned a coroutine; await it, or make the agent async")
    raise TypeError(
        f"an object of type {type(value).__qualname__} cannot be JSON here; return builtins, Structs or dataclasses"
    )


to_json: Final = msgspec.json.Encoder(enc_hook=_plain).encode
"""JSON in which NaN and the infinities are null (``encode_json`` refuses them)."""
_to_msgpack: Final = msgspec.msgpack.Encoder(enc_hook=_plain).encode


def encode_json(value: Any) -> bytes:
    """JSON, with integers of any size as they are. What JSON cannot say is a ``TypeError`` or a ``ValueError``."""
    encoded = to_json(value)
    if b"null" not in encoded:
        return encoded
    # msgspec writes NaN and the infinities as null, where a client could not tell them from None. A look at all floats
    # at once costs no more than the encoding itself, where a visit to each value costs ten times that. (It is written
    # out here since one more frame would lose what a body may be nested to.)
    try:
        suspicious = _NOT_FINITE.search(_to_msgpack(value)) is not None
    except (TypeError, ValueError, OverflowError):
        suspicious = True  # such as integers of more than 64 bits
    if suspicious:
        json.dumps(msgspec.to_builtins(value, str_keys=True, enc_hook=_plain), allow_nan=False)
    return encoded


def encode_result(result: Any) -> tuple[int, str, list[tuple[str, str]] | None, bytes]:
    """Status, media type, headers and body of what an agent returned."""
    if isinstance(result, Response):
        if type(result) is not Response:
            # What an agent's own kind of Response says of itself was not checked, and could not be sent as anything.
            result = Response(result.body, result.status, result.headers, result.content_type)
        if isinstance(result.body, str):
            content_type, body = "text/plain; charset=utf-8", result.body.encode()
        else:
            content_type, body = _encode(result.body)
        return result.status, result.content_type or content_type, _fitting(result.headers, body) or None, body
    content_type, body = _encode(result)
    return 200, content_type, None, body


def head_of(response: Response) -> Head:
    """The head of a streamed response."""
    if type(response) is not Response:
        response = Response(response.body, response.status, response.headers, response.content_type)
    if any(name.lower() == "content-length" for name, _ in response.headers):
        raise ValueError("the length of a stream is not known before; leave Content-Length out of the Response")
    headers = list(response.headers)
    return Head(response.status, response.content_type or "application/octet-stream", headers or None)


def _fitting(headers: tuple[tuple[str, str], ...], body: bytes) -> list[tuple[str, str]]:
    """The headers without a ``Content-Length``, which the daemon says itself. One that is wrong is a ``ValueError``."""
    for name, value in headers:
        if name.lower() == "content-length" and value.strip() != str(len(body)):
            raise ValueError(f"the header Content-Length says {value!r:.40}, and the body has {len(body)} bytes")
    return [pair for pair in headers if pair[0].lower() != "content-length"]


def _encode(body: Any) -> tuple[str, bytes]:
    if isinstance(body, bytes):
        return "application/octet-stream", body
    if isinstance(body, (bytearray, memoryview)):
        return "application/octet-stream", bytes(body)
    return "application/json", encode_json(body)
