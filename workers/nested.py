"""Calls of other agents, from within a call: ``Context.call``, ``call_sync`` and ``stream``.

What is asked for goes to the supervisor as ``Ask`` and comes back as ``Reply``, before which a child that streams sends
``Part``. The books of one call are its ``Children``. They are the loop's: a thread has the loop ask, and waits on an
event, which an interruption sets as well (``ThreadCall.waiting``).

From the first open child to the reply of the last the supervisor gives the call's slot and its thread to others
(``daemon.engine.nested``), so a thread that waits here lends its place in the pool of threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from typing import Any, Final

import msgspec

from penstock.ipc.frames import encode
from penstock.ipc.messages import WINDOW, Abandon, Ask, Head, Part, Reply, Taken
from penstock.ipc.sockets import Outbox

from .context import CallFailed, Context
from .response import encode_json
from .threads import Threads, running

MOST: Final = 16
"""Children that a call may have open at once."""

PORTION: Final = WINDOW // 4
"""Bytes of a stream after whose reading its sender is let go on."""

_PHRASES: Final = {each.value: each.phrase for each in HTTPStatus}
TYPE: Final = "urn:penstock:problem:"


class Child:
    """One call of another agent, as its caller waits for it."""

    __slots__ = ("agent", "ask", "collects", "failure", "head", "owed", "parts", "reply", "wake")

    def __init__(self, agent: str, wake: Callable[[], None], *, collects: bool) -> None:
        """``wake``: something has come, or nothing more will. ``collects``: all parts are read as they come."""
        self.agent = agent
        self.wake = wake
        self.collects = collects
        self.ask = 0
        """Its number; 0 until it is asked for."""
        self.parts: deque[bytes] = deque()
        self.head: Head | None = None
        self.owed = 0
        """Bytes that were read and not given back."""
        self.reply: tuple[Reply, bytes] | None = None
        self.failure: Exception | None = None
        """Why it was never asked for."""

    @property
    def over(self) -> bool:
        """Nothing more comes."""
        return self.reply is not None or self.failure is not None

    def result(self) -> Any:
        """What it gave (``CallFailed``)."""
        reply, body = self.outcome()
        if reply.content_type:
            return _decoded(reply.content_type, body)
        if self.is_error:
            raise self.error()
        if self.head is not None:
            return b"".join(self.parts)
        return [item for part in self.parts for item in items_of(part)]

    def outcome(self) -> tuple[Reply, bytes]:
        """How it has ended (``CallFailed`` if not well)."""
        if self.failure is not None:
            raise self.failure
        assert self.reply is not None
        reply, body = self.reply
        if reply.problem:
            raise _failed(msgspec.json.decode(body), reply.status)
        if reply.status >= HTTPStatus.BAD_REQUEST:
            raise _refused(self.agent, reply.status, reply.content_type, body)
        return reply, body

    @property
    def is_error(self) -> bool:
        """It streams the bytes of a ``Response`` with the status of an error."""
        return self.head is not None and self.head.status >= HTTPStatus.BAD_REQUEST

    def error(self) -> CallFailed:
        """Of what has come of them."""
        assert self.head is not None
        return _refused(self.agent, self.head.status, self.head.content_type, b"".join(self.parts))


def items_of(part: bytes) -> Iterator[Any]:
    """The items of a part, of which each has a line."""
    return (msgspec.json.decode(line) for line in part.split(b"\n") if line)


def _is_json(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or media.endswith("+json")


def _decoded(content_type: str, body: bytes) -> Any:
    if _is_json(content_type):
        return msgspec.json.decode(body)
    if content_type == "text/plain; charset=utf-8":
        return body.decode()
    return body


def _failed(problem: dict[str, Any], status: int) -> CallFailed:
    name = str(problem.get("type", "")).removeprefix(TYPE)
    return CallFailed(name, status, str(problem.get("detail", "")), problem)


def _refused(agent: str, status: int, content_type: str, body: bytes) -> CallFailed:
    """A ``Response`` with the status of an error. It may be a problem of the agent's own making."""
    if _is_json(content_type):
        with contextlib.suppress(msgspec.MsgspecError):
            problem = msgspec.json.decode(body)
            if isinstance(problem, dict) and "type" in problem:
                return _failed(problem, status)
    title = _PHRASES.get(status, "An error")
    detail = body[:500].decode(errors="replace") or f"the agent {agent!r} answered with the status {status}"
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, "agent": agent}
    return CallFailed("about:blank", status, detail, document)


def _own(name: str, status: int, title: str, detail: str) -> CallFailed:
    """A problem that is found here, in the form of the daemon's."""
    document = {"type": TYPE + name, "title": title, "status": status, "detail": detail}
    return CallFailed(name, status, detail, document)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Nested:
    """What all calls of this worker need to ask for other agents."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, worker: tuple[str, int], outbox: Outbox, threads: Threads, max_body: int
    ) -> None:
        """``worker``: name and generation. ``max_body``: bytes that a body may have."""
        self.loop = loop
        self.worker = worker
        self.outbox = outbox
        self.threads = threads
        self.max_body = max_body


class Children:
    """Of one call."""

    def __init__(self, nested: Nested, call: int, *, closed: bool) -> None:
        """``closed``: nobody waits for the call any more."""
        self._nested = nested
        self._call = call
        self._open: dict[int, Child] = {}
        self._count = 0
        self._since = 0.0
        self._seconds = 0.0
        self._closed = closed

    # Within the call

    async def call(self, context: Context, agent: str, body: object, timeout: float | None) -> Any:
        """Ask for an agent and wait for its result (``CallFailed``)."""
        child, woken = self._asked(context, agent, body, timeout, collects=True)
        try:
            while not child.over:
                await self._news(woken)
        finally:
            self._leave(child)
        return child.result()

    async def stream(self, context: Context, agent: str, body: object, timeout: float | None) -> AsyncIterator[Any]:
        """Ask for an agent and give its items as they come, or its one result (``CallFailed``)."""
        child, woken = self._asked(context, agent, body, timeout, collects=False)
        try:
            while child.parts or not child.over:
                if not child.parts:
                    await self._news(woken)
                    continue
                if child.is_error:
                    raise child.error()
                part = child.parts.popleft()
                for item in items_of(part) if child.head is None else (part,):
                    yield item
                self._taken(child, len(part))
            if child.outcome()[0].content_type:
                yield child.result()
        finally:
            self._leave(child)

    def call_sync(self, context: Context, agent: str, body: object, timeout: float | None) -> Any:
        """Ask for an agent from a thread, and block until it has ended (``CallFailed``)."""
        loop, threads = self._nested.loop, self._nested.threads
        if _running_loop() is loop:
            raise RuntimeError("call_sync would block the event loop of the worker: await Context.call there")
        ask = self._prepared(context, agent, body, timeout)
        woken = threading.Event()
        child = Child(agent, woken.set, collects=True)
        thread_call = running()
        waiting = contextlib.nullcontext() if thread_call is None else thread_call.waiting(woken.set)
        with waiting, threads.lending():
            loop.call_soon_threadsafe(self._ask_for_thread, child, *ask)
            woken.wait()
            if not child.over:
                loop.call_soon_threadsafe(self._leave, child)
        # An interruption that has ended the waiting was raised at the end of the block.
        if not child.over:
            raise RuntimeError("the call has ended meanwhile")
        return child.result()

    def _asked(
        self, context: Context, agent: str, body: object, timeout: float | None, *, collects: bool
    ) -> tuple[Child, asyncio.Event]:
        if _running_loop() is not self._nested.loop:
            raise RuntimeError("this is not the event loop of the worker: use Context.call_sync")
        woken = asyncio.Event()
        child = Child(agent, woken.set, collects=collects)
        self._ask(child, *self._prepared(context, agent, body, timeout))
        return child, woken

    async def _news(self, woken: asyncio.Event) -> None:
        """Wait until something has come."""
        if self._closed:
            raise asyncio.CancelledError
        woken.clear()
        await woken.wait()

    def _prepared(self, context: Context, agent: str, body: object, timeout: float | None) -> tuple[Ask, bytes]:
        """The message but for its number, and the body (``CallFailed``)."""
        encoded = bytes(body) if isinstance(body, bytes | bytearray | memoryview) else encode_json(body)
        if len(encoded) > self._nested.max_body:
            detail = f"the body has {len(encoded)} bytes, more than the {self._nested.max_body} of http.max_body"
            raise _own("body-too-large", 413, "The body is too large", detail)
        name, generation = self._nested.worker
        ask = Ask(
            worker=name,
            generation=generation,
            call=self._call,
            ask=0,
            agent=agent,
            deadline=context.deadline if timeout is None else min(context.deadline, time.monotonic() + timeout),
            traceparent=context.traceparent,
            tracestate=context.tracestate,
        )
        return ask, encoded

    # On the loop

    def _ask_for_thread(self, child: Child, ask: Ask, body: bytes) -> None:
        try:
            self._ask(child, ask, body)
        except Exception as error:
            child.failure = error
            child.wake()

    def _ask(self, child: Child, ask: Ask, body: bytes) -> None:
        if self._closed:
            raise RuntimeError("nobody waits for this call any more, so it can ask for nothing")
        if len(self._open) >= MOST:
            detail = f"a call may wait for {MOST} others at once, and this is one more"
            raise _own("call-limit", 500, "Too many calls between agents", detail)
        if not self._open:
            self._since = time.monotonic()
        self._count += 1
        child.ask = self._count
        self._open[child.ask] = child
        self._nested.outbox.send(encode(msgspec.structs.replace(ask, ask=child.ask)), body)

    def _leave(self, child: Child) -> None:
        """The caller waits no more for a child that may not have ended."""
        if self._forget(child.ask) is not None:
            self._nested.outbox.send(encode(Abandon(*self._nested.worker, self._call, child.ask)))

    def _forget(self, ask: int) -> Child | None:
        child = self._open.pop(ask, None)
        if child is not None and not self._open:
            self._seconds += time.monotonic() - self._since
        return child

    def _taken(self, child: Child, size: int) -> None:
        child.owed += size
        if child.owed >= PORTION and child.ask in self._open:
            self._nested.outbox.send(encode(Taken(*self._nested.worker, self._call, child.ask, child.owed)))
            child.owed = 0

    def part(self, message: Part, body: bytes) -> None:
        """Part of what a child streams has come."""
        child = self._open.get(message.ask)
        if child is None:
            return
        child.head = child.head or message.head
        child.parts.append(body)
        if child.collects:
            self._taken(child, len(body))
        else:
            child.wake()

    def reply(self, message: Reply, body: bytes) -> None:
        """A child has ended."""
        child = self._forget(message.ask)
        if child is not None:
            child.reply = (message, body)
            child.wake()

    def close(self) -> None:
        """Nobody waits for the call any more, or it has ended: so nobody waits for its children."""
        self._closed = True
        for ask in list(self._open):
            child = self._forget(ask)
            assert child is not None
            child.wake()

    @property
    def seconds(self) -> float:
        """For which it has waited for children so far."""
        return self._seconds + (time.monotonic() - self._since if self._open else 0.0)
