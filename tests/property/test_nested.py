"""Random graphs of calls between agents, on the engine and with workers that are scripts in virtual time.

Whatever the graph and however few the slots: every request gets one outcome, nothing is left of any in any book, and
where one pool of async agents calls itself, no request needs its deadline to end.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import Mock

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.daemon.core.backlog import Watermarks
from penstock.daemon.core.model import Worker
from penstock.daemon.core.suspension import LEVELS, places, suspendable
from penstock.daemon.core.throttle import Policy
from penstock.daemon.engine.catalogue import Listing
from penstock.daemon.engine.engine import Engine
from penstock.daemon.engine.tickets import Ticket
from penstock.ipc.messages import Abandon, AgentInfo, Answer, Ask, Batch, Call, Outcome, Part, Reply
from tests.fix_backend import virtual_time
from tests.fix_sinks import Awaited

PATIENCE = 500.0
"""Virtual seconds that a request may take; without a standstill none takes more than a few."""

GRACE = 1000.0
"""Seconds; a script always yields, in the end."""


@dataclass
class Node:
    """What a call does: work, then ask for several others at once, and so on."""

    agent: str
    steps: list[list[Node]] = field(default_factory=list)
    impatient: bool = False
    """It does not wait for the last of those that it asks for."""

    def plain(self) -> dict[str, Any]:
        steps = [[node.plain() for node in step] for step in self.steps]
        return {"agent": self.agent, "steps": steps, "impatient": self.impatient}


def graph(rng: random.Random, agents: list[str], levels: int, budget: list[int]) -> Node:
    """A random tree of at most so many levels, out of a budget of calls."""
    node = Node(rng.choice(agents), impatient=rng.random() < 0.1)
    if levels > 1:
        for _ in range(rng.choice((0, 1, 1, 2))):
            step = []
            for _ in range(rng.choice((1, 1, 2, 4))):
                if budget[0] > 0:
                    budget[0] -= 1
                    step.append(graph(rng, agents, levels - 1, budget))
            node.steps.append(step)
    return node


class Script:
    """A worker whose calls do what their bodies say."""

    def __init__(self, engine: Engine, worker: Worker, rng: random.Random) -> None:
        self.engine, self.worker, self.rng = engine, worker, rng
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.replies: dict[tuple[int, int], asyncio.Future[bool]] = {}
        self.dead = False

    def send(self, call: Call, body: bytes) -> None:
        assert len(self.worker.calls) <= places(self.worker.slots)
        assert self.worker.suspended <= suspendable(self.worker.slots)
        task = self.tasks[call.call] = asyncio.get_running_loop().create_task(self._run(call.call, json.loads(body)))
        task.add_done_callback(partial(self._ended, call.call))

    def send_batch(self, batch: Batch, bodies: bytes) -> None:
        raise AssertionError("nothing here goes in batches")

    def cancel(self, call_id: int, reason: str) -> None:
        if call_id in self.tasks:
            self.tasks[call_id].cancel()

    def allow(self, call_id: int, credit: int) -> None:
        raise AssertionError("nothing here streams")

    def reply(self, message: Part | Reply, body: bytes) -> None:
        assert isinstance(message, Reply)
        future = self.replies.pop((message.call, message.ask), None)
        if future is not None and not future.done():
            future.set_result(not message.problem)

    async def _run(self, call: int, node: dict[str, Any]) -> None:
        await asyncio.sleep(self.rng.random() * 0.01)
        ask = 0
        for step in node["steps"]:
            waited = []
            for child in step:
                ask += 1
                waited.append(self._ask(call, ask, child))
            if node["impatient"] and waited:
                waited.pop()
                self._tell(Abandon(self.worker.name, 1, call, ask))
            await asyncio.gather(*waited)
            await asyncio.sleep(self.rng.random() * 0.01)

    def _ended(self, call: int, task: asyncio.Task[None]) -> None:
        if self.dead:
            return
        del self.tasks[call]
        outcome = Outcome.CANCELLED if task.cancelled() else Outcome.RESULT
        now = time.monotonic()
        times = (0.001, 0.0, 0.0, now, now)
        answer = Answer(self.worker.name, 1, call, outcome, 200, "", None, "", "", *times)
        self.engine.answered(self.worker, answer, b"")

    def _ask(self, call: int, ask: int, child: dict[str, Any]) -> asyncio.Future[bool]:
        future = self.replies[call, ask] = asyncio.get_running_loop().create_future()
        self._tell(Ask(self.worker.name, 1, call, ask, child["agent"], time.monotonic() + PATIENCE), json.dumps(child))
        return future

    def _tell(self, message: Ask | Abandon, body: str = "") -> None:
        if not self.dead:
            self.engine.nested.received(self.worker, message, body.encode())

    def die(self) -> None:
        self.dead = True
        for task in self.tasks.values():
            task.cancel()
        self.engine.leave(self.worker, set(self.worker.calls), blame=False)


def info(name: str, pool: str) -> AgentInfo:
    return AgentInfo(
        name=name,
        module="m",
        doc="",
        kind="sync" if name.endswith("sync") else "async",
        pool=pool,
        idempotent=False,
        timeout=PATIENCE,
        priority=3,
        max_concurrency=0,
        raw_body=False,
        wants_headers=False,
        database="",
        connection=False,
        body_schema={},
        result_schema={},
    )


class Stand:
    """An engine with some workers."""

    def __init__(self, pools: dict[str, list[str]], workers: int, slots: int, seed: int) -> None:
        self.engine = Engine(asyncio.get_running_loop())
        self.engine.configure(
            dict.fromkeys(pools, "least-loaded"), Watermarks(), PATIENCE, GRACE, Policy(enabled=False)
        )
        self.rng = random.Random(seed)
        self.scripts: list[Script] = []
        for pool, agents in pools.items():
            for at in range(workers):
                threads = self.rng.randint(1, slots)
                worker = Worker(f"{pool}:{at}", 1, pool, slots, threads, frozenset(agents))
                self.scripts.append(Script(self.engine, worker, self.rng))
                self.engine.join(worker, self.scripts[-1], [info(name, pool) for name in agents], Mock())
        self.sink = Awaited()
        self.tickets: list[Ticket] = []

    def submit(self, node: Node) -> Ticket:
        listing = self.engine.catalogue.lookup(node.agent)
        assert isinstance(listing, Listing)
        now = time.monotonic()
        ticket = Ticket(
            listing.agent,
            now,
            now + PATIENCE,
            request_id=f"r{len(self.tickets)}",
            body=json.dumps(node.plain()).encode(),
            headers=None,
            priority=3,
            client="c",
            affinity="",
            sink=self.sink,
        )
        self.tickets.append(ticket)
        self.engine.submit(ticket)
        return ticket

    async def settle(self) -> None:
        """Let time pass until nothing waits or runs, and see that the books are empty."""
        engine = self.engine
        await engine.idle()
        assert not engine.nested.families
        assert not engine.scheduler.backlog.bytes
        assert engine.scheduler.wheel.next_at() is None
        for script in self.scripts:
            worker = script.worker
            assert not worker.calls
            left = (worker.suspended, worker.sync_calls, worker.processors.calls, worker.host.calls, worker.load)
            assert left == (0, 0, 0, 0, 0.0)


def is_well(ticket: Ticket) -> bool:
    return isinstance(ticket.outcome, Answer) and ticket.outcome.outcome == Outcome.RESULT


SEEDS = st.integers(0, 10**6)


@given(workers=st.integers(1, 2), slots=st.integers(1, 3), roots=st.integers(1, 30), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_no_graph_of_a_pool_stands_still(workers: int, slots: int, roots: int, seed: int) -> None:
    async def main() -> None:
        stand = Stand({"p": ["a", "b", "c"]}, workers, slots, seed)
        for _ in range(roots):
            stand.submit(graph(stand.rng, ["a", "b", "c"], LEVELS, [60]))
        await stand.settle()
        assert all(is_well(ticket) for ticket in stand.tickets)

    with virtual_time() as loop:
        loop.run_until_complete(main())


@given(workers=st.integers(1, 2), slots=st.integers(1, 3), roots=st.integers(1, 20), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_nothing_is_left_of_any_graph(workers: int, slots: int, roots: int, seed: int) -> None:
    """Of several pools, threads among them, with clients that leave and workers that die."""

    async def main() -> None:
        agents = {"p": ["a", "a-sync"], "q": ["b", "b-sync"]}
        stand = Stand(agents, workers + 1, slots, seed)
        rng = stand.rng
        for _ in range(roots):
            ticket = stand.submit(graph(rng, [*agents["p"], *agents["q"]], LEVELS + 1, [40]))
            await asyncio.sleep(rng.random() * 0.02)
            if rng.random() < 0.2:
                stand.engine.withdraw(ticket)
                stand.tickets.remove(ticket)
            if rng.random() < 0.05 and len(stand.scripts) > 3:
                victim = next(each for each in stand.scripts if each.worker.name.endswith(":1"))
                stand.scripts.remove(victim)
                victim.die()
        await stand.settle()
        assert all(ticket.outcome is not None for ticket in stand.tickets)
        assert set(stand.tickets) <= set(stand.sink.tickets)

    with virtual_time() as loop:
        loop.run_until_complete(main())
