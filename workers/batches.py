"""Batches: requests that an agent gets as one list, in one run of its function, and answers with a list as long.

To its runner a batch is a call like any other, with a slot, a thread or task, and a connection. What differs is here:
its arguments come from many bodies, and its result is many. Each member stands for itself. A body that does not fit is
left out, and so is a member whose client has gone before; a result that is an exception is that member's failure.

A function that raises has failed for all that it was given. If the agent is idempotent, these are given to it again by
halves, so that in the end the one at fault fails alone: after at most ``log2(n)`` rounds, and within the deadline. Each
half is a run of its own, with a connection and a transaction of its own. The answers go when all is done, since the
slot is free only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set, Sized
from typing import Any

from penstock.ipc.messages import Call

from .binding import BadBody
from .context import Context
from .database import Unavailable
from .response import encode_result


class NothingLeft(Exception):
    """No member is left for the function to be entered."""


class WrongResults(Exception):
    """What the function has returned is not one result for each member. The text says what it is."""


class Member:
    """One request of a batch."""

    __slots__ = ("body", "cancelled", "context", "decoded", "failed", "failure", "problem", "result", "spec", "value")

    def __init__(self, spec: Call, body: bytes) -> None:
        self.spec = spec
        self.body = body
        self.context: Context | None = None
        self.cancelled = ""
        """Why nobody waits for it any more; empty while somebody does."""
        self.decoded = False
        self.value: Any = None
        """Its decoded body."""
        self.result: tuple[int, str, list[tuple[str, str]] | None, bytes] | None = None
        """Status, media type, headers and body."""
        self.problem: tuple[str, str] | None = None
        """Name and detail of what it ends with, if not with a result."""
        self.failure: BaseException | None = None
        """What the agent has given for its result, or what was wrong with that; its log is to have it."""
        self.failed = False
        """A run of the function failed that it had part in; the log has why."""

    @property
    def is_open(self) -> bool:
        """It has no end yet, and somebody waits for it."""
        return not (self.cancelled or self.result or self.problem or self.failure or self.failed)


class Members:
    """The requests of one batch, and those of them that the function has now."""

    __slots__ = ("_parts", "all", "part")

    def __init__(self, calls: list[Call], sizes: list[int], bodies: bytes) -> None:
        """``bodies``: one after another, of these ``sizes``."""
        self.all: list[Member] = []
        at = 0
        for call, size in zip(calls, sizes, strict=True):
            self.all.append(Member(call, bodies[at : at + size]))
            at += size
        self.part: list[Member] = []
        self._parts = [self.all]

    @property
    def is_open(self) -> bool:
        """Somebody waits for a member that has no end yet."""
        return any(each.is_open for each in self.all)

    def cancel(self, call_id: int, reason: str) -> None:
        """Nobody waits for this member any more."""
        for each in self.all:
            if each.spec.call == call_id and not each.cancelled:
                each.cancelled = reason
                if each.context is not None:
                    each.context.cancel(reason)

    def next_part(self) -> bool:
        """Give the function the next ones; False: there are none."""
        while self._parts:
            self.part = [each for each in self._parts.pop() if each.is_open]
            if self.part:
                return True
        return False

    def values(self, name: str, decode: Callable[[bytes], dict[str, Any]]) -> list[Any]:
        """The bodies of the part, decoded, for the parameter of this name; a bad one is left out (``NothingLeft``)."""
        for each in self.part:
            if not each.decoded:
                try:
                    each.value = decode(each.body)[name]
                    each.decoded = True
                except BadBody as error:
                    each.problem = error.problem, error.detail
        self.part = [each for each in self.part if each.is_open]
        if not self.part:
            raise NothingLeft
        return [each.value for each in self.part]

    def take(self, results: Any, agent: str) -> None:
        """The function has returned (``WrongResults``). What cannot be encoded fails its member alone."""
        if isinstance(results, str | bytes | bytearray | memoryview | Mapping | Set) or not isinstance(results, Sized):
            returned = type(results).__qualname__
            raise WrongResults(f"the agent {agent!r} gets batches, and has returned {returned}; return a list")
        if len(results) != len(self.part):
            wrong = f"the agent {agent!r} got {len(self.part)} bodies and has returned {len(results)} results"
            raise WrongResults(wrong)
        for each, value in zip(self.part, results, strict=True):  # type: ignore[call-overload]
            if isinstance(value, BaseException):
                each.failure = value
                continue
            try:
                each.result = encode_result(value)
            except Exception as error:
                each.failure = error

    def fail(self, failure: BaseException, *, again: bool) -> bool:
        """A run of the function has failed. Whether all of its members have failed by that: else there is nothing to be
        said of it, or they are given to the function again, which ``again`` allows.
        """
        if isinstance(failure, NothingLeft):
            return False
        part = [each for each in self.part if each.is_open]
        if isinstance(failure, Unavailable):
            for each in part:
                each.problem = failure.problem, failure.detail
            return False
        if again and len(part) > 1 and not isinstance(failure, WrongResults):
            middle = len(part) // 2
            self._parts += [part[middle:], part[:middle]]
            return False
        for each in part:
            each.failed = True
        return True
