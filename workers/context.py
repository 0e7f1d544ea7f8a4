"""What a call knows about itself, and the context variable by which code deep below an agent finds it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar


class Interrupted(BaseException):
    """Raised in the thread of a sync agent whose call was cancelled: its deadline is over or its client is gone.

    Like ``KeyboardInterrupt`` it is no ``Exception``, so that ``except Exception`` lets it pass. Clean up and let it go
    on: a thread that keeps running costs its worker's life ``agents.hard_timeout_grace`` seconds after the deadline.
    """


class Headers(Mapping[str, str]):
    """The request's headers; names are looked up without regard to case."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, str]) -> None:
        self._items = {name.lower(): value for name, value in items.items()}

    def __getitem__(self, name: str) -> str:
        return self._items[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Context:
    """One call: ask for it by annotating a parameter of the agent with ``Context``."""

    __slots__ = ("_reason", "agent", "client", "deadline", "headers", "log", "request_id")

    def __init__(self, agent: str, request_id: str, client: str, headers: Mapping[str, str], deadline: float) -> None:
        self.agent = agent
        self.request_id = request_id
        self.client = client
        """The name of the client's token, else its IP address."""
        self.headers = Headers(headers)
        self.deadline = deadline
        """Absolute, in seconds of ``time.monotonic()``."""
        self.log = logging.getLogger(f"penstock.agent.{agent}")
        """Its lines carry the request id and the agent."""
        self._reason = ""

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
