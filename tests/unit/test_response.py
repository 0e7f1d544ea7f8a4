"""Results: what becomes which bytes, and what a ``Response`` refuses."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import http
import math
from typing import Any

import msgspec
import pytest

from penstock.workers import Response
from penstock.workers.response import encode_json, encode_result


class Text(str):
    """As MarkupSafe's or others'."""


class Count(int):
    pass


class Measure(float):
    """As NumPy's float64."""


class Color(enum.StrEnum):
    RED = "red"


class Hit(msgspec.Struct):
    name: str


@dataclasses.dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("value", "json"),
    [
        (None, b"null"),
        ({"a": None, 1: [True, 1.5]}, b'{"a":null,"1":[true,1.5]}'),
        ([Hit("a"), Point(1)], b'[{"name":"a"},{"x":1}]'),
        ({1}, b"[1]"),
        ((1, 2), b"[1,2]"),
        (datetime.date(2026, 11, 25), b'"2026-11-25"'),
        (decimal.Decimal("1.10"), b'"1.10"'),
        ({"a": b"\xff"}, b'{"a":"/w=="}'),
        (10**30, b"1000000000000000000000000000000"),
        ([10**30, None], b"[1000000000000000000000000000000,null]"),
        ([Text("a"), Count(3), Measure(0.5), Color.RED], b'["a",3,0.5,"red"]'),
        ([Measure(0.5), None], b"[0.5,null]"),
        ("null", b'"null"'),
    ],
)
def test_values_become_json(value: Any, json: bytes) -> None:
    assert encode_json(value) == json
    assert encode_result(value) == (200, "application/json", None, json)


def cycle() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "Out of range float"),
        ({"a": [None, -math.inf]}, "Out of range float"),
        ([Measure(math.nan)], "Out of range float"),
        ([2**70, math.inf], "Out of range float"),
        (object(), "an object of type object cannot be JSON"),
        (Ellipsis, "an object of type ellipsis cannot be JSON"),
        ((each for each in "ab"), "an object of type generator cannot be JSON"),
        ({(1, 2): 3}, "an object of type tuple cannot be JSON here"),
        ("\ud800", "surrogates not allowed"),
        (cycle(), "recursion"),
    ],
)
def test_what_is_no_json_is_an_error(value: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError, RecursionError), match=words):
        encode_json(value)


def test_a_forgotten_await_is_named() -> None:
    async def later() -> int:
        return 1

    with pytest.raises(TypeError, match="the agent returned a coroutine; await it, or make the agent async"):
        encode_json(later())


@pytest.mark.parametrize("body", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_bytes_go_as_they_are(body: bytes) -> None:
    assert encode_result(body) == (200, "application/octet-stream", None, b"\x00\xff")


def test_a_response_says_more() -> None:
    given = Response({"a": 1}, 201, {"X-One": "1"}, "application/vnd.x+json")
    assert encode_result(given) == (201, "application/vnd.x+json", [("X-One", "1")], b'{"a":1}')
    assert encode_result(Response("grüß")) == (200, "text/plain; charset=utf-8", None, "grüß".encode())
    assert encode_result(Response(b"", 204)) == (204, "application/octet-stream", None, b"")
    twice = Response(headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    assert encode_result(twice)[2] == [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]


def test_what_a_response_holds_can_be_sent() -> None:
    """A header of the answer with anything but plain texts and numbers could not be, and the answer would be lost."""
    given = Response(b"", http.HTTPStatus.CREATED, {Text("X-One"): Text("1"), "X-Two": Color.RED}, Text("text/html"))
    status, content_type, headers, _ = encode_result(given)
    assert (type(status), type(content_type)) == (int, str)
    assert headers == [("X-One", "1"), ("X-Two", "red")]
    assert msgspec.msgpack.encode([status, content_type, headers])
    assert encode_result(Response(b"", Count(200)))[0] == 200


def test_a_media_type_among_the_headers_is_the_media_type() -> None:
    for name in ("Content-Type", "content-type"):
        given = Response("a,b", headers={name: "text/csv", "X-One": "1"})
        assert encode_result(given) == (200, "text/csv", [("X-One", "1")], b"a,b")
    assert encode_result(Response(b"", headers={"Content-Type": "a/b"}, content_type="a/b"))[1:3] == ("a/b", None)


def test_the_length_may_be_given_if_it_is_right() -> None:
    assert encode_result(Response([1], headers={"content-length": "3"})) == (200, "application/json", None, b"[1]")
    with pytest.raises(ValueError, match="the header Content-Length says '4', and the body has 3 bytes"):
        encode_result(Response([1], headers={"Content-Length": "4"}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"headers": {"Transfer-Encoding": "chunked"}}, "the header Transfer-Encoding frames the message and is the"),
        ({"headers": [("connection", "close")]}, "the header connection frames the message"),
        ({"headers": [("Date", "a"), ("date", "b")]}, "the header date is there more than once"),
        (
            {"headers": [("Content-Type", "a"), ("Content-Type", "a")]},
            "the header Content-Type is there more than once",
        ),
        (
            {"headers": {"Content-Type": "a/b"}, "content_type": "c/d"},
            "one media type: content_type is 'c/d', and headers",
        ),
        ({"status": 100}, "the status of a Response is 200 to 599, not 100"),
        ({"status": 600}, "not 600"),
        ({"status": "200"}, "not '200'"),
        ({"headers": {"X-Evil": "a\r\nSet-Cookie: b"}}, "the header X-Evil has a value with characters"),
        ({"headers": {"X-Evil": "a\x00"}}, "the header X-Evil has a value"),
        ({"headers": {"X-Euro": "€"}}, "the header X-Euro has a value"),
        ({"headers": {"X-Count": 5}}, "the header X-Count has a value"),
        ({"headers": {"X Evil": "a"}}, "'X Evil' is no name of a header"),
        ({"headers": {"": "a"}}, "'' is no name of a header"),
        ({"headers": {"X:": "a"}}, "'X:' is no name of a header"),
        ({"content_type": "a\nb"}, "the header Content-Type has a value"),
    ],
)
def test_what_http_does_not_allow_is_refused_at_once(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Response(b"", **given)


def test_a_response_stays_as_it_was_checked() -> None:
    given = Response(b"", headers={"X-One": "1"})
    with pytest.raises(AttributeError, match="pass status= when you make it"):
        given.status = 100
    assert isinstance(given.headers, tuple)
