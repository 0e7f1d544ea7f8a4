"""Any history of a fleet: orders, calls, deaths, stalls and reloads in any order, and what must hold at every moment.

``Theatre.check`` has what holds while it runs, ``Theatre.end`` what holds in the end, and the puppets themselves that
nothing is sent to one that is not ready.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.daemon.config.settings import Config
from penstock.daemon.core.lifecycle import SeatState
from penstock.daemon.fleet.rollout import ReloadFailedError
from tests.fix_backend import Habits, Puppet, Theatre, configuration, virtual_time

DSN = "postgresql://nowhere"
HABITS = (
    Habits(),
    Habits(code="two"),
    Habits(dies_at_start=True),
    Habits(failure="a fault"),
    Habits(comes_up=False),
    Habits(call_time=None),
    Habits(stops=False),
)
WHICH = st.integers(0, 7)


def made(workers: int, pools: int) -> Config:
    chosen: dict[str, Any] = {"database__dsn": DSN, "database__max_connections": 6, "supervision__stop_timeout": 3.0}
    chosen |= {"supervision__start_timeout": 8.0, "agents__hard_timeout_grace": 0.5, "pools__p__concurrency": 3}
    if pools > 1:
        chosen |= {"pools__q__workers": workers, "pools__q__agents": ["q*"], "pools__q__concurrency": 2}
    return configuration(pools__p__workers=workers, **chosen)


class FleetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        logging.getLogger("penstock").setLevel(logging.CRITICAL)
        self.stack = ExitStack()
        self.loop = self.stack.enter_context(virtual_time())
        self.theatre: Theatre
        self.reloads: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def pass_time(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    def pick(self, which: int) -> Puppet | None:
        living = sorted((each for each in self.theatre.backend.living), key=lambda each: each.pid)
        return living[which % len(living)] if living else None

    def name(self, which: int) -> str:
        names = [view.name for view in self.theatre.fleet.workers()]
        return names[which % len(names)]

    @initialize(workers=st.integers(1, 3), habits=st.sampled_from([HABITS[0], HABITS[0], *HABITS]))
    def begin(self, workers: int, habits: Habits) -> None:
        async def start() -> Theatre:
            theatre = Theatre(made(workers, 1), DSN)
            theatre.backend.kinds = ("async", "sync")
            theatre.backend.habits = habits
            theatre.start()
            return theatre

        self.theatre = self.run(start())
        self.pass_time(1.0)

    # What happens

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.05, 0.3, 5.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule(agent=st.sampled_from(["p-a", "p-async", "p-sync", "q-a"]), count=st.integers(1, 6), urgent=st.booleans())
    def call(self, agent: str, count: int, urgent: bool) -> None:
        async def submit() -> None:
            for _ in range(count):
                self.theatre.submit(agent, 0.2 if urgent else 20.0)

        self.run(submit())
        self.pass_time(0.003)

    @rule(agent=st.sampled_from(["p-a", "p-async", "p-sync"]), seconds=st.sampled_from([0.0, 0.002, 0.02]))
    def call_and_die(self, agent: str, seconds: float) -> None:
        """A call, and the end of the worker that has it."""

        async def work() -> None:
            ticket = self.theatre.submit(agent)
            await asyncio.sleep(seconds)
            if ticket is not None and ticket.worker is not None:
                worker = ticket.worker
                for puppet in list(self.theatre.backend.living):
                    if (puppet.identity.name, puppet.identity.generation) == (worker.name, worker.generation):
                        puppet.die()

        self.run(work())

    @rule(which=WHICH)
    def withdraw(self, which: int) -> None:
        async def withdraw() -> None:
            pending = [each for each in self.theatre.tickets if not (each.outcome or each in self.theatre.withdrawn)]
            if pending:
                ticket = pending[which % len(pending)]
                self.theatre.engine.withdraw(ticket)
                self.theatre.withdrawn.add(ticket)

        self.run(withdraw())

    @rule(which=WHICH, status=st.sampled_from([0, 1, -9, None]), used=st.booleans())
    def die(self, which: int, status: int | None, used: bool) -> None:
        async def die() -> None:
            puppet = self.pick(which)
            if puppet is not None:
                puppet.used = [1] if used else []
                puppet.die(status)

        self.run(die())

    @rule(which=WHICH)
    def terminate(self, which: int) -> None:
        async def terminate() -> None:
            puppet = self.pick(which)
            if puppet is not None and puppet.is_ready:
                puppet.signal(15)

        self.run(terminate())

    @rule(which=WHICH)
    def lose_or_find_the_way(self, which: int) -> None:
        puppet = self.pick(which)
        if puppet is not None:
            self.theatre.backend.unreachable ^= {puppet}

    @rule(habits=st.sampled_from(HABITS), shortage=st.sampled_from(["", "", "no memory"]))
    def change(self, habits: Habits, shortage: str) -> None:
        self.theatre.backend.habits = habits
        self.theatre.backend.shortage = shortage

    # What is asked for

    @precondition(lambda self: self.theatre.fleet.workers())
    @rule(which=WHICH, order=st.sampled_from(["restart", "stop_worker", "start_worker", "start_when_stopped"]))
    def order(self, which: int, order: str) -> None:
        async def tell() -> None:
            getattr(self.theatre.fleet, order)(self.name(which))

        self.run(tell())

    @rule(workers=st.integers(1, 3), pools=st.integers(1, 2), broken_off=st.booleans())
    def reload(self, workers: int, pools: int, broken_off: bool) -> None:
        config = made(workers, pools)

        async def begin() -> None:
            async def reload() -> None:
                try:
                    await self.theatre.fleet.reload(config)
                except ReloadFailedError:
                    return
                self.theatre.take(config)

            task = asyncio.ensure_future(reload())
            self.reloads.add(task)
            if broken_off:
                await asyncio.sleep(0.05)
                task.cancel()

        self.run(begin())

    # What holds

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if hasattr(self, "theatre"):
            self.theatre.check()

    @invariant()
    def a_seat_has_a_process_exactly_where_its_state_says_so(self) -> None:
        if hasattr(self, "theatre"):
            for view in self.theatre.fleet.workers():
                has = view.pid != 0
                assert has == (view.state in (SeatState.STARTING, SeatState.RUNNING, SeatState.STOPPING)), view

    def teardown(self) -> None:
        try:
            if hasattr(self, "theatre"):
                self.run(self.end())
        finally:
            for task in self.reloads:
                task.cancel()
            self.stack.close()

    async def end(self) -> None:
        for task in self.reloads:
            task.cancel()
        if self.reloads:
            await asyncio.wait(self.reloads)
        self.theatre.backend.shortage = ""
        await self.theatre.end()
        await asyncio.sleep(2.0)
        assert self.theatre.fleet.granted == 0


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
pytestmark = pytest.mark.timeout(300)
