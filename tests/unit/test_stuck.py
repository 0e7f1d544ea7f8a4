"""What the watchdog asks of the engine: does the dispatcher move?"""

from __future__ import annotations

import asyncio
import time
from unittest.mock import Mock

from penstock.daemon.core.backlog import Watermarks
from penstock.daemon.core.model import Block, Worker
from penstock.daemon.engine.engine import STUCK, Engine
from penstock.daemon.engine.tickets import Ticket
from penstock.ipc.messages import AgentInfo, Batch, Call, Part, Reply
from tests.fix_sinks import Awaited


class Link:
    """A channel that takes everything."""

    def __init__(self) -> None:
        self.calls = 0

    def send(self, call: Call, body: bytes) -> None:
        self.calls += 1

    def send_batch(self, batch: Batch, bodies: bytes) -> None:
        raise AssertionError("nothing here goes in batches")

    def cancel(self, call_id: int, reason: str) -> None:
        pass

    def allow(self, call_id: int, credit: int) -> None:
        raise AssertionError("nothing here streams")

    def reply(self, message: Part | Reply, body: bytes) -> None:
        raise AssertionError("no call here asks for another")


def make(loop: asyncio.AbstractEventLoop, seconds: float = 60.0) -> tuple[Engine, Worker, Link, Ticket]:
    """An engine with a worker that does not serve, and a request that waits for it."""
    engine = Engine(loop)
    engine.configure({"p": "least-loaded"}, Watermarks(), 30.0, 1.0)
    worker, link = Worker("p:0", 1, "p", 4, 4, frozenset({"a"})), Link()
    engine.join(
        worker,
        link,
        [AgentInfo("a", "m", "", "async", "p", False, None, 3, 0, False, False, "", False, {}, {})],
        Mock(),
    )
    worker.block(Block.DRAINING)
    now = time.monotonic()
    agent = engine.catalogue["a"].agent
    ticket = Ticket(
        agent,
        now,
        now + seconds,
        request_id="r",
        body=b"",
        headers=None,
        priority=3,
        client="c",
        affinity="",
        sink=Awaited(),
    )
    engine.submit(ticket)
    return engine, worker, link, ticket


def test_waiting_for_a_worker_is_no_standstill() -> None:
    async def main() -> None:
        engine, _, link, _ = make(asyncio.get_running_loop())
        assert [engine.stuck() for _ in range(3)] == ["", "", ""]
        assert not link.calls

    asyncio.run(main())


def test_a_forgotten_request_is_sent_or_else_is_a_standstill() -> None:
    async def main() -> None:
        engine, worker, link, _ = make(asyncio.get_running_loop())
        worker.unblock(Block.DRAINING)
        pump, engine.pump = engine.pump, lambda pool: None  # type: ignore[method-assign] # a dispatcher that does nothing
        assert engine.stuck() == ""
        assert "requests wait for pool 'p' while it has free workers" in engine.stuck()
        engine.pump = pump  # type: ignore[method-assign]
        worker.block(Block.DRAINING)
        assert engine.stuck() == ""
        worker.unblock(Block.DRAINING)
        assert engine.stuck() == ""
        assert link.calls == 1
        assert engine.stuck() == ""

    asyncio.run(main())


def test_a_deadline_that_nobody_acts_on_is_a_standstill() -> None:
    async def main() -> None:
        # Its timer does not get a turn, since this does not give one.
        engine, _, _, ticket = make(asyncio.get_running_loop(), seconds=-STUCK - 2.0)
        if ticket.outcome is not None:
            engine.scheduler.wheel.add(ticket, ticket.deadline)
        assert "a deadline expired, and was not handled, for" in engine.stuck()

    asyncio.run(main())
