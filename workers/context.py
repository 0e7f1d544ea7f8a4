"""``Context``: what an agent can learn about its call, and the context variable that leads code below it there."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, Protocol

from penstock.ipc.log import call_fields, get_logger


class Interrupted(BaseException):
    """Raised in the thread of a sync agent whose call was cancelled: its deadline is over or its client is gone.

    Like ``KeyboardInterrupt`` it is no ``Exception``, so that ``except Exception`` lets it pass. Clean up and let it go
    on: a thread that keeps running costs its worker's life ``agents.hard_timeout_grace`` seconds after the deadline.
    """


class CallFailed(Exception):
    """A call of another agent gave no result, or a ``Response`` with a status of 400 or more."""

    def __init__(self, name: str, status: int, detail: str, problem: dict[str, Any]) -> None:
        super().__init__(name, status, detail, problem)
        self.name = name
        """The NAME of the problem, such as ``deadline-exceeded``; ``about:blank`` of a Response that is none."""
        self.status = status
        """As a client would get it."""
        self.detail = detail
        self.problem = problem
        """The whole document (RFC 9457)."""

    def __str__(self) -> str:
        return f"{self.name} ({self.status}): {self.detail}"


class Asking(Protocol):
    """What a call asks other agents by."""

    async def call(self, context: Context, agent: str, body: object, timeout: float | None) -> Any:
        """Ask, and wait for the result."""

    def call_sync(self, context: Context, agent: str, body: object, timeout: float | None) -> Any:
        """The same, on a thread."""

    def stream(self, context: Context, agent: str, body: object, timeout: float | None) -> AsyncIterator[Any]:
        """Ask, and give items as they come."""


class Headers(Mapping[str, str]):
    """The request's headers; names are looked up without regard to case.

    Bytes of a value that are not UTF-8 are lone surrogates in it, as in paths and arguments: ``value.encode("utf-8",
    "surrogateescape")`` gives the bytes as they came.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, str]) -> None:
        self._items = {name.lower(): value for name, value in items.items()}

    def __getitem__(self, name: str) -> str:
        return self._items[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class CallLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines say which call they are about, on whatever thread they are written."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add to what the caller passes as ``extra``, which a plain adapter would replace."""
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **(self.extra or {})}
        return msg, kwargs


class Context:
    """One call: ask for it by annotating a parameter of the agent with ``Context``."""

    __slots__ = (
        "_asking",
        "_headers",
        "_reason",
        "agent",
        "client",
        "deadline",
        "request_id",
        "traceparent",
        "tracestate",
    )

    # There is one for every call, asked for or not, so what few agents look at is made when they do.

    def __init__(
        self,
        agent: str,
        request_id: str,
        client: str,
        headers: Mapping[str, str],
        deadline: float,
        traceparent: str = "",
        tracestate: str = "",
        asking: Callable[[], Asking] | None = None,
    ) -> None:
        """``asking``: what other agents are asked by; None: none can be."""
        self.agent = agent
        self.request_id = request_id
        self.client = client
        """The name of the client's token, else its IP address."""
        self.deadline = deadline
        """Absolute, in seconds of ``time.monotonic()``."""
        self.traceparent = traceparent
        """The trace that this call belongs to, in the form of W3C Trace Context: sent on as the header ``traceparent``,
        it makes what the agent asks of others a part of the same trace. The client's, or where spans are on this call's
        own; empty when there is none."""
        self.tracestate = tracestate
        """What goes with it as the header ``tracestate``; empty when there is nothing."""
        self._headers = headers
        self._reason = ""
        self._asking = asking

    @property
    def headers(self) -> Headers:
        """The request's headers."""
        if not isinstance(self._headers, Headers):
            self._headers = Headers(self._headers)
        return self._headers

    @property
    def log(self) -> CallLogger:
        """The agent's logger; its lines carry the request id, the trace id if there is one, and the agent."""
        logger = get_logger(f"penstock.agent.{self.agent}")
        return CallLogger(logger, call_fields(self.request_id, self.traceparent, self.agent))

    def remaining(self) -> float:
        """Seconds until the deadline; negative once it is over."""
        return self.deadline - time.monotonic()

    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more, or the deadline is over."""
        return bool(self._reason) or self.remaining() <= 0.0

    async def call(self, agent: str, body: object = None, timeout: float | None = None) -> Any:
        """Call another agent, and wait for its result: decoded if it is JSON, bytes as bytes, of one that streams the
        list of its items. ``CallFailed`` if there is none.

        ``body``: what is JSON, or bytes as they are. ``timeout``: seconds; the deadline counts in any case.
        """
        return await self._children().call(self, agent, body, timeout)

    def call_sync(self, agent: str, body: object = None, timeout: float | None = None) -> Any:
        """As ``call``, for plain functions: their thread waits."""
        return self._children().call_sync(self, agent, body, timeout)

    def stream(self, agent: str, body: object = None, timeout: float | None = None) -> AsyncIterator[Any]:
        """Call another agent, and get its items as they come (``async for``); of one that does not stream its one
        result. ``CallFailed`` where it fails, perhaps after some items.
        """
        return self._children().stream(self, agent, body, timeout)

    def _children(self) -> Asking:
        if self._asking is None:
            raise RuntimeError("other agents can be called only while the call runs that this context belongs to")
        return self._asking()

    def end(self) -> None:
        """Note that the call has ended. Called by the worker."""
        self._asking = None

    def cancel(self, reason: str) -> None:
        """Note that the call is cancelled. Called by the worker."""
        self._reason = reason


current: ContextVar[Context | None] = ContextVar("penstock_call", default=None)
"""The call that this code runs for; None outside of one."""
