"""``Outflow``: coalesced without delaying anybody, bounded by credit, closed at any moment."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from penstock.ipc.messages import WINDOW
from penstock.workers.context import Interrupted
from penstock.workers.outflow import FULL, Closed, Outflow
from penstock.workers.response import Response
from penstock.workers.streams import bytes_framed, items_framed, pour, pour_in_thread, stream_of, streams_bytes
from penstock.workers.threads import ThreadCall

LIMIT = 1 << 20


def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run this test on a loop, within ten seconds."""

    @functools.wraps(test)
    def run() -> None:
        async def timed() -> None:
            async with asyncio.timeout(10):
                await test()

        asyncio.run(timed())

    return run


class Sent:
    """What an outflow has sent."""

    def __init__(self, credit: int = WINDOW) -> None:
        self.parts: list[tuple[bytes, int]] = []
        self.outflow = Outflow(asyncio.get_running_loop(), lambda body, count: self.parts.append((body, count)), credit)

    @property
    def body(self) -> bytes:
        return b"".join(body for body, _ in self.parts)

    @property
    def count(self) -> int:
        return sum(count for _, count in self.parts)


@on_loop
async def test_the_first_item_of_a_turn_goes_at_once_and_the_others_together_at_its_end() -> None:
    sent = Sent()
    for number in range(5):
        sent.outflow.put(b"%d" % number)
    assert sent.parts[0] == (b"0", 1)
    await asyncio.sleep(0)
    assert sent.body == b"01234"
    assert len(sent.parts) < 5


@on_loop
async def test_many_items_travel_together() -> None:
    sent = Sent(credit=1 << 30)

    async def items() -> object:
        for number in range(20_000):
            yield number

    await pour(items(), sent.outflow, items_framed(False, LIMIT))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert sent.count == 20_000
    assert sent.body.splitlines() == [b"%d" % number for number in range(20_000)]
    assert len(sent.parts) < 2_000


@on_loop
async def test_without_credit_the_generator_waits_and_little_is_kept() -> None:
    sent = Sent(credit=1000)
    made = 0

    async def items() -> object:
        nonlocal made
        while True:
            made += 1
            yield "x" * 97

    pouring = asyncio.ensure_future(pour(items(), sent.outflow, items_framed(False, LIMIT)))  # type: ignore[arg-type]
    while not pouring.done() and sent.outflow._waiter is None:
        await asyncio.sleep(0)
    assert len(sent.body) <= 1000 + 100
    assert made * 100 <= 1000 + FULL + 200
    sent.outflow.more(500)
    assert len(sent.body) <= 1500 + 100
    sent.outflow.close()
    with pytest.raises(Closed):
        await pouring
    assert sent.outflow.stalled > 0.0


@on_loop
async def test_an_item_that_is_larger_than_the_credit_goes_alone() -> None:
    sent = Sent(credit=10)
    sent.outflow.put(b"x" * 100_000)
    assert sent.parts == [(b"x" * 100_000, 1)]
    sent.outflow.put(b"y")
    await asyncio.sleep(0)
    assert sent.count == 1
    drained: list[bool] = []
    sent.outflow.when_drained(lambda: drained.append(True))
    assert not drained
    sent.outflow.more(100_000)
    assert sent.count == 2
    assert drained


def in_thread(sent: Sent, items: Iterator[object]) -> tuple[ThreadCall, threading.Thread, list[BaseException | None]]:
    ends: list[BaseException | None] = []

    def work(job: ThreadCall) -> None:
        job.enter()
        try:
            pour_in_thread(items, sent.outflow, items_framed(False, LIMIT), job)
        finally:
            job.leave()

    job = ThreadCall(work, lambda result, failure: ends.append(failure), "items")
    thread = threading.Thread(target=job.run)
    thread.start()
    return job, thread, ends


@on_loop
async def test_a_thread_pours_as_fast_as_its_credit_and_loses_nothing() -> None:
    sent = Sent(credit=5_000)
    _, thread, ends = in_thread(sent, iter(range(50_000)))
    while thread.is_alive():
        await asyncio.sleep(0.001)
        sent.outflow.more(5_000)
    await asyncio.sleep(0)
    sent.outflow.more(1 << 30)
    assert ends == [None]
    assert sent.body.splitlines() == [b"%d" % number for number in range(50_000)]


@on_loop
async def test_a_thread_that_waits_for_credit_can_be_interrupted_and_closes_its_generator() -> None:
    sent = Sent(credit=100)
    closed = threading.Event()
    waits = threading.Event()

    def items() -> Iterator[str]:
        try:
            for _ in range(FULL):
                yield "x"
                if sent.outflow._put > FULL:
                    waits.set()
        finally:
            closed.set()

    job, thread, ends = in_thread(sent, items())
    while not (sent.outflow._room is not None):
        await asyncio.sleep(0.001)
    job.interrupt()
    sent.outflow.close()
    await asyncio.to_thread(thread.join)
    assert closed.is_set()
    assert isinstance(ends[0], Interrupted)


@pytest.mark.parametrize(("events", "framed"), [(False, b'{"a":"b\\nc"}\n'), (True, b'data: {"a":"b\\nc"}\n\n')])
def test_an_item_is_one_line_or_one_event(events: bool, framed: bytes) -> None:
    assert items_framed(events, LIMIT)({"a": "b\nc"}) == framed


def test_json_that_was_there_before_has_no_line_breaks_either() -> None:
    msgspec = pytest.importorskip("msgspec")
    assert items_framed(False, LIMIT)(msgspec.Raw(b'{"a":\r\n 1}')) == b'{"a":1}\n'


def test_what_can_be_no_item_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"http\.max_body"):
        items_framed(False, 10)("x" * 10)
    with pytest.raises(TypeError):
        items_framed(False, LIMIT)(object())
    with pytest.raises(ValueError):
        items_framed(False, LIMIT)(float("nan"))
    with pytest.raises(TypeError, match="yields bytes"):
        bytes_framed(LIMIT)("text")
    for wrong in ({"a": 1}, "text", b"bytes", 7, None):
        with pytest.raises(TypeError, match="stream"):
            stream_of(wrong, "a")


def test_a_response_with_an_iterator_is_streamed() -> None:
    assert streams_bytes(Response(iter([b"a"])))
    assert not streams_bytes(Response([b"a"]))
    assert not streams_bytes(iter([b"a"]))
