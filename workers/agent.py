"""``@agent`` and the hooks: the registration of agents. Nothing runs here."""

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
_SETTINGS: Final = "name, timeout, idempotent, pool, max_concurrency, priority, stream, batch, batch_wait"
MOST: Final = 1024
"""Requests that a batch may have."""
LONGEST_WAIT: Final = 60.0
"""Seconds that a batch may wait for more requests."""


class AgentError(Exception):
    """An agent or hook that cannot be registered. The text names it and says what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an author says of an agent beside its function; ``agent`` says what each means."""

    timeout: float | None = None
    idempotent: bool = False
    pool: str = ""
    max_concurrency: int = 0
    priority: int = 3
    stream: bool = False
    batch: int | None = None
    batch_wait: float = 0.0

    def fault(self) -> str:
        """What is wrong with them, and what is allowed; empty if nothing is."""
        if self.timeout is not None and not (_is_number(self.timeout) and 0 < self.timeout < math.inf):
            return f"timeout must be seconds above 0, not {self.timeout!r}"
        if not isinstance(self.pool, str):
            return f"pool must be the name of a pool, not {self.pool!r}"
        if not (_is_number(self.priority, int) and 0 <= self.priority <= 7):
            return f"priority must be a whole number from 0 to 7, not {self.priority!r}"
        if not (_is_number(self.max_concurrency, int) and 0 <= self.max_concurrency < 2**31):
            return f"max_concurrency must be a whole number, 0 (no limit) or more, not {self.max_concurrency!r}"
        for name, value in (("idempotent", self.idempotent), ("stream", self.stream)):
            if not isinstance(value, bool):
                return f"{name} must be True or False, not {value!r}"
        return self._batch_fault()

    def _batch_fault(self) -> str:
        if self.batch is not None and not (_is_number(self.batch, int) and 1 <= self.batch <= MOST):
            return f"batch must be a whole number from 1 to {MOST}, not {self.batch!r}"
        if not (_is_number(self.batch_wait) and 0 <= self.batch_wait <= LONGEST_WAIT):
            return f"batch_wait must be seconds from 0 to {LONGEST_WAIT:g}, not {self.batch_wait!r}"
        if self.batch_wait and self.batch is None:
            return "batch_wait is for an agent that gets batches; say how many requests one may have: batch=32"
        if self.batch is not None and self.stream:
            return "an agent gets batches (batch) or streams its result (stream), not both"
        return ""


@dataclass(frozen=True, slots=True)
class Definition:
    """A registered agent."""

    name: str
    function: Callable[..., Any]
    binding: Binding
    module: str
    doc: str
    settings: Settings

    @property
    def stream(self) -> bool:
        """It answers with a stream of items."""
        return self.binding.stream


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
    stream: bool = False,
    batch: int | None = None,
    batch_wait: float = 0.0,
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
    stream: bool = False,
    batch: int | None = None,
    batch_wait: float = 0.0,
    **unknown: Any,
) -> Any:
    """Make a function callable at ``POST /v1/agents/NAME``; the function itself stays as it is.

    ``name``: instead of the function's own. ``timeout``: seconds a call may take (else ``agents.timeout``).
    ``idempotent``: a call may be tried again after its worker died. ``pool``: the pool whose workers run it (else the
    first whose patterns match). ``max_concurrency``: calls that one worker runs at once (0: as many as it has slots).
    ``priority``: urgency for requests that state none, 0 (first) to 7 (last). ``stream``: the function returns an
    iterator or an async iterator, whose items are streamed; a generator's are anyway. ``batch``: the function gets a
    list of 1 to so many bodies, and returns a list of as many results. ``batch_wait``: seconds that the first of them
    may wait for others while a worker is free.

    Raises ``AgentError`` for a setting or a signature that cannot work, ``TypeError`` for a setting that there is not.
    """
    if unknown:
        raise TypeError(f"@agent has no setting {', '.join(unknown)}; there are: {_SETTINGS}")
    if function is not None and not callable(function):
        raise TypeError(f"@agent takes settings by their names, not {function!r}; there are: {_SETTINGS}")

    def register(found: Callable[..., Any]) -> Callable[..., Any]:
        define(
            found,
            name or getattr(_author(found), "__name__", ""),
            Settings(
                timeout=timeout,
                idempotent=idempotent,
                pool=pool,
                max_concurrency=max_concurrency,
                priority=priority,
                stream=stream,
                batch=batch,
                batch_wait=batch_wait,
            ),
        )
        return found

    return register if function is None else register(function)


def define(
    function: Callable[..., Any], name: str, settings: Settings | None = None, hints: dict[str, Any] | None = None
) -> Definition:
    """Register a function under a name (``AgentError``). ``hints``: its annotations, if resolved already."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise AgentError(
            f"{name!r} is no name for an agent: a letter or digit, then up to 127 letters, digits, dots, _ or -"
        )
    if name in registry and registry[name].function is not function:
        raise AgentError(f"two agents have the name {name!r}: in {registry[name].module} and {_module(function)}")
    settings = settings or Settings()
    if wrong := settings.fault():
        raise AgentError(f"agent {name!r}: {wrong}")
    try:
        binding = bind(function, hints, stream=settings.stream, batch=settings.batch is not None)
    except BindingError as error:
        raise AgentError(f"agent {name!r}: {error}") from error
    definition = Definition(
        name=name,
        function=function,
        binding=binding,
        module=_module(function),
        doc=inspect.getdoc(_author(function)) or "",
        settings=settings,
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
