"""``@agent`` and the hooks: how authors say what a worker can do. Registration only; nothing runs here."""

from __future__ import annotations

import inspect
import math
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, overload

from .binding import Binding, BindingError, bind

F = TypeVar("F", bound=Callable[..., Any])
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SETTINGS: Final = "name, timeout, idempotent, pool, max_concurrency, priority"


class AgentError(Exception):
    """An agent or hook that cannot be registered. The text names it and says what is allowed."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A registered agent."""

    name: str
    function: Callable[..., Any]
    binding: Binding
    module: str
    doc: str
    pool: str
    idempotent: bool
    timeout: float | None
    priority: int
    max_concurrency: int


registry: dict[str, Definition] = {}
"""Every agent of this process, by name, in the order of registration."""

start_hooks: list[Callable[[], Any]] = []
stop_hooks: list[Callable[[], Any]] = []


@overload
def agent(function: F, /) -> F: ...
@overload
def agent(
    *,
    name: str = "",
    timeout: float | None = None,
    idempotent: bool = False,
    pool: str = "",
    max_concurrency: int = 0,
    priority: int = 3,
) -> Callable[[F], F]: ...
def agent(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str = "",
    timeout: float | None = None,
    idempotent: bool = False,
    pool: str = "",
    max_concurrency: int = 0,
    priority: int = 3,
    **unknown: Any,
) -> Any:
    """Make a function callable at ``POST /v1/agents/NAME``; the function itself stays as it is.

    ``name``: instead of the function's own. ``timeout``: seconds a call may take (else ``agents.timeout``).
    ``idempotent``: a call may be tried again after its worker died. ``pool``: the pool whose workers run it (else the
    first whose patterns match). ``max_concurrency``: calls that one worker runs at once (0: as many as it has slots).
    ``priority``: urgency for requests that state none, 0 (first) to 7 (last).

    Raises ``AgentError`` for a setting or a signature that cannot work, ``TypeError`` for a setting that there is not.
    """
    if unknown:
        raise TypeError(f"@agent has no setting {', '.join(unknown)}; there are: {_SETTINGS}")
    if function is not None and not callable(function):
        raise TypeError(f"@agent takes settings by their names, not {function!r}; there are: {_SETTINGS}")

    def register(found: Callable[..., Any]) -> Callable[..., Any]:
        define(
            function=found,
            name=name or getattr(_author(found), "__name__", ""),
            timeout=timeout,
            idempotent=idempotent,
            pool=pool,
            max_concurrency=max_concurrency,
            priority=priority,
        )
        return found

    return register if function is None else register(function)


def define(
    function: Callable[..., Any],
    name: str,
    timeout: float | None = None,
    idempotent: bool = False,
    pool: str = "",
    max_concurrency: int = 0,
    priority: int = 3,
    hints: dict[str, Any] | None = None,
) -> Definition:
    """Register a function under a name (``AgentError``). ``hints``: its annotations, if resolved already."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise AgentError(
            f"{name!r} is no name for an agent: a letter or digit, then up to 127 letters, digits, dots, _ or -"
        )
    if name in registry and registry[name].function is not function:
        raise AgentError(f"two agents have the name {name!r}: in {registry[name].module} and {_module(function)}")
    if timeout is not None and not (_is_number(timeout) and 0 < timeout < math.inf):
        raise AgentError(f"agent {name!r}: timeout must be seconds above 0, not {timeout!r}")
    if not isinstance(idempotent, bool):
        raise AgentError(f"agent {name!r}: idempotent must be True or False, not {idempotent!r}")
    if not isinstance(pool, str):
        raise AgentError(f"agent {name!r}: pool must be the name of a pool, not {pool!r}")
    if not (_is_number(priority, int) and 0 <= priority <= 7):
        raise AgentError(f"agent {name!r}: priority must be a whole number from 0 to 7, not {priority!r}")
    if not (_is_number(max_concurrency, int) and 0 <= max_concurrency < 2**31):
        raise AgentError(
            f"agent {name!r}: max_concurrency must be a whole number, 0 (no limit) or more, not {max_concurrency!r}"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise AgentError(f"agent {name!r} is a generator; an agent returns its result")
    try:
        binding = bind(function, hints)
    except BindingError as error:
        raise AgentError(f"agent {name!r}: {error}") from error
    definition = Definition(
        name=name,
        function=function,
        binding=binding,
        module=_module(function),
        doc=inspect.getdoc(_author(function)) or "",
        pool=pool,
        idempotent=idempotent,
        timeout=timeout,
        priority=priority,
        max_concurrency=max_concurrency,
    )
    registry[name] = definition
    return definition


def _author(function: Callable[..., Any]) -> Callable[..., Any]:
    """What its author has named and described: of an object that decorates a function, that function."""
    return function if inspect.isroutine(function) else inspect.unwrap(function)


def _module(function: Callable[..., Any]) -> str:
    return getattr(_author(function), "__module__", "") or ""


def _is_number(value: object, kind: type | types.UnionType = int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """A block whose registrations are taken back when it fails: half of a module is not served.

    The modules that made them are forgotten too, so that a later import runs them again.
    """
    agents, started, stopped = dict(registry), start_hooks[:], stop_hooks[:]
    try:
        yield
    except BaseException:
        made = [each.function for name, each in registry.items() if name not in agents]
        for function in made + start_hooks[len(started) :] + stop_hooks[len(stopped) :]:
            sys.modules.pop(_module(function), None)
        registry.clear()
        registry.update(agents)
        start_hooks[:], stop_hooks[:] = started, stopped
        raise


def on_start(function: F) -> F:
    """Run this function (sync or async, no parameters) once in each worker before it takes requests."""
    start_hooks.append(_hook(function))
    return function


def on_stop(function: F) -> F:
    """Run this function (sync or async, no parameters) once in each worker when it stops in an orderly way."""
    stop_hooks.append(_hook(function))
    return function


def _hook(function: Callable[..., Any]) -> Callable[..., Any]:
    name = getattr(function, "__name__", repr(function))
    if not callable(function):
        raise AgentError(f"{name} is no function, so it can be no hook")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return function  # built in, without a signature to look at
    required = [
        each.name
        for each in parameters
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if required:
        raise AgentError(f"the hook {name!r} has parameters ({', '.join(required)}), and hooks get none")
    return function
