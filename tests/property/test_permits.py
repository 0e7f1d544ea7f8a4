"""Permits: never more held than granted, first come first served, and nobody waits beside a free one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from penstock.workers.database.permits import AsyncPermits, ThreadPermits, Turn
from tests.fix_daemon import eventually

steps = st.lists(
    st.tuples(st.sampled_from(["acquire", "release", "cancel", "time out", "resize"]), st.integers(0, 5)), max_size=40
)


class Model:
    def __init__(self) -> None:
        self.permits = AsyncPermits()
        self.holding: deque[asyncio.Task[bool]] = deque()
        self.waiting: list[asyncio.Task[bool]] = []
        self.timeouts: dict[asyncio.Task[bool], asyncio.Event] = {}

    async def step(self, step: str, number: int) -> None:
        if step == "acquire":
            self.waiting.append(asyncio.create_task(self.permits.acquire(3600.0)))
        elif step == "time out":
            # Of those that wait the last, while there is none free: its time is over at once.
            if self.permits.held >= self.permits.limit:
                assert await self.permits.acquire(0.0) is False
        elif step == "release" and self.holding:
            self.holding.popleft()
            self.permits.release()
        elif step == "cancel" and self.waiting:
            self.waiting.pop(number % len(self.waiting)).cancel()
        elif step == "resize":
            self.permits.resize(number)

    async def settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)
        done = [each for each in self.waiting if each.done()]
        # In the order in which they asked.
        assert done == self.waiting[: len(done)]
        assert all(each.result() for each in done)
        self.holding.extend(done)
        del self.waiting[: len(done)]

    def check(self) -> None:
        assert self.permits.held == len(self.holding)
        assert len(self.permits._waiting) == len(self.waiting)
        assert not self.waiting or self.permits.held >= self.permits.limit


@given(steps)
def test_permits_are_kept_and_handed_on(chosen: list[tuple[str, int]]) -> None:
    async def main() -> None:
        model = Model()
        model.permits.resize(2)
        for step, number in chosen:
            held = len(model.holding)
            await model.step(step, number)
            await model.settle()
            model.check()
            assert len(model.holding) <= max(held, model.permits.limit)
        for task in model.waiting:
            task.cancel()

    asyncio.run(main())


def test_one_that_is_cancelled_with_a_permit_under_way_gives_it_back() -> None:
    async def main() -> None:
        permits = AsyncPermits()
        permits.resize(1)
        assert await permits.acquire(1.0)
        waiting = [asyncio.create_task(permits.acquire(60.0)) for _ in range(2)]
        await asyncio.sleep(0)
        permits.release()
        waiting[0].cancel()
        await asyncio.wait(waiting)
        assert waiting[0].cancelled()
        assert waiting[1].result() is True
        assert permits.held == 1

    asyncio.run(main())


def test_threads_never_hold_more_than_are_granted() -> None:
    permits = ThreadPermits()
    lock = threading.Lock()
    held, most, refused = 0, 0, 0

    def work() -> None:
        nonlocal held, most, refused
        for _ in range(100):
            if not permits.acquire(0.002):
                refused += 1
                continue
            with lock:
                held += 1
                most = max(most, held)
            time.sleep(0)
            with lock:
                held -= 1
            permits.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: refused > 0, "one was refused while none was granted")
    permits.resize(3)
    for thread in threads:
        thread.join(20)
    assert 1 <= most <= 3
    assert permits.held == 0


def test_threads_get_permits_in_the_order_they_asked() -> None:
    permits = ThreadPermits()
    got: list[int] = []

    def work(number: int) -> None:
        assert permits.acquire(60.0)
        got.append(number)
        permits.release()

    threads = []
    for number in range(12):
        threads.append(threading.Thread(target=work, args=(number,)))
        threads[-1].start()
        eventually(lambda: permits.waiting == number + 1, "it waits")  # noqa: B023 - called here
    permits.resize(1)
    for thread in threads:
        thread.join(20)
    assert got == list(range(12))


def test_a_thread_whose_call_is_cancelled_leaves_the_line() -> None:
    permits, turn = ThreadPermits(), Turn()
    said: list[bool] = []
    threads = [
        threading.Thread(target=lambda mine=mine: said.append(permits.acquire(60.0, mine))) for mine in (turn, None)
    ]
    for number, thread in enumerate(threads):
        thread.start()
        eventually(lambda: permits.waiting == number + 1, "it waits")  # noqa: B023 - called here
    turn.settle(granted=False)
    threads[0].join(20)
    assert said == [False]
    permits.resize(1)
    threads[1].join(20)
    assert said == [False, True]
    assert (permits.held, permits.waiting) == (1, 0)
