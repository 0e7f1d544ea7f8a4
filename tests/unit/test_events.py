"""The event stream's hub: one text for all, none for nobody, and no queue for those who are slow. The clock is a fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, cast

import pytest

from penstock.daemon.front import events
from penstock.daemon.front.events import Events


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The loop's clock and timers, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(at, call))
        return self.timers[-1]

    @property
    def pending(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def advance(self, seconds: float) -> None:
        """Let the time pass and ring what is due, once."""
        self.now += seconds
        for timer in [each for each in self.pending if each.at <= self.now]:
            self.timers.remove(timer)
            timer.call()


class Source:
    """A status with a history of one entry a second and an event every two."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked: list[float] = []

    def __call__(self, since: float) -> dict[str, Any]:
        self.asked.append(since)
        seconds = [float(each) for each in range(90, int(self.clock.now) + 1)]
        return {
            "at": self.clock.now,
            "history": {"at": [each for each in seconds if each > since]},
            "events": [{"at": each, "kind": "restart"} for each in seconds if each % 2 == 0],
        }


class Stand:
    def __init__(self) -> None:
        self.clock = Clock()
        self.source = Source(self.clock)
        self.events = Events(cast(asyncio.AbstractEventLoop, self.clock), self.source)

    async def next(self, reader: AsyncGenerator[bytes, None]) -> dict[str, Any]:
        """The next status of a reader, for which a second passes if it has to."""
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        if not waiting.done():
            self.clock.advance(1.0)
        return decode(await asyncio.wait_for(waiting, 5.0))


def decode(text: bytes) -> dict[str, Any]:
    line = next(each for each in text.splitlines() if each.startswith(b"data: "))
    return dict(json.loads(line.removeprefix(b"data: ")))


def run(test: Callable[[Stand], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await test(Stand())

    asyncio.run(main())


def test_the_first_event_is_whole_and_the_next_have_what_is_new() -> None:
    async def test(stand: Stand) -> None:
        reader = stand.events.read()
        first = await stand.next(reader)
        assert first["history"]["at"] == [float(each) for each in range(90, 101)]
        assert [each["at"] for each in first["events"]] == [90.0, 92.0, 94.0, 96.0, 98.0, 100.0]
        for second in (101.0, 102.0, 103.0):
            status = await stand.next(reader)
            assert status["history"]["at"] == [second]
            assert [each["at"] for each in status["events"]] == ([second] if second % 2 == 0 else [])
        await reader.aclose()

    run(test)


def test_all_readers_get_the_very_same_text() -> None:
    async def test(stand: Stand) -> None:
        readers = [stand.events.read() for _ in range(5)]
        for reader in readers:
            await stand.next(reader)
        assert len(stand.source.asked) == 1, "those who come within one second share the whole"
        waiting = [asyncio.ensure_future(anext(reader)) for reader in readers]
        await asyncio.sleep(0)
        stand.clock.advance(1.0)
        texts = await asyncio.gather(*waiting)
        assert len({id(text) for text in texts}) == 1
        assert len(stand.source.asked) == 2
        for reader in readers:
            await reader.aclose()

    run(test)


def test_nothing_is_made_while_nobody_reads() -> None:
    async def test(stand: Stand) -> None:
        assert not stand.clock.pending
        reader, other = stand.events.read(), stand.events.read()
        await stand.next(reader)
        await stand.next(other)
        assert len(stand.clock.pending) == 1
        await reader.aclose()
        assert len(stand.clock.pending) == 1
        await other.aclose()
        assert not stand.clock.pending
        assert stand.events.readers == 0
        stand.clock.advance(60.0)
        again = stand.events.read()
        assert (await stand.next(again))["history"]["at"][0] == 90.0
        assert (await stand.next(again))["history"]["at"] == [161.0]
        await again.aclose()

    run(test)


def test_who_missed_an_event_gets_the_whole_and_nothing_was_kept_for_it() -> None:
    async def test(stand: Stand) -> None:
        quick, slow = stand.events.read(), stand.events.read()
        await stand.next(quick)
        await stand.next(slow)
        for _ in range(50):
            await stand.next(quick)
        status = await stand.next(slow)
        assert status["at"] == 150.0
        assert status["history"]["at"][0] == 90.0
        assert (await stand.next(slow))["history"]["at"] == [151.0]
        await quick.aclose()
        await slow.aclose()

    run(test)


def test_a_reader_that_is_cancelled_leaves_the_others_alone() -> None:
    async def test(stand: Stand) -> None:
        one, other = stand.events.read(), stand.events.read()
        await stand.next(one)
        await stand.next(other)
        waiting = [asyncio.ensure_future(anext(each)) for each in (one, other)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        assert stand.events.readers == 1
        stand.clock.advance(1.0)
        assert decode(await asyncio.wait_for(waiting[1], 5.0))["at"] == 101.0
        await other.aclose()

    run(test)


def test_a_loop_that_was_held_up_does_not_make_up_for_it() -> None:
    async def test(stand: Stand) -> None:
        reader = stand.events.read()
        await stand.next(reader)
        stand.clock.advance(5.5)
        assert [timer.at for timer in stand.clock.pending] == [106.5]
        stand.clock.advance(1.25)
        assert [timer.at for timer in stand.clock.pending] == [107.5]
        await reader.aclose()

    run(test)


def test_a_comment_comes_now_and_then_and_the_first_text_says_when_to_come_again() -> None:
    async def test(stand: Stand) -> None:
        reader = stand.events.read()
        assert (await anext(reader)).startswith(b"retry: 1000\n\nevent: status\ndata: {")
        commented = []
        for number in range(1, 2 * events.COMMENT_EVERY + 1):
            waiting = asyncio.ensure_future(anext(reader))
            await asyncio.sleep(0)
            stand.clock.advance(1.0)
            if (await waiting).endswith(b"\n\n:\n\n"):
                commented.append(number)
        assert commented == [events.COMMENT_EVERY, 2 * events.COMMENT_EVERY]
        await reader.aclose()

    run(test)


def test_the_end_of_the_daemon_ends_all_streams() -> None:
    async def test(stand: Stand) -> None:
        reader = stand.events.read()
        await stand.next(reader)
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        stand.events.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert not stand.clock.pending
        late = stand.events.read()
        await anext(late)
        with pytest.raises(StopAsyncIteration):
            await anext(late)
        assert not stand.clock.pending

    run(test)
