"""``Context``: what an agent can learn about its call, and the context variable that leads code below it there."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

from penstock.ipc.log import call_fields, get_logger


class Interrupted(BaseException):
    """Raised in the thread of a sync agent whose call was cancelled: its deadline is over or its client is gone.

    Like ``KeyboardInterrupt`` it is no ``Exception``, so that ``except Exception`` lets it pass. Clean up and let it go
    on: a thread that keeps running costs its worker's life ``agents.hard_timeout_grace`` seconds after the deadline.
    """


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

    __slots__ = ("_headers", "_reason", "agent", "client", "deadline", "request_id", "traceparent", "tracestate")

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
    ) -> None:
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

    def cancel(self, reason: str) -> None:
        """Note that the call is cancelled. Called by the worker."""
        self._reason = reason


current: ContextVar[Context | None] = ContextVar("penstock_call", default=None)
"""The call that this code runs for; None outside of one."""
