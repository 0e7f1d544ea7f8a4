"""Streamed results: what an agent's generator yields, framed and poured into the call's ``Outflow``.

A generator function is a streaming agent, async or plain; ``stream=True`` says so of a function that returns an
iterator or an async iterator. Each item is JSON by itself: a line (NDJSON), or an event (SSE). A ``Response`` with an
iterator of bytes for its body, which any agent may return, is sent as it is.

Whatever ends the pouring, the generator is closed here: ``GeneratorExit`` is raised in it where it stands, and its
``finally`` runs. An async one runs on the loop and is cancelled where it awaits; a plain one runs on its call's thread,
and is interrupted as every thread is.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from penstock.ipc.frames import encode
from penstock.ipc.messages import Head, Items
from penstock.ipc.sockets import Outbox

from .context import Interrupted
from .outflow import Closed, Outflow
from .response import Response, encode_json, encode_result, head_of, to_json
from .running import Result, Running
from .threads import ThreadCall

Frame = Callable[[Any], bytes]
"""An item to the bytes that the client gets of it. What cannot be an item is a ``TypeError`` or a ``ValueError``."""

Stream = AsyncIterable[Any] | Iterable[Any]

STREAMED: Final[Result] = (200, "", None, b"")
"""The result of a call whose items are on their way."""

_ONE_LINE: Final = -1
"""Of ``msgspec.json.format``: no line breaks."""


def is_stream(value: object) -> bool:
    """Whether this can be streamed: an iterator or an async iterator."""
    return isinstance(value, AsyncIterator | Iterator)


def stream_of(result: object, agent: str) -> Stream:
    """What a streaming agent has returned (``TypeError``)."""
    if isinstance(result, AsyncIterable) or (
        isinstance(result, Iterable) and not isinstance(result, str | bytes | bytearray | memoryview | Mapping)
    ):
        return result
    raise TypeError(
        f"the agent {agent!r} streams, and has returned {type(result).__qualname__}; "
        f"return an iterator or an async iterator, or leave stream=True out"
    )


def items_framed(events: bool, limit: int) -> Frame:
    """How items become bytes: as server-sent events, or as lines. ``limit``: bytes that one may have."""
    # What is tested here finds nothing in nearly every item, and calls would be a third of what one costs.

    def line(item: Any) -> bytes:
        encoded = to_json(item)
        if b"null" in encoded or b"\n" in encoded or len(encoded) > limit:
            encoded = _checked(item, limit)
        return encoded + b"\n"

    def event(item: Any) -> bytes:
        encoded = to_json(item)
        if b"null" in encoded or b"\n" in encoded or b"\r" in encoded or len(encoded) > limit:
            encoded = _checked(item, limit)
        return b"data: %b\n\n" % encoded

    return event if events else line


def _checked(item: Any, limit: int) -> bytes:
    """An item that may be none, as JSON on one line."""
    encoded = encode_json(item)
    if b"\n" in encoded or b"\r" in encoded:
        # JSON that was there before (msgspec.Raw) may have line breaks, which here end an item.
        encoded = msgspec.json.format(encoded, indent=_ONE_LINE)
    if len(encoded) > limit:
        raise ValueError(f"an item of the stream has {len(encoded)} bytes, more than the {limit} of http.max_body")
    return encoded


def bytes_framed(limit: int) -> Frame:
    """How the pieces of a ``Response`` become bytes."""

    def piece(item: Any) -> bytes:
        if not isinstance(item, bytes | bytearray | memoryview):
            raise TypeError(f"a Response that streams yields bytes, not {type(item).__qualname__}")
        if len(item) > limit:
            raise ValueError(f"a piece of the stream has {len(item)} bytes, more than the {limit} of http.max_body")
        return bytes(item)

    return piece


def streams_bytes(result: object) -> bool:
    """Whether this is a ``Response`` whose body is streamed."""
    return isinstance(result, Response) and is_stream(result.body)


class Streams:
    """What runners do with results: those that stream are poured out, all others are encoded."""

    def __init__(self, loop: asyncio.AbstractEventLoop, worker: tuple[str, int], outbox: Outbox, max_item: int) -> None:
        """``worker``: name and generation. ``max_item``: bytes that an item may have."""
        self._loop = loop
        self._worker = worker
        self._outbox = outbox
        self._max_item = max_item

    @staticmethod
    def may_take(run: Running, result: Any) -> bool:
        """Whether this may be a stream: for nearly all results that is all that is asked of them here."""
        return run.agent.binding.stream or isinstance(result, Response)

    async def poured(self, run: Running, result: Any) -> Any:
        """Let a stream out, on the loop; anything else as it is."""
        opened = None if run.outflow is not None else self._open(run, result)
        if opened is None:
            return result
        await pour(*opened)
        if opened[1].is_untouched and isinstance(result, Response):
            # Of a response without any bytes the status and the headers are to come all the same.
            opened[1].put(b"")
        return None

    def poured_in_thread(self, run: Running, result: Any, thread_call: ThreadCall) -> Any:
        """Let a stream out, on its thread and in the window of its call; anything else as it is.

        What is to be awaited is: a coroutine that pours it on the loop.
        """
        if inspect.isawaitable(result):
            return result
        found = self._stream_of(run, result)
        if found is None:
            return result
        stream, response, frame = found
        if isinstance(stream, AsyncIterable):
            return self.poured(run, result)
        outflow = self._outflow(run, response)
        pour_in_thread(stream, outflow, frame, thread_call)
        if outflow.is_untouched and response is not None:
            outflow.put_in_thread(b"")
        return None

    def encoded(self, run: Running, result: Any) -> Result:
        """What the call ends with. Of one that has streamed all that is left is its end; a batch has its results."""
        if run.batch is not None:
            run.batch.take(result, run.agent.name)
            return STREAMED
        return STREAMED if run.outflow is not None else encode_result(result)

    def _open(self, run: Running, result: Any) -> tuple[Stream, Outflow, Frame] | None:
        found = self._stream_of(run, result)
        return None if found is None else (found[0], self._outflow(run, found[1]), found[2])

    def _stream_of(self, run: Running, result: Any) -> tuple[Stream, Response | None, Frame] | None:
        """What is to be streamed, with the response that it belongs to; None if nothing is (``TypeError``)."""
        if streams_bytes(result):
            return result.body, result, bytes_framed(self._max_item)
        if run.agent.stream and not isinstance(result, Response):
            return stream_of(result, run.agent.name), None, items_framed(run.spec.events, self._max_item)
        return None

    def _outflow(self, run: Running, response: Response | None) -> Outflow:
        """The ``Outflow`` of a stream. ``response``: its head."""
        name, generation = self._worker
        heads: list[Head] = [] if response is None else [head_of(response)]

        def send(body: bytes, count: int) -> None:
            head = heads.pop() if heads else None
            items = Items(
                worker=name,
                generation=generation,
                call=run.spec.call,
                count=count if response is None else 0,
                head=head,
            )
            self._outbox.send(encode(items), body)
            # Not at the end of the turn: that may take long, and the first item is to be there before.
            self._outbox.flush()

        run.outflow = Outflow(self._loop, send)
        if run.cancelled:
            run.outflow.close()
        return run.outflow


async def pour(stream: Stream, outflow: Outflow, frame: Frame) -> None:
    """Put all items out, on the loop. What the generator raises is raised, once it is closed; ``Closed``."""
    put, room = outflow.put, outflow.room
    if isinstance(stream, AsyncIterable):
        iterator = stream.__aiter__()
        try:
            async for item in iterator:
                if put(frame(item)):
                    await room()
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
        return
    try:
        for item in stream:
            if put(frame(item)):
                await room()
    finally:
        _close(stream)


def pour_in_thread(stream: Iterable[Any], outflow: Outflow, frame: Frame, thread_call: ThreadCall) -> None:
    """Put all items out, on the call's thread and in its window (``Interrupted`` if nobody takes them any more)."""
    put = outflow.put_in_thread
    try:
        for item in stream:
            if put(frame(item)):
                try:
                    with thread_call.shield():
                        outflow.wait()
                except Closed:
                    raise Interrupted from None
    finally:
        _close(stream)


def _close(stream: Iterable[Any]) -> None:
    close = getattr(stream, "close", None)
    if close is not None:
        close()
