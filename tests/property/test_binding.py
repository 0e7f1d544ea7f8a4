"""Bodies: any bytes are arguments or a ``BadBody`` with the right name, and JSON comes through as it was."""

from __future__ import annotations

import json
import math
from typing import Any, Never

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.workers.binding import BadBody, Binding, bind
from penstock.workers.response import encode_json


class Query(msgspec.Struct):
    text: str
    limit: int = 10


def anything(body: Any) -> None: ...
def struct(query: Query) -> None: ...
def scalar(below: int) -> None: ...
def several(text: str, limit: int = 10) -> None: ...
def nothing() -> None: ...


AGENTS = [bind(each) for each in (anything, struct, scalar, several, nothing)]
ECHO = AGENTS[0]

numbers = st.integers() | st.integers(-(10**60), 10**60) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


def refuse(constant: str) -> Never:
    raise ValueError(constant)


def is_json(body: bytes) -> bool:
    """By Python's own reader, held to the standard: UTF-8 without a mark, no NaN, no half of a surrogate pair."""
    try:
        found = json.loads(body.decode(), parse_constant=refuse)
        json.dumps(found, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


def outcome(binding: Binding, body: bytes) -> tuple[str, str]:
    try:
        binding.decode(body)
    except BadBody as bad:
        return bad.problem, bad.detail
    return "", ""


@given(
    st.binary(max_size=60)
    | st.text(alphabet='{}[]",:0123456789eE+-.\\ utrnfalsd\xa0\ufeff', max_size=25).map(str.encode)
)
@example(b'{"text":"a","x":"\xff"}')
@example(b'{"text":"a","\xff":0}')
@example(b'"\\ud800"')
@example(b"1e999")
def test_any_bytes_are_arguments_or_a_named_problem(body: bytes) -> None:
    for binding in AGENTS:
        problem, detail = outcome(binding, body)
        if not body.strip():
            assert problem in ("", "malformed-body", "invalid-body")  # as the agent takes none, needs one, has defaults
        elif is_json(body):
            assert problem in ("", "invalid-body")
        else:
            assert problem == "malformed-body"
        assert problem != "invalid-body" or "`$" in detail


@given(values, st.booleans())
def test_json_comes_through_as_it_was(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    (argument,) = ECHO.decode(body).values()
    assert argument == value
    assert json.loads(encode_json(argument)) == value


@given(st.integers())
def test_integers_of_any_size_are_exact(value: int) -> None:
    for binding, key in ((ECHO, "body"), (AGENTS[2], "below")):
        got = binding.decode(str(value).encode())[key]
        assert (type(got), got) == (int, value)
    assert encode_json(value) == str(value).encode()


@given(st.recursive(
    st.none() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.integers() | st.text(), inner, max_size=4),
    max_leaves=15,
))  # fmt: skip
@example([math.nan])
@example({"a": {"b": -math.inf}, 7: None})
@example([2**70, None, math.inf])
@example(["null", None, "\xcb\x7f\xf0".encode("latin-1").decode("latin-1")])
def test_what_json_cannot_say_is_never_sent_as_null(value: Any) -> None:
    def finite(each: Any) -> bool:
        if isinstance(each, float):
            return math.isfinite(each)
        if isinstance(each, dict):
            return all(map(finite, each.values()))
        return not isinstance(each, list) or all(map(finite, each))

    try:
        encoded = encode_json(value)
    except ValueError:
        assert not finite(value)
    else:
        assert finite(value)
        assert json.loads(encoded) == json.loads(json.dumps(value))
