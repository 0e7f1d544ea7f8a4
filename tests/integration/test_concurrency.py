"""The utilities for authors: limits kept, deadlines inherited, no place lost, nothing left running."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.workers.concurrency import Bulkhead, backoff, deadline, gather, in_thread, remaining, retry
from penstock.workers.context import Context, Interrupted, current
from penstock.workers.threads import ThreadCall


@pytest.fixture
def request_of() -> Iterator[Any]:
    """Makes the test's code that of a request with so many seconds left."""
    tokens = []

    def set_deadline(seconds: float) -> Context:
        context = Context("test", "id", "client", {}, time.monotonic() + seconds)
        tokens.append(current.set(context))
        return context

    yield set_deadline
    for token in reversed(tokens):
        current.reset(token)


# Deadlines


def test_outside_of_a_request_there_is_no_deadline() -> None:
    assert remaining() == math.inf


def test_the_nearest_deadline_counts(request_of: Any) -> None:
    request_of(100.0)

    async def main() -> None:
        assert 99 < remaining() <= 100
        async with deadline(50.0):
            assert 49 < remaining() <= 50
            async with deadline(200.0):
                assert 49 < remaining() <= 50
            async with deadline(20.0):
                assert 19 < remaining() <= 20
            assert 49 < remaining() <= 50
        assert 99 < remaining() <= 100

    asyncio.run(main())


def test_a_scope_ends_in_time_and_only_its_own() -> None:
    async def main() -> None:
        async with deadline(30.0):
            with pytest.raises(TimeoutError):
                async with deadline(0.01):
                    await asyncio.sleep(30)
            await asyncio.sleep(0)

    begun = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("left", [0.01, -5.0])
def test_a_scope_is_no_longer_than_the_request(request_of: Any, left: float) -> None:
    request_of(left)

    async def main() -> None:
        async with deadline(30.0):
            await asyncio.sleep(30)

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_a_scope_goes_along_into_tasks_and_threads(request_of: Any) -> None:
    request_of(100.0)

    async def main() -> list[float]:
        async with deadline(50.0):
            return [await asyncio.create_task(rest()), await in_thread(remaining)]

    async def rest() -> float:
        return remaining()

    assert all(49 < seconds <= 50 for seconds in asyncio.run(main()))


# gather


def test_gather_keeps_order_and_limit() -> None:
    running, most = 0, 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (number % 3))
        running -= 1
        return number

    assert asyncio.run(gather(3, [work(number) for number in range(20)])) == list(range(20))
    assert most == 3
    assert asyncio.run(gather(3, [])) == []
    with pytest.raises(ValueError, match="limit must be 1 or more, not 0"):
        asyncio.run(gather(0, []))


def test_the_first_error_ends_the_rest() -> None:
    begun, ended = [], []

    async def work(number: int) -> None:
        begun.append(number)
        try:
            if number == 1:
                raise KeyError("first")
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    async def main() -> None:
        with pytest.raises(KeyError, match="first"):
            await gather(3, [work(number) for number in range(9)])
        assert sorted(begun) == sorted(ended) == [0, 1, 2]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_so_does_a_cancellation_and_tasks_among_them_end_too() -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(asyncio.sleep(30)) for _ in range(4)]
        whole = asyncio.create_task(gather(2, tasks))
        await asyncio.sleep(0.001)
        whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await whole
        await asyncio.sleep(0)
        assert all(task.cancelled() for task in tasks)

    asyncio.run(main())


# in_thread


def test_a_blocking_function_does_not_hold_up_the_loop() -> None:
    async def main() -> None:
        go = threading.Event()
        waiting = asyncio.create_task(in_thread(go.wait, timeout=30))
        await asyncio.sleep(0.001)
        go.set()
        assert await waiting is True

    asyncio.run(main())


@pytest.mark.parametrize("raised", [KeyError("own"), StopIteration(3), SystemExit(3), Interrupted()])
def test_what_it_raises_arrives(raised: BaseException) -> None:
    def work() -> None:
        raise raised

    async def main() -> None:
        with pytest.raises((KeyError, RuntimeError, TypeError)) as caught:
            await in_thread(work)
        assert repr(raised).split("(")[0] in repr(caught.value) + repr(caught.value.__cause__)

    asyncio.run(main())


def test_a_cancelled_wait_ends_the_thread_s_work() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        try:
            while True:
                pass
        except Interrupted:
            ended.set()
            raise

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with deadline(0.05):
                await in_thread(work)

    asyncio.run(main())
    assert begun.is_set()
    assert ended.wait(10)


# Bulkhead


def test_never_more_inside_than_the_limit_whoever_gives_up() -> None:
    """Tasks and threads at once; many are cancelled or run out of time while they wait."""
    bulkhead = Bulkhead("db", 3, wait=0.02)
    rng = random.Random(2)
    inside, most, done = 0, 0, 0
    lock = threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)

    def leave() -> None:
        nonlocal inside, done
        with lock:
            inside -= 1
            done += 1

    async def work(seconds: float) -> None:
        try:
            async with bulkhead:
                enter()
                try:
                    await asyncio.sleep(seconds)
                finally:
                    leave()
        except TimeoutError:
            pass

    def threaded(seconds: list[float]) -> None:
        for each in seconds:
            try:
                with bulkhead:
                    enter()
                    try:
                        time.sleep(each)
                    finally:
                        leave()
            except TimeoutError:
                pass

    async def main() -> None:
        threads = [
            threading.Thread(target=threaded, args=([rng.uniform(0, 0.01) for _ in range(20)],)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        tasks = [asyncio.create_task(work(rng.uniform(0, 0.01))) for _ in range(150)]
        for _ in tasks:
            await asyncio.sleep(rng.uniform(0, 0.002))
            if rng.random() < 0.5:
                rng.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for thread in threads:
            await asyncio.to_thread(thread.join)

    asyncio.run(main())
    assert most == 3
    assert done > 20
    assert (bulkhead.held, bulkhead.waiting) == (0, 0)


def test_places_are_handed_on_in_order() -> None:
    bulkhead = Bulkhead("db", 1)
    order = []

    async def work(number: int) -> None:
        async with bulkhead:
            order.append(number)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(5)))

    asyncio.run(main())
    assert order == list(range(5))


def test_a_wait_ends_at_the_deadline(request_of: Any) -> None:
    request_of(0.02)
    bulkhead = Bulkhead("mail", 1)

    async def main() -> None:
        with pytest.raises(TimeoutError, match="no place in bulkhead 'mail' \\(limit 1\\) in time"):
            async with bulkhead:
                pytest.fail("it is full")

    with bulkhead:
        asyncio.run(main())
        with pytest.raises(TimeoutError, match="'mail'"), bulkhead:
            pytest.fail("it is full")
    assert (bulkhead.held, bulkhead.waiting) == (0, 0)


def test_one_that_is_cancelled_as_it_gets_its_place_gives_it_back() -> None:
    bulkhead = Bulkhead("db", 1)

    async def enter() -> None:
        async with bulkhead:
            await asyncio.sleep(30)

    async def main() -> None:
        async with bulkhead:
            waiting = asyncio.create_task(enter())
            await asyncio.sleep(0)
            assert bulkhead.waiting == 1
        waiting.cancel()  # the place is its own already, and it does not know yet
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (bulkhead.held, bulkhead.waiting) == (0, 0)

    asyncio.run(main())


def test_a_loop_that_is_closed_keeps_no_place() -> None:
    bulkhead = Bulkhead("db", 1)
    loop = asyncio.new_event_loop()

    async def enter() -> None:
        async with bulkhead:
            pass

    with bulkhead:
        task = loop.create_task(enter())
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert bulkhead.waiting == 1
        assert not task.done()
        loop.close()
    assert (bulkhead.held, bulkhead.waiting) == (0, 0)


def test_an_interrupted_thread_keeps_no_place() -> None:
    bulkhead = Bulkhead("db", 1, wait=5.0)
    rng = random.Random(3)
    outcomes = {"interrupted": 0, "done": 0}

    def function(call: ThreadCall) -> None:
        call.enter()
        try:
            for _ in range(100_000):
                with bulkhead:
                    sum(range(10))
        finally:
            call.leave()

    def done(result: Any, failure: BaseException | None) -> None:
        outcomes["interrupted" if isinstance(failure, Interrupted) else "done"] += 1

    for _ in range(300):
        call = ThreadCall(function, done, "test")
        thread = threading.Thread(target=call.run)
        thread.start()
        time.sleep(rng.uniform(0, 0.002))
        call.interrupt()
        thread.join(10)
    assert outcomes["interrupted"] > 100, outcomes
    assert (bulkhead.held, bulkhead.waiting) == (0, 0)


# retry


def test_it_is_tried_again_until_it_works() -> None:
    failures = [KeyError(1), OSError(2)]

    async def function() -> str:
        if failures:
            raise failures.pop()
        return "at last"

    assert asyncio.run(retry(function, on=(KeyError, OSError), first=0.001)) == "at last"


def test_what_is_not_to_be_tried_again_is_raised_at_once() -> None:
    calls = []

    async def function() -> None:
        calls.append(1)
        raise ValueError("other")

    with pytest.raises(ValueError, match="other"):
        asyncio.run(retry(function, on=KeyError))
    assert len(calls) == 1


def test_the_last_failure_is_raised_after_so_many_tries() -> None:
    calls = []

    async def function() -> None:
        calls.append(1)
        raise KeyError(len(calls))

    with pytest.raises(KeyError, match="3"):
        asyncio.run(retry(function, on=KeyError, tries=3, first=0.001))
    assert len(calls) == 3
    with pytest.raises(ValueError, match="tries must be 1 or more, not 0"):
        asyncio.run(retry(function, on=KeyError, tries=0))


def test_or_as_soon_as_the_next_wait_would_outlive_the_deadline(request_of: Any) -> None:
    request_of(0.5)
    calls = []

    async def function() -> None:
        calls.append(1)
        raise KeyError(len(calls))

    begun = time.monotonic()
    with pytest.raises(KeyError):
        asyncio.run(retry(function, on=KeyError, first=100.0, longest=100.0))
    assert len(calls) == 1
    assert time.monotonic() - begun < 0.5


def test_waits_grow_up_to_the_longest() -> None:
    waits = backoff(0.1, 2.0, 1.0)
    for step in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        assert step / 2 <= next(waits) <= step
