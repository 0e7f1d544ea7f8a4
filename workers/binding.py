"""Binds a call's body and context to the arguments of an agent's function.

The first parameter takes the body, decoded and checked by its annotation; parameters annotated with ``Context`` or one
of psycopg's connections or pools are handed in. Where the body cannot be confused with an object (the annotation is a
scalar: a number, a text, a date, one of some values), or where several parameters are left, the parameters are the
fields of a JSON object: ``def primes(below: int)`` takes ``{"below": 100}``, and as it has only one, ``100`` as well.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import inspect
import types
import typing
import uuid
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
import psycopg
import psycopg_pool

from penstock.ipc.texts import all_encodable

from .context import Context

_SCALARS: Final = (
    *(bool, int, float, str, type(None), enum.Enum, decimal.Decimal, uuid.UUID),
    *(datetime.date, datetime.time, datetime.timedelta),
)
_EMPTY: Final = frozenset({b"", b"null", b"{}"})


class BindingError(Exception):
    """A signature that cannot be served. The text says why."""


class BadBody(Exception):
    """A body that cannot be an argument. ``problem`` is ``malformed-body`` or ``invalid-body``."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Injection:
    """A parameter that is handed in: ``context``, ``contexts`` (those of a batch), ``connection`` or ``pool``."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Binding:
    """How to call an agent."""

    kind: str
    """``async`` or ``sync``."""
    decode: Callable[[bytes], dict[str, Any]]
    """A body to the arguments that come from it (``BadBody``)."""
    injections: tuple[Injection, ...]
    raw_body: bool
    database: str
    """``async``, ``sync`` or empty: which pool a connection comes from, or which pool is handed in."""
    connection: str
    """The parameter that wants a connection; empty: none does."""
    body_schema: dict[str, Any]
    result_schema: dict[str, Any]
    """Of the result, or of each item of a stream."""
    stream: bool
    """It answers with a stream."""
    batch: str = ""
    """The parameter that takes the list of bodies, of each of which ``decode`` and the schemas are; empty: it gets no
    batches."""

    @property
    def wants_context(self) -> bool:
        return any(each.kind in ("context", "contexts") for each in self.injections)


_HANDED_IN: Final[dict[type, tuple[str, str]]] = {
    Context: ("context", ""),
    psycopg.AsyncConnection: ("connection", "async"),
    psycopg.Connection: ("connection", "sync"),
    psycopg_pool.AsyncConnectionPool: ("pool", "async"),
    psycopg_pool.ConnectionPool: ("pool", "sync"),
}


def bind(
    function: Callable[..., Any], hints: dict[str, Any] | None = None, *, stream: bool = False, batch: bool = False
) -> Binding:
    """Look at a function once (``BindingError``). ``hints``: its annotations, where they are resolved already.

    ``stream``: it returns an iterator, or an async one. A generator function does so anyway. ``batch``: it gets a list
    of bodies and returns a list of results.
    """
    hints = annotations_of(function) if hints is None else hints
    kind, parameters = _look_at(function, hints)
    body: list[inspect.Parameter] = []
    injections: list[Injection] = []
    databases: list[str] = []
    for parameter in parameters:
        found = _handed_in(hints.get(parameter.name), batch=batch)
        if found is None:
            body.append(parameter)
            continue
        injections.append(Injection(parameter.name, found[0]))
        if found[1]:
            databases.append(found[1])
    _check_database(kind, injections, databases)
    _check_annotated(body, hints)
    stream = stream or any(map(_is_generator, _layers(function)))
    if batch:
        body, hints = _batched(body, hints, stream=stream)
    decode, schema, raw = _body(body, hints)
    result = hints.get("return", Any)
    return Binding(
        kind=kind,
        decode=decode,
        injections=tuple(injections),
        raw_body=raw,
        database=databases[0] if databases else "",
        connection=next((each.name for each in injections if each.kind == "connection"), ""),
        body_schema=schema,
        result_schema=_result_schema(_item(result) if stream else result),
        stream=stream,
        batch=body[0].name if batch else "",
    )


def _batched(
    body: list[inspect.Parameter], hints: dict[str, Any], *, stream: bool
) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """The parameter of a batched agent and all annotations, as if it got one body and gave one result."""
    if stream:
        raise BindingError("it is a generator and gets batches; return a list of results, or leave batch out")
    if len(body) != 1:
        names = ", ".join(each.name for each in body) or "none"
        raise BindingError(f"it gets batches, so one parameter takes the list of bodies; it has: {names}")
    name = body[0].name
    hint = hints.get(name, list)
    base = typing.get_origin(hint) or hint
    if base not in (list, Sequence, Iterable, Any):
        raise BindingError(f"it gets batches, so annotate {name!r} with list[...], the type of a body in it")
    hints = {**hints, name: _item(hint), "return": _item(hints.get("return", Any))}
    return [body[0].replace(default=inspect.Parameter.empty)], hints


def _layers(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The function and all that lies under it, as ``inspect.signature`` finds its way: below a partial and a decorator,
    be it a function or an object, what they go around, below any other object its ``__call__`` (``BindingError``).
    """
    seen: set[int] = set()
    while True:
        if inspect.isclass(function):
            raise BindingError("it is a class; serve a function, or an object with __call__")
        if id(function) in seen:
            raise BindingError("it goes around itself, so that it has no signature")
        seen.add(id(function))
        yield function
        below = function.func if isinstance(function, functools.partial) else getattr(function, "__wrapped__", None)
        if below is None and not inspect.isroutine(function):
            below = getattr(function, "__call__", None)  # noqa: B004
            if type(below) is type(function):
                return  # what calls have in C has a __call__ of the same kind, and so on
        if below is None:
            return
        function = below


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether what this gives is to be awaited, as far as can be seen before it is called."""
    call = _call_of(function)
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in (function, call))


def _is_generator(function: Callable[..., Any]) -> bool:
    """Whether what this gives is to be iterated over, in one way or the other."""
    call = _call_of(function)
    return any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in (function, call))


def _call_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """What runs when this is called."""
    found: Callable[..., Any] = (
        function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    )
    return found


def _item(hint: Any) -> Any:
    """The type of the items of what is annotated like this: ``Iterator[X]`` and its kin."""
    base, arguments = typing.get_origin(hint), typing.get_args(hint)
    if base is Annotated:
        return _item(arguments[0])
    if isinstance(base, type) and issubclass(base, Iterable | AsyncIterable) and arguments:
        return arguments[0]
    return Any


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """What the parameters and the result are annotated with, ``return`` included (``BindingError``): those of the
    function whose signature counts.
    """
    layers = list(_layers(function))
    signed = next(
        (each for each in layers if isinstance(getattr(each, "__signature__", None), inspect.Signature)), None
    )
    try:
        return typing.get_type_hints(layers[-1] if signed is None else _annotated(signed), include_extras=True)
    except Exception as error:
        # Annotations in quotes are code, which can fail in every way.
        raise BindingError(f"its annotations cannot be resolved: {error}") from error


def _annotated(signed: Callable[..., Any]) -> Any:
    """Something with the annotations that are in the signature which an object states of itself."""
    signature: inspect.Signature = signed.__signature__  # type: ignore[attr-defined]
    said = {name: each.annotation for name, each in signature.parameters.items()}
    said["return"] = signature.return_annotation
    found = {name: hint for name, hint in said.items() if hint is not inspect.Signature.empty}
    # Names in quotes mean what they mean where the innermost function is.
    return types.SimpleNamespace(__annotations__=found, __wrapped__=inspect.unwrap(signed))


def _look_at(function: Callable[..., Any], hints: dict[str, Any]) -> tuple[str, list[inspect.Parameter]]:
    """``async`` or ``sync``, and the parameters that a call has to give."""
    outer, given = function, set[str]()
    while isinstance(outer, functools.partial):
        given |= outer.keywords.keys()
        outer = outer.func
    # A plain function around an async one mostly gives what that one returns, which is to be awaited on the loop.
    kind = "async" if any(map(_is_async, _layers(function))) else "sync"
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise BindingError(f"it has no signature to see its parameters by ({error}); wrap it in a function") from error
    parameters = [each for name, each in found.items() if name not in given]
    for each in parameters:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
            raise BindingError(f"the parameter {each} has no name to pass it by; use plain parameters")
    if parameters and parameters[0].name == "self" and "self" not in hints:
        raise BindingError("it is a method without its object (its first parameter is self); serve a bound method")
    return kind, parameters


def _handed_in(hint: Any, *, batch: bool = False) -> tuple[str, str] | None:
    if batch:
        return _handed_to_batch(hint)
    base = typing.get_origin(hint) or hint
    if base is Annotated:
        return _handed_in(typing.get_args(hint)[0])
    if base in (typing.Union, types.UnionType):
        # Context | None, say: it is always handed in.
        some = [each for each in typing.get_args(hint) if each is not type(None)]
        return _handed_in(some[0]) if len(some) == 1 else None
    if not isinstance(base, type):
        return None
    return next((found for wanted, found in _HANDED_IN.items() if issubclass(base, wanted)), None)


def _handed_to_batch(hint: Any) -> tuple[str, str] | None:
    """As ``_handed_in``: each request of a batch has a context of its own, and all share what the database gives."""
    if typing.get_origin(hint) is list and _handed_in(typing.get_args(hint)[0]) == _HANDED_IN[Context]:
        return "contexts", ""
    found = _handed_in(hint)
    if found == _HANDED_IN[Context]:
        raise BindingError("it gets batches, and each request has a context of its own: annotate with list[Context]")
    return found


def _check_database(kind: str, injections: list[Injection], databases: list[str]) -> None:
    for wanted in databases:
        if wanted != kind:
            one = "psycopg.AsyncConnection" if kind == "async" else "psycopg.Connection"
            raise BindingError(f"it is {kind} and asks for {wanted} database access; annotate with {one} instead")
    if sum(each.kind == "connection" for each in injections) > 1:
        raise BindingError("it asks for two connections; one call gets one")


def _check_annotated(body: list[inspect.Parameter], hints: dict[str, Any]) -> None:
    """One that is left unannotated beside annotated ones was more likely meant to be handed in."""
    bare = [each.name for each in body[1:] if each.name not in hints]
    if bare and hints.keys() - {"return"}:
        raise BindingError(
            f"the parameter {bare[0]!r} has no annotation; say what it is: Context, psycopg.Connection, "
            f"psycopg.AsyncConnection, a pool of psycopg_pool, or the type of a field of the body"
        )


def _body(
    parameters: list[inspect.Parameter], hints: dict[str, Any]
) -> tuple[Callable[[bytes], dict[str, Any]], dict[str, Any], bool]:
    """The decoder for the parameters that take the body, the body's schema, and whether it is taken as it is."""
    if not parameters:
        return _no_body, {"type": "null"}, False
    if len(parameters) == 1:
        name = parameters[0].name
        hint = hints.get(name, Any)
        if hint is bytes:
            return (lambda body: {name: body}), {"contentMediaType": "application/octet-stream"}, True
        if not _is_scalar(hint):
            return _whole(name, hint, parameters[0].default), _schema(hint), False
    return _fields(parameters, hints)


def _no_body(body: bytes) -> dict[str, Any]:
    if body.strip() not in _EMPTY:
        _decoder(Any)(body)
        raise BadBody("invalid-body", "this agent takes no body; send none, null or {} - at `$`")
    return {}


def _is_scalar(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        return _is_scalar(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return all(_is_scalar(each) for each in typing.get_args(hint))
    if isinstance(hint, typing.NewType):
        return _is_scalar(hint.__supertype__)
    return typing.get_origin(hint) is Literal or (isinstance(hint, type) and issubclass(hint, _SCALARS))


def _whole(name: str, hint: Any, default: Any) -> Callable[[bytes], dict[str, Any]]:
    decode = _decoder(hint)
    if default is inspect.Parameter.empty:

        def decode_needed(body: bytes) -> dict[str, Any]:
            if not body:
                raise BadBody("malformed-body", "there is no body, and this agent takes JSON")
            return {name: decode(body)}

        return decode_needed
    return lambda body: {name: decode(body)} if body else {}


def _fields(
    parameters: list[inspect.Parameter], hints: dict[str, Any]
) -> tuple[Callable[[bytes], dict[str, Any]], dict[str, Any], bool]:
    names = [each.name for each in parameters]
    fields: list[Any] = []
    for each in sorted(parameters, key=lambda one: one.default is not one.empty):
        hint = hints.get(each.name, Any)
        fields.append((each.name, hint) if each.default is each.empty else (each.name, hint, each.default))
    try:
        # With a module of its own: an author may have a struct of that name, too.
        shape = msgspec.defstruct("Body", fields, module=__name__)
        decode = _decoder(shape)
    except (TypeError, ValueError) as error:
        raise BindingError(str(error)) from error
    schema = _schema(shape)

    def decode_object(body: bytes) -> dict[str, Any]:
        found = decode(body or b"{}")
        return {name: getattr(found, name) for name in names}

    if len(names) > 1:
        return decode_object, schema, False
    only = names[0]
    alone = _decoder(hints.get(only, Any))

    def decode_either(body: bytes) -> dict[str, Any]:
        if not body or body.lstrip(b" \t\r\n")[:1] == b"{":
            return decode_object(body)
        return {only: alone(body)}

    if not schema:
        return decode_either, {}, False
    inline = schema["$defs"].pop(schema["$ref"].rpartition("/")[2])
    return decode_either, _either(inline, _schema(hints.get(only, Any)), schema["$defs"]), False


def _either(an_object: dict[str, Any], alone: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """The schema of what is the one or the other."""
    shared = {**shared, **alone.pop("$defs", {})}
    return {"anyOf": [an_object, alone], **({"$defs": shared} if shared else {})}


def _decoder(hint: Any) -> Callable[[bytes], Any]:
    """JSON to a checked value, with every failure a ``BadBody``."""
    if hint is object:
        hint = Any
    try:
        decode = msgspec.json.Decoder(hint).decode
        custom = isinstance(msgspec.inspect.type_info(hint), msgspec.inspect.CustomType)
    except (TypeError, ValueError) as error:
        raise BindingError(f"the body cannot be decoded as {hint!r}: {error}") from error
    if custom:
        raise BindingError(
            f"no JSON can be decoded as {hint!r}; annotate with a Struct, dataclass, TypedDict or builtin"
        )
    # What the type leaves out msgspec skips, without looking whether it is UTF-8.
    skips = hint is not Any

    def checked(body: bytes) -> Any:
        try:
            value = decode(body)
            if skips and not body.isascii():
                body.decode()
            return value
        except msgspec.ValidationError as error:
            _well_formed(body)
            text = str(error)
            raise BadBody("invalid-body", text if "`$" in text else f"{text} - at `$`") from error
        except RecursionError as error:
            raise BadBody("malformed-body", "the body is nested too deeply") from error
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise BadBody("malformed-body", f"the body is not JSON: {error}"[:300]) from error

    return checked


def _well_formed(body: bytes) -> None:
    """What does not fit the type may not be JSON at all, which is the better thing to say."""
    try:
        msgspec.json.decode(body)
    except RecursionError as error:
        raise BadBody("malformed-body", "the body is nested too deeply") from error
    except ValueError as error:
        if not isinstance(error, msgspec.ValidationError):
            raise BadBody("malformed-body", f"the body is not JSON: {error}"[:300]) from error


def _schema(hint: Any) -> dict[str, Any]:
    """JSON Schema of a type; an empty one, which allows everything, where there is none, or none that the supervisor
    could be told: defaults and limits may be integers of more than 64 bits.
    """
    try:
        found = msgspec.json.schema(hint)
        msgspec.msgpack.encode(all_encodable(found))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return {}
    return found


def _result_schema(hint: Any) -> dict[str, Any]:
    if hint is bytes:
        return {"contentMediaType": "application/octet-stream"}
    return _schema(hint)
