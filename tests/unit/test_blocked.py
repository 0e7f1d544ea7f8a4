"""What keeps a worker from getting calls, as engine and fleet set it beside each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from penstock.daemon.core.backlog import Watermarks
from penstock.daemon.core.model import Block, Worker
from penstock.daemon.engine.engine import STALLED_RETRY, Engine
from penstock.daemon.engine.tickets import Ticket
from penstock.ipc.messages import AgentInfo, Answer, Batch, Call, Outcome, Part, Reply
from tests.fix_sinks import Awaited


class Link:
    """A channel that takes everything, unless it is told that its peer is gone."""

    def __init__(self, refused: Callable[[list[int]], None]) -> None:
        self.refused = refused
        self.sent: list[int] = []
        self.gone = False

    def send(self, call: Call, body: bytes) -> None:
        self.sent.append(call.call)
        if self.gone:
            self.refused([call.call])

    def send_batch(self, batch: Batch, bodies: bytes) -> None:
        raise AssertionError("nothing here goes in batches")

    def cancel(self, call_id: int, reason: str) -> None:
        pass

    def allow(self, call_id: int, credit: int) -> None:
        raise AssertionError("nothing here streams")

    def reply(self, message: Part | Reply, body: bytes) -> None:
        raise AssertionError("no call here asks for another")


class Ears:
    """Hears what the engine tells of a worker."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def drained(self) -> None:
        self.heard.append("drained")

    def eased(self) -> None:
        self.heard.append("eased")

    def stalled(self, ticket: Ticket) -> None:
        self.heard.append("stalled")

    def overdue(self, ticket: Ticket) -> None:
        self.heard.append("overdue")


class Stand:
    """An engine with two workers."""

    def __init__(self) -> None:
        self.engine = Engine(asyncio.get_running_loop())
        self.engine.configure({"p": "least-loaded"}, Watermarks(), 30.0, 1.0)
        self.workers = [Worker(f"p:{at}", 1, "p", 4, 4, frozenset({"a"})) for at in range(2)]
        self.links = [Link(partial(self.engine.refused_by, worker)) for worker in self.workers]
        self.ears = [Ears(), Ears()]
        info = AgentInfo("a", "m", "", "async", "p", False, None, 3, 0, False, False, "", False, {}, {})
        for worker, link, ears in zip(self.workers, self.links, self.ears, strict=True):
            self.engine.join(worker, link, [info], ears)

    def submit(self) -> Ticket:
        now = time.monotonic()
        ticket = Ticket(
            self.engine.catalogue["a"].agent,
            now,
            now + 60.0,
            request_id="r",
            body=b"",
            headers=None,
            priority=3,
            client="c",
            affinity="",
            sink=Awaited(),
        )
        self.engine.submit(ticket)
        return ticket

    async def retried(self) -> None:
        """Done when a worker that stalls by now has been tried again: timers of the loop come in their order."""
        loop = asyncio.get_running_loop()
        later: asyncio.Future[None] = loop.create_future()
        loop.call_later(2 * STALLED_RETRY, later.set_result, None)
        await later


def play(scenario: Callable[[Stand], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await scenario(Stand())

    asyncio.run(main())


def test_a_worker_that_stalls_is_tried_again() -> None:
    async def scenario(stand: Stand) -> None:
        first, second = stand.workers
        second.block(Block.DRAINING)
        stand.links[0].gone = True
        ticket = stand.submit()
        assert (first.blocks, len(first.calls), ticket.worker) == (Block.STALLED, 0, None)
        stand.links[0].gone = False
        await stand.retried()
        assert (first.serving, ticket.worker) == (True, first)

    play(scenario)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("reason", [Block.WITHDRAWN, Block.DRAINING, Block.DEAD])
def test_the_end_of_a_stall_ends_no_other_reason(reason: Block, before: bool) -> None:
    async def scenario(stand: Stand) -> None:
        first, second = stand.workers
        ways: dict[Block, Callable[[], object]] = {
            Block.WITHDRAWN: lambda: first.block(Block.WITHDRAWN),
            Block.DRAINING: lambda: stand.engine.drain(first),
            Block.DEAD: lambda: stand.engine.leave(first, (), True),
        }
        if before:
            ways[reason]()
        stand.links[0].refused([])
        if not before:
            ways[reason]()
        await stand.retried()
        assert (first.serving, first.blocks) == (False, reason)
        assert [stand.submit().worker for _ in range(4)] == [second] * 4
        assert not stand.links[0].sent

    play(scenario)


def test_the_last_worker_of_a_pool_that_closes_does_what_waits_also_after_a_stall() -> None:
    async def scenario(stand: Stand) -> None:
        first, second = stand.workers
        second.block(Block.WITHDRAWN)
        tickets = [stand.submit() for _ in range(first.slots + 1)]
        waiting = tickets[-1]
        assert waiting.worker is None
        stand.engine.close_pool("p")
        stand.links[0].refused([])
        assert not stand.engine.drain(first)
        await stand.retried()
        now = time.monotonic()
        times = (0.001, 0.001, 0.0, now, now)
        answer = Answer("p:0", 1, tickets[0].call_id, Outcome.RESULT, 200, "", None, "", "", *times)
        stand.engine.answered(first, answer, b"")
        assert waiting.worker is first

    play(scenario)


def test_a_worker_that_drains_is_drained_when_a_stall_takes_its_last_call_away() -> None:
    async def scenario(stand: Stand) -> None:
        first, second = stand.workers
        second.block(Block.WITHDRAWN)
        ticket = stand.submit()
        assert ticket.worker is first
        assert not stand.engine.drain(first)
        second.unblock(Block.WITHDRAWN)
        stand.links[0].refused([ticket.call_id])
        assert ticket.worker is second, "another has it"
        await stand.retried()
        assert stand.ears[0].heard == ["drained"]

    play(scenario)
