"""XML-RPC: a request's XML to a call of a published method, its value or its fault to XML.

A method is called only with what its annotations allow; anything else is ``INCORRECT_PARAMETERS``. Only methods that
are marked ``published`` can be reached, by exactly ``namespace.method``.
"""

from __future__ import annotations

import inspect
import logging
import re
import typing
import xmlrpc.client
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Final, TypeVar
from xml.parsers.expat import ExpatError

from supervisor.xmlrpc import Faults, RPCError

log = logging.getLogger("penstock.control")

F = TypeVar("F", bound=Callable[..., Any])

LARGEST: Final = 2**31 - 1
"""XML-RPC's integers have 32 bits."""

_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG: Final = re.compile(r"@(param|return) +(\w+)")


class MalformedError(Exception):
    """The body is no XML-RPC request. The text says why."""


def published(method: F) -> F:
    """Mark a method for clients. Its documentation names its types with ``@param`` and ``@return``."""
    method.published = True  # type: ignore[attr-defined] # a mark on a function
    return method


@dataclass(frozen=True, slots=True)
class Method:
    """A published method and what it takes."""

    name: str
    function: Callable[..., Any]
    types: tuple[Any, ...]
    required: int
    help: str

    @property
    def signature(self) -> list[str]:
        """The names of the types, the result's first."""
        tags = _TAG.findall(self.help)
        return [kind for tag, kind in tags if tag == "return"] + [kind for tag, kind in tags if tag == "param"]

    def fits(self, arguments: tuple[Any, ...]) -> bool:
        """Whether it can be called with these."""
        if not self.required <= len(arguments) <= len(self.types):
            return False
        return all(
            isinstance(value, kind) and not (isinstance(value, int) and abs(value) > LARGEST)
            for value, kind in zip(arguments, self.types, strict=False)
        )


def methods(namespace: str, implementation: object) -> dict[str, Method]:
    """The published methods of an object, by their full names. An attribute that is an alias counts as a method."""
    table = {}
    for name, _ in inspect.getmembers(type(implementation), lambda each: getattr(each, "published", False)):
        function = getattr(implementation, name)
        hints = typing.get_type_hints(function)
        parameters = list(inspect.signature(function).parameters.values())
        types = tuple(_runtime(hints[each.name]) for each in parameters)
        required = sum(each.default is inspect.Parameter.empty for each in parameters)
        full = f"{namespace}.{name}"
        table[full] = Method(full, function, types, required, inspect.getdoc(function) or "")
    return table


def _runtime(hint: Any) -> Any:
    """What ``isinstance`` takes in place of an annotation: ``list`` for ``list[str]``."""
    origin = typing.get_origin(hint)
    return hint if origin in (None, UnionType) else origin


class Dispatcher:
    """Calls methods by name."""

    def __init__(self, implementations: Iterable[object], closed: Callable[[str], bool]) -> None:
        """``implementations``: of the namespace ``supervisor``, together all of it. ``closed`` says of a method whether
        the daemon's end is near enough that it cannot be called.
        """
        self._closed = closed
        table: dict[str, Method] = {}
        for each in implementations:
            table |= methods("supervisor", each)
        self.methods: Mapping[str, Method] = table | methods("system", System(self))

    async def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """The method's value (``RPCError``)."""
        method = self.methods.get(name)
        if method is None:
            raise RPCError(Faults.UNKNOWN_METHOD)
        if self._closed(name):
            raise RPCError(Faults.SHUTDOWN_STATE)
        if not method.fits(arguments):
            raise RPCError(Faults.INCORRECT_PARAMETERS)
        value = method.function(*arguments)
        return await value if isinstance(value, Awaitable) else value

    async def respond(self, body: bytes) -> bytes:
        """The response to a request's body (``MalformedError``)."""
        name, arguments = parse(body)
        log.debug("%s%r", name, arguments)
        try:
            return dump(await self.call(name, arguments))
        except RPCError as error:
            return dump(xmlrpc.client.Fault(error.code, printable(error.text)))
        except Exception:
            log.exception("the method %s failed", name)
            return dump(xmlrpc.client.Fault(Faults.FAILED, "FAILED: the daemon's log says why"))


class System:
    """The namespace ``system``."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    @published
    def listMethods(self) -> list[str]:  # noqa: N802 - names that clients know
        """List the methods that can be called.

        @return array result  Their names.
        """
        return sorted(self._dispatcher.methods)

    @published
    def methodHelp(self, name: str) -> str:  # noqa: N802
        """Say what a method does.

        @param string name    The method.
        @return string result  Its documentation.
        """
        return self._method(name).help

    @published
    def methodSignature(self, name: str) -> list[str]:  # noqa: N802
        """Name the types of a method's result and of its parameters.

        @param string name    The method.
        @return array result  The result's type and the parameters' in order.
        """
        return self._method(name).signature

    def _method(self, name: str) -> Method:
        method = self._dispatcher.methods.get(name)
        if method is None:
            raise RPCError(Faults.SIGNATURE_UNSUPPORTED)
        return method

    @published
    async def multicall(self, calls: list[Any]) -> list[Any]:
        """Call several methods, one after the other.

        Each result is the method's own, not wrapped in an array, as clients of supervisord expect it. A fault is a
        struct {faultCode, faultString} in its place, and does not stop the rest.

        @param array calls    Structs {methodName, params}.
        @return array result  A result for each.
        """
        return [await self._one(call) for call in calls]

    async def _one(self, call: Any) -> Any:
        try:
            return await self._dispatcher.call(*_unpack(call))
        except RPCError as error:
            return {"faultCode": error.code, "faultString": printable(error.text)}
        except Exception as error:
            log.exception("a method failed in a multicall")
            return {"faultCode": Faults.FAILED, "faultString": f"FAILED: {type(error).__name__}"}


def _unpack(call: Any) -> tuple[str, tuple[Any, ...]]:
    name = call.get("methodName") if isinstance(call, dict) else None
    if not isinstance(name, str):
        raise RPCError(Faults.INCORRECT_PARAMETERS, "No methodName")
    if name == "system.multicall":
        raise RPCError(Faults.INCORRECT_PARAMETERS, "Recursive system.multicall forbidden")
    arguments = call.get("params", [])
    if not isinstance(arguments, list):
        raise RPCError(Faults.INCORRECT_PARAMETERS)
    return name, tuple(arguments)


def parse(body: bytes) -> tuple[str, tuple[Any, ...]]:
    """The method and the arguments of a request (``MalformedError``). What is binary becomes text, as there."""
    try:
        arguments, name = xmlrpc.client.loads(body, use_builtin_types=True)
        arguments = tuple(_text(each) for each in arguments)
    except RecursionError as error:
        raise MalformedError("nested too deeply") from error
    except (ExpatError, xmlrpc.client.Error, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from error
    except AssertionError as error:
        raise MalformedError("not XML-RPC") from error
    if not name:
        raise MalformedError("no method name")
    return str(name), arguments


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_text(each) for each in value]
    if isinstance(value, dict):
        return {name: _text(each) for name, each in value.items()}
    return value


def dump(value: Any) -> bytes:
    """A response."""
    if isinstance(value, xmlrpc.client.Fault):
        text = xmlrpc.client.dumps(value)
    else:
        text = xmlrpc.client.dumps((value,), methodresponse=True)
    return text.encode()


def printable(text: str) -> str:
    """The text without what XML 1.0 cannot hold: control characters become their pictures, such as U+241B for ESC."""
    return _FORBIDDEN.sub(lambda match: chr(0x2400 + ord(match[0])) if match[0] < " " else "\ufffd", text)


def capped(seconds: float) -> int:
    """Seconds as an integer that XML-RPC can carry."""
    return max(0, min(LARGEST, int(seconds)))
