"""Signatures: what takes the body, what is handed in, and what is refused with which words."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import math
import typing
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import psycopg
import psycopg_pool
import pytest

from penstock.workers import Context
from penstock.workers.binding import BadBody, Binding, BindingError, Injection, bind


class Query(msgspec.Struct):
    text: str
    limit: int = 10


class Body(msgspec.Struct):
    """Named as the binding's own."""

    x: int


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Pair(typing.TypedDict):
    left: int
    right: str


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


UserId = typing.NewType("UserId", int)


def decoded(function: Callable[..., Any], body: bytes) -> dict[str, Any]:
    return bind(function).decode(body)


def refused(function: Callable[..., Any], body: bytes) -> tuple[str, str]:
    with pytest.raises(BadBody) as caught:
        bind(function).decode(body)
    return caught.value.problem, caught.value.detail


# What takes the body


def struct(query: Query) -> None: ...
def dataclass(point: Point) -> None: ...
def typed_dict(pair: Pair) -> None: ...
def a_list(numbers: list[int]) -> None: ...
def a_dict(body: dict[str, int]) -> None: ...
def anything(body: Any) -> None: ...
def bare(body) -> None: ...  # type: ignore[no-untyped-def]
def raw(body: bytes) -> None: ...


@pytest.mark.parametrize(
    ("function", "body", "arguments"),
    [
        (struct, b'{"text": "a"}', {"query": Query("a")}),
        (struct, b'{"text": "a", "limit": 3, "more": [1]}', {"query": Query("a", 3)}),
        (dataclass, b'{"x": 1}', {"point": Point(1)}),
        (typed_dict, b'{"left": 1, "right": "r"}', {"pair": {"left": 1, "right": "r"}}),
        (a_list, b"[1, 2]", {"numbers": [1, 2]}),
        (a_dict, b'{"a": 1}', {"body": {"a": 1}}),
        (anything, b'{"a": [null, true]}', {"body": {"a": [None, True]}}),
        (anything, b"null", {"body": None}),
        (anything, b'{"a": 1, "a": 2}', {"body": {"a": 2}}),
        (bare, b"[1]", {"body": [1]}),
        (raw, b"\xff\x00 not JSON", {"body": b"\xff\x00 not JSON"}),
        (raw, b"", {"body": b""}),
    ],
)
def test_the_first_parameter_takes_the_body(
    function: Callable[..., Any], body: bytes, arguments: dict[str, Any]
) -> None:
    assert decoded(function, body) == arguments


DAY = datetime.date(2026, 11, 25)
KEY = uuid.UUID(int=5)


@pytest.mark.parametrize(
    ("hint", "json", "value"),
    [
        (int, b"7", 7),
        (float, b"7", 7.0),
        (str, b'"seven"', "seven"),
        (bool, b"true", True),
        (int | None, b"null", None),
        (typing.Optional[int], b"7", 7),  # noqa: UP045 - both spellings are to work
        (Annotated[int, msgspec.Meta(ge=5)], b"7", 7),
        (Literal["a", 1], b'"a"', "a"),
        (Color, b'"red"', Color.RED),
        (datetime.date, b'"2026-11-25"', DAY),
        (uuid.UUID, f'"{KEY}"'.encode(), KEY),
        (decimal.Decimal, b'"1.10"', decimal.Decimal("1.10")),
        (UserId, b"7", 7),
    ],
)
def test_a_scalar_goes_by_its_name_or_alone(hint: Any, json: bytes, value: Any) -> None:
    def function(below: Any) -> None: ...

    function.__annotations__["below"] = hint
    assert decoded(function, b'{"below": ' + json + b"}") == {"below": value}
    assert decoded(function, json) == {"below": value}
    assert refused(function, b"") == ("invalid-body", "Object missing required field `below` - at `$`")
    schema = bind(function).body_schema
    assert schema["anyOf"][0]["required"] == ["below"]


def test_several_parameters_are_the_fields_of_an_object() -> None:
    def function(text: str, body: Body, limit: int = 10, tags: list[str] = []) -> None: ...  # noqa: B006

    assert decoded(function, b'{"text": "a", "body": {"x": 1}}') == {
        "text": "a", "body": Body(1), "limit": 10, "tags": [],
    }  # fmt: skip
    assert refused(function, b'{"text": "a", "body": {"x": "1"}}')[1] == "Expected `int`, got `str` - at `$.body.x`"
    assert refused(function, b"[]")[1] == "Expected `object`, got `array` - at `$`"
    schema = bind(function).body_schema
    assert schema["$ref"].rpartition("/")[2] in schema["$defs"]


def test_defaults_stand_in() -> None:
    def one(limit: int = 10) -> None: ...
    def whole(query: Query = Query("nothing")) -> None: ...  # noqa: B008
    def several(x: int = 1, y: int = 2) -> None: ...

    assert decoded(one, b"") == decoded(one, b"{}") == {"limit": 10}
    assert decoded(whole, b"") == {}
    assert decoded(whole, b'{"text": "a"}') == {"query": Query("a")}
    assert decoded(several, b'{"y": 3}') == {"x": 1, "y": 3}


def test_without_parameters_there_is_no_body() -> None:
    def nothing() -> None: ...

    for body in (b"", b"null", b" {} "):
        assert decoded(nothing, body) == {}
    assert refused(nothing, b"[1]") == ("invalid-body", "this agent takes no body; send none, null or {} - at `$`")
    assert refused(nothing, b"[")[0] == "malformed-body"


def test_no_body_is_said_to_be_none() -> None:
    assert refused(struct, b"") == ("malformed-body", "there is no body, and this agent takes JSON")


# What is not a body


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nope",
        b"NaN",
        b'{"text": NaN}',
        b'{"text": "a", "limit": Infinity}',
        b'{"text": "a", "unknown": -Infinity}',
        b"\xef\xbb\xbf{}",
        '{"text": "a"}'.encode("utf-16"),
        b'{"text": "\xff"}',
        b'{"text": "a", "unknown": "\xff"}',
        b'{"text": "a", "\xff": 1}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xed\xa0\x80"}',
        b'{"text": "a", "unknown": 01}',
        b'{"text": "a"} x',
        b"[" * 100_000,
        b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"text": "a", "unknown": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    ],
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    for function in (struct, anything, dataclass, lambda text, limit=1: None):
        problem, detail = refused(function, body)
        assert problem == "malformed-body"
        assert len(detail) < 400


@pytest.mark.parametrize(
    ("number", "value"),
    [(str(2**64), 2**64), (str(-(2**63) - 1), -(2**63) - 1), ("1" + "0" * 100, 10**100), ("9" * 4300, 10**4300 - 1)],
)
def test_integers_of_any_size_are_exact(number: str, value: int) -> None:
    def function(n: int) -> None: ...

    assert decoded(anything, number.encode()) == {"body": value}
    assert decoded(function, number.encode()) == {"n": value}


def test_or_refused() -> None:
    assert refused(anything, b"9" * 5000) == ("invalid-body", "Integer value out of range - at `$`")
    assert refused(anything, b"[1e999]")[0] == "invalid-body"


# What is handed in


def test_what_is_handed_in_is_known_by_its_annotation() -> None:
    async def function(
        body: Query,
        ctx: Context,
        db: psycopg.AsyncConnection[Any],
        pool: psycopg_pool.AsyncConnectionPool,
        more: Annotated[Context, "noted"],
        maybe: Context | None = None,
    ) -> None: ...

    binding = bind(function)
    assert binding.injections == (
        Injection("ctx", "context"),
        Injection("db", "connection"),
        Injection("pool", "pool"),
        Injection("more", "context"),
        Injection("maybe", "context"),
    )
    assert (binding.kind, binding.database, binding.connection, binding.wants_context) == ("async", "async", "db", True)
    assert binding.decode(b'{"text": "a"}') == {"body": Query("a")}


def test_the_body_may_come_after_what_is_handed_in() -> None:
    def function(ctx: Context, db: psycopg.Connection, query: Query) -> None: ...

    assert decoded(function, b'{"text": "a"}') == {"query": Query("a")}
    assert bind(function).database == "sync"


# What can be an agent


class Service:
    def __init__(self, factor: int = 2) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return self.factor * x

    async def later(self, x: int) -> int:
        return self.factor * x

    @staticmethod
    def still(x: int) -> int:
        return x

    @classmethod
    def of_all(cls, x: int) -> int:
        return x


async def plus(x: int, y: int = 1) -> int:
    return x + y


@functools.wraps(plus)
async def wrapped(*args: Any, **kwargs: Any) -> Any:
    return await plus(*args, **kwargs)


@functools.wraps(plus)
def wrapped_plainly(*args: Any, **kwargs: Any) -> Any:
    return plus(*args, **kwargs)


@pytest.mark.parametrize(
    ("function", "kind", "body", "arguments"),
    [
        (lambda x: x, "sync", b"3", {"x": 3}),
        (Service(), "sync", b"3", {"x": 3}),
        (Service().later, "async", b"3", {"x": 3}),
        (Service.still, "sync", b"3", {"x": 3}),
        (Service.of_all, "sync", b"3", {"x": 3}),
        (functools.partial(plus, 1), "async", b'{"y": 3}', {"y": 3}),
        (functools.partial(plus, y=10), "async", b'{"x": 3, "y": 4}', {"x": 3}),
        (functools.partial(functools.partial(Service(), x=3)), "sync", b"", {}),
        (wrapped, "async", b'{"x": 3}', {"x": 3, "y": 1}),
        (wrapped_plainly, "async", b'{"x": 3}', {"x": 3, "y": 1}),
    ],
)
def test_whatever_can_be_called(
    function: Callable[..., Any], kind: str, body: bytes, arguments: dict[str, Any]
) -> None:
    binding = bind(function)
    assert (binding.kind, binding.decode(body)) == (kind, arguments)


def test_what_a_partial_gives_no_client_can_change() -> None:
    assert "'y'" not in str(bind(functools.partial(plus, y=10)).body_schema)


class Strange:
    """Nothing that JSON has to do with."""


def two(a: psycopg.Connection, b: psycopg.Connection) -> None: ...
async def mixed(db: psycopg.Connection) -> None: ...
def mixed_too(db: psycopg.AsyncConnection) -> None: ...
def unnamed(*parts: int) -> None: ...
def forgotten(text: str, ctx) -> None: ...  # type: ignore[no-untyped-def]
def unknown(body: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def attribute(body: msgspec.Nowhere) -> None: ...  # type: ignore[name-defined]
def strange(body: Strange) -> None: ...
def sets(body: set[list[int]] | list[int]) -> None: ...


def unreadable(body: Any) -> None: ...


unreadable.__annotations__["body"] = "1 +"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (two, "it asks for two connections; one call gets one"),
        (mixed, "it is async and asks for sync database access; annotate with psycopg.AsyncConnection instead"),
        (mixed_too, "it is sync and asks for async database access; annotate with psycopg.Connection instead"),
        (unnamed, "the parameter *parts: 'int' has no name to pass it by; use plain parameters"),
        (lambda x, /: x, "the parameter x has no name to pass it by; use plain parameters"),
        (forgotten, "the parameter 'ctx' has no annotation; say what it is: Context, psycopg.Connection"),
        (unknown, "its annotations cannot be resolved: name 'Nowhere' is not defined"),
        (attribute, "its annotations cannot be resolved: module 'msgspec' has no attribute 'Nowhere'"),
        (unreadable, "its annotations cannot be resolved: Forward reference must be an expression"),
        (strange, "Strange'>; annotate with a Struct, dataclass, TypedDict or builtin"),
        (sets, "the body cannot be decoded as"),
        (Service, "it is a class; serve a function, or an object with __call__"),
        (int, "it is a class"),
        (math.hypot, "it has no signature|has no name to pass it by"),
        (Service.later, "it is a method without its object"),
    ],
)
def test_what_cannot_be_served_is_told_why(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(BindingError) as caught:
        bind(function)
    assert any(each in str(caught.value) for each in words.split("|")), str(caught.value)


# Schemas


def test_schemas_say_what_goes_in_and_out() -> None:
    def function(query: Query) -> list[Point]: ...  # type: ignore[empty-body]
    def blob(body: bytes) -> bytes: ...  # type: ignore[empty-body]

    binding: Binding = bind(function)
    assert binding.body_schema == msgspec.json.schema(Query)
    assert binding.result_schema == msgspec.json.schema(list[Point])
    assert bind(blob).body_schema == bind(blob).result_schema == {"contentMediaType": "application/octet-stream"}
    assert bind(Service()).result_schema == {"type": "integer"}
    assert bind(anything).body_schema == {}


def test_a_shared_definition_stays_reachable() -> None:
    def function(color: Color) -> None: ...

    schema = bind(function).body_schema
    assert set(schema["$defs"]) == {"Color"}
    assert schema["anyOf"][1] == {"$ref": "#/$defs/Color"}


def huge(number: int = 2**70) -> None: ...
def huge_ones(number: int = 2**70, other: int = -(2**70)) -> None: ...


@pytest.mark.parametrize("function", [huge, huge_ones])
def test_a_schema_that_cannot_be_sent_is_none(function: Callable[..., Any]) -> None:
    found = bind(function)
    assert found.body_schema == {}
    assert found.decode(b'{"number": 3}')["number"] == 3


# Decorators


class Around:
    """A decorator that is an object, and says of itself only what it goes around."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


class AroundAsync(Around):
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


class Updated(Around):
    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)


def around(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that says as little."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__wrapped__ = function  # type: ignore[attr-defined]
    return call


def stating(function: Callable[..., Any]) -> Callable[..., Any]:
    """One that states a signature of its own, with names in quotes."""

    def call(**kwargs: Any) -> Any:
        return function(**kwargs)

    parameter = inspect.Parameter("number", inspect.Parameter.KEYWORD_ONLY, annotation="Annotated[int, 5]")
    call.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    return call


def a_number(number: int, ctx: Context) -> int:
    return number


async def a_number_async(number: int, ctx: Context | None = None) -> int:
    return number


DECORATED = [
    *((decorate, a_number, "sync") for decorate in (Around, Updated, around, functools.partial, stating)),
    *((decorate, a_number_async, "async") for decorate in (Around, Updated, around, functools.partial)),
    (AroundAsync, a_number, "async"),
    (lambda function: Around(Updated(around(function))), a_number, "sync"),
    (lambda function: functools.partial(Around(function)), a_number_async, "async"),
    (lambda function: Around(functools.partial(function)), a_number_async, "async"),
]


@pytest.mark.parametrize(("decorate", "function", "kind"), DECORATED)
def test_hints_and_signature_are_of_the_same_function(
    decorate: Callable[..., Any], function: Callable[..., Any], kind: str
) -> None:
    found = bind(decorate(function))
    assert found.kind == kind
    assert found.decode(b'{"number": 3}') == {"number": 3}
    assert found.wants_context == (decorate is not stating)
    with pytest.raises(BadBody, match="Expected `int`, got `str`"):
        found.decode(b'"3"')


def test_what_goes_around_itself_is_looked_at_once() -> None:
    circle = Around(a_number)
    circle.__wrapped__ = circle
    with pytest.raises(BindingError, match="it goes around itself"):
        bind(circle)
