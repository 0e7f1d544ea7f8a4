"""A backend whose workers are objects in the test's own process, and a loop whose time passes only when all wait.

A ``Puppet`` does by itself what a worker that works well would do, each step after a moment of virtual time, and can be
told to do otherwise: not to come up, to fail, to hang, to keep its calls, to die. It keeps the contract of the seam,
and checks that the other side does: nothing is sent to a worker that is not ready, or after its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import selectors
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from penstock.daemon.config.settings import Config
from penstock.daemon.config.sources import load
from penstock.daemon.core.backlog import Watermarks
from penstock.daemon.core.model import Worker
from penstock.daemon.core.refusals import Refusal
from penstock.daemon.core.throttle import Policy
from penstock.daemon.engine.catalogue import Listing
from penstock.daemon.engine.engine import Engine
from penstock.daemon.engine.ports import Unobserved
from penstock.daemon.engine.tickets import Ticket
from penstock.daemon.fleet.backend import Identity, SpawnError, Stage, Template, Vitals, WorkerEvents
from penstock.daemon.fleet.fleet import Fleet
from penstock.daemon.fleet.grants import Grants
from penstock.daemon.fleet.incarnation import Incarnation, Services
from penstock.daemon.fleet.journal import Journal
from penstock.ipc.messages import (
    PROTOCOL,
    AgentInfo,
    Answer,
    Batch,
    BrokenModule,
    Call,
    DatabaseAccess,
    Failed,
    Outcome,
    Part,
    Ready,
    Reply,
)
from tests.fix_fleet import Governor
from tests.fix_sinks import Awaited

START, EXIT, REAP_DELAY = 0.1, 0.02, 0.05
"""Virtual seconds that a worker takes to come up, to end, and to be heard out."""


class _Selector(selectors.DefaultSelector):
    """Instead of waiting, lets time pass. Nothing outside the loop can ever happen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits for something that never comes")
        self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop with a clock of its own."""

    def __init__(self) -> None:
        self.clock = _Selector()
        super().__init__(self.clock)
        self.faults: list[str] = []
        """What callbacks have raised, and what nobody is told who could raise it."""
        self.set_exception_handler(lambda _, context: self.faults.append(f"{context}"))

    def time(self) -> float:
        return self.clock.now


@contextmanager
def virtual_time() -> Iterator[VirtualLoop]:
    """A loop, whose clock is ``time.monotonic`` meanwhile."""
    loop = VirtualLoop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", loop.time)
        try:
            yield loop
            assert not loop.faults
        finally:
            loop.close()


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine in virtual time."""
    with virtual_time() as loop:
        loop.run_until_complete(scenario())


def must(holds: bool, fault: str) -> None:
    """Note a fault at which an exception would be taken for the call's own."""
    loop = asyncio.get_running_loop()
    if not holds and isinstance(loop, VirtualLoop):
        loop.faults.append(fault)


@dataclass
class Habits:
    """What workers of a template do."""

    comes_up: bool = True
    failure: str = ""
    """Why it cannot serve."""
    permanent: bool = False
    dies_at_start: bool = False
    broken: list[BrokenModule] = field(default_factory=list)
    call_time: float | None = 0.01
    """Seconds that a call takes; None: it never ends by itself."""
    stops: bool = True
    """It exits when it is told to."""
    code: str = "one"


class FakeTemplate:
    def __init__(self, habits: Habits) -> None:
        self.habits = habits
        self.closed = False
        self.settled = False

    @property
    def lost(self) -> bool:
        return self.closed

    def settle(self) -> None:
        self.settled = True

    def close(self) -> None:
        self.closed = True


class Puppet:
    """A worker."""

    node = ""

    def __init__(
        self, backend: FakeBackend, identity: Identity, config: Config, events: WorkerEvents, pid: int
    ) -> None:
        self.backend = backend
        self.identity = identity
        self.config = config
        self.events = events
        self.pid = pid
        self.habits = backend.habits
        self.is_ready = self.is_dead = self.is_finished = self.is_closed = self.is_told_to_stop = False
        self.calls: dict[int, bool] = {}
        """By id: whether its function was entered."""
        self.ended: set[int] = set()
        self.grants: dict[str, int] = {}
        self.held: dict[str, int] = {}
        """The most connections that it may have open."""
        self.used: list[int] = []
        """Database sessions."""

    # What it does

    def later(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None:
        """Do something, unless it is dead by then."""

        def unless_dead() -> None:
            if not self.is_dead:
                what(*arguments)

        asyncio.get_running_loop().call_later(seconds, unless_dead)

    def begin(self) -> None:
        habits = self.habits
        if habits.dies_at_start:
            self.later(START / 2, self.die, 1)
        elif habits.failure:
            self.later(START / 2, self.fail)
        elif habits.comes_up:
            self.later(START, self.come_up)

    def fail(self) -> None:
        self.backend.event(self)
        name, generation = self.identity.name, self.identity.generation
        self.events.failed(Failed(name, generation, self.habits.failure, self.habits.permanent))
        self.later(EXIT, self.die, 1)

    def come_up(self) -> None:
        self.backend.event(self)
        if self.is_dead:
            return
        self.is_ready = True
        name, generation = self.identity.name, self.identity.generation
        agents = self.backend.agents(self.identity.pool)
        self.events.ready(Ready(name, generation, PROTOCOL, self.pid, agents, self.habits.broken, self.habits.code))

    def answer(self, call_id: int, outcome: Outcome = Outcome.RESULT) -> None:
        if call_id not in self.calls:
            return
        self.backend.event(self)
        if self.is_dead:
            return
        del self.calls[call_id]
        self.ended.add(call_id)
        now = time.monotonic()
        name, generation = self.identity.name, self.identity.generation
        self.events.answered(
            Answer(name, generation, call_id, outcome, 200, "", None, "", "", 0.01, 0.0, 0.0, now, now), b"null"
        )

    def die(self, status: int | None = -signal.SIGKILL) -> None:
        """End, at whatever it is."""
        if self.is_dead:
            return
        self.is_dead = True
        self.events.exited(status)
        asyncio.get_running_loop().call_later(REAP_DELAY, self._finish)

    def _finish(self) -> None:
        self.is_finished = True
        self.events.finished()

    # What it is told

    def send(self, call: Call, body: bytes) -> None:
        must(self.is_ready, "a call for a worker that is not ready")
        must(not self.is_told_to_stop, "a call for a worker that was told to stop")
        must(not self.is_dead, "a call for a worker whose end was told")
        if self.backend.is_unreachable(self):
            asyncio.get_running_loop().call_soon(self._refuse, call.call)
            return
        self.calls[call.call] = False
        self.later(0.001, self._enter, call)

    def send_batch(self, batch: Batch, bodies: bytes) -> None:
        raise AssertionError("no worker here gets batches")

    def _refuse(self, call_id: int) -> None:
        if not self.is_finished:
            self.events.refused([call_id])

    def _enter(self, call: Call) -> None:
        call_id = call.call
        if call_id in self.calls:
            self.calls[call_id] = True
            self.backend.enter(call)
            self.backend.event(self)
            if self.habits.call_time is not None:
                self.later(self.habits.call_time, self.answer, call_id)

    def cancel(self, call_id: int, reason: str) -> None:
        assert not self.is_closed
        if self.habits.call_time is not None:
            self.later(0.001, self.answer, call_id, Outcome.CANCELLED)

    def allow(self, call_id: int, credit: int) -> None:
        raise AssertionError("no worker here streams")

    def reply(self, message: Part | Reply, body: bytes) -> None:
        raise AssertionError("no call here asks for another")

    def grant(self, kind: str, connections: int) -> None:
        assert not self.is_closed
        before, self.grants[kind] = self.grants.get(kind, 0), connections
        self.held[kind] = max(self.held.get(kind, 0), connections)
        if connections < before:
            self.later(0.001, self._release, kind, connections)

    def _release(self, kind: str, connections: int) -> None:
        self.held[kind] = self.grants[kind]
        self.events.released(kind, connections)

    def stop(self) -> None:
        assert not self.calls, "told to stop with calls"
        self.is_told_to_stop = True
        self.backend.event(self)
        if self.habits.stops:
            self.later(EXIT, self.die, 0)

    def signal(self, number: int) -> None:
        if number == signal.SIGTERM:
            self.later(0.001, self.events.leaving)

    def kill(self) -> None:
        asyncio.get_running_loop().call_later(EXIT, self.die)

    def close(self) -> None:
        assert self.is_finished
        self.is_closed = True
        self.backend.living.discard(self)

    # What is known of it

    def begun(self, call_ids: Iterable[int]) -> set[int]:
        return {call for call in call_ids if self.calls.get(call, call in self.ended)}

    def sessions(self) -> list[int]:
        return self.used

    def vitals(self) -> Vitals | None:
        now = time.monotonic()
        stages = {call: Stage(begun, now) for call, begun in self.calls.items()}
        return None if self.is_closed else Vitals(now, 0.0, 0, stages)


class FakeBackend:
    """Makes puppets, and counts what happens to them."""

    def __init__(self) -> None:
        self.habits = Habits()
        """Of those that are made from now on."""
        self.templates: list[FakeTemplate] = []
        self.living: set[Puppet] = set()
        self.made: list[Puppet] = []
        self.forgotten: list[str] = []
        self.shortage = ""
        """What the host is short of: nothing can be launched."""
        self.kinds: tuple[str, ...] = ()
        """Of databases that agents use."""
        self.unreachable: set[Puppet] = set()
        self.entered: Counter[tuple[str, str]] = Counter()
        """How often a function was entered for a request, by its agent and the request's id."""
        self.events = 0
        self.fatal_event = -1
        """The number of the event before which its worker dies."""

    def event(self, puppet: Puppet) -> None:
        """Something is about to happen to a worker."""
        self.events += 1
        if self.events == self.fatal_event:
            puppet.die()

    def enter(self, call: Call) -> None:
        """The function of an agent is entered: once for a request, or twice where that does no harm."""
        self.entered[call.agent, call.request_id] += 1
        assert self.entered[call.agent, call.request_id] <= (2 if call.agent.endswith("-a") else 1)

    def is_unreachable(self, puppet: Puppet) -> bool:
        return puppet in self.unreachable

    def agents(self, pool: str) -> list[AgentInfo]:
        plain = AgentInfo(f"{pool}-a", "m", "", "async", pool, True, None, 3, 0, False, False, "", False, {}, {})
        stored = [
            AgentInfo(f"{pool}-{kind}", "m", "", kind, pool, False, None, 3, 0, False, False, kind, True, {}, {})
            for kind in self.kinds
        ]
        return [plain, *stored]

    def template(self, config: Config, *, anew: bool = False) -> FakeTemplate:
        if self.shortage:
            raise SpawnError(self.shortage)
        self.templates.append(FakeTemplate(self.habits))
        return self.templates[-1]

    def launch(
        self,
        template: Template,
        identity: Identity,
        config: Config,
        database: DatabaseAccess | None,
        events: WorkerEvents,
    ) -> Puppet:
        assert not template.lost, "launched from a template that was closed"
        if self.shortage:
            raise SpawnError(self.shortage)
        puppet = Puppet(self, identity, config, events, 100_000 + len(self.made))
        assert identity not in {each.identity for each in self.made}, "two have the same identity"
        self.made.append(puppet)
        self.living.add(puppet)
        puppet.begin()
        return puppet

    def forget(self, name: str) -> None:
        self.forgotten.append(name)


class Patient:
    """A watcher that kills at once, and sees nothing."""

    def start(self, alive: Callable[[], Iterable[Incarnation]]) -> None:
        pass

    def stalled(self, incarnation: Incarnation) -> None:
        pass

    def overdue(self, incarnation: Incarnation, ticket: Ticket, kill: Callable[[str, dict[str, str]], None]) -> None:
        kill("a call did not yield", {"worker": incarnation.name})

    def close(self) -> None:
        pass


class SlowEnder:
    """Takes its time for ending sessions."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, list[int]]] = []

    def end(self, worker: str, application: str, backends: list[int]) -> asyncio.Future[None]:
        self.ended.append((application, backends))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(1.0, future.set_result, None)
        return future


def configuration(**settings: Any) -> Config:
    """Two workers of pool ``p`` without a database, unless the settings (``pools__p__workers=3``) say else."""
    chosen: dict[str, Any] = {
        "pools__p__workers": 2,
        "pools__p__agents": ["*"],
        "database__dsn": "off",
        "supervision__state_dir": "/nowhere",
        **settings,
    }
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in chosen.items()]
    return load(None, overrides, {"PENSTOCK_CONFIG": os.devnull}, agents=["m"])


class Counting(Unobserved):
    """Counts how often each accepted request has ended."""

    def __init__(self) -> None:
        self.ends: Counter[Ticket] = Counter()

    def answered(self, ticket: Ticket, worker: Worker, now: float) -> None:
        self.ends[ticket] += 1

    def ended(self, ticket: Ticket) -> None:
        self.ends[ticket] += 1


class Theatre:
    """A fleet and an engine on the fake backend."""

    def __init__(self, config: Config, dsn: str | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.backend = FakeBackend()
        self.observer = Counting()
        self.engine = Engine(loop, self.observer)
        self.governor, self.journal, self.ender = Governor(), Journal(), SlowEnder()
        self.grants = Grants(config.database.max_connections)
        services = Services(
            loop=loop,
            engine=self.engine,
            backend=self.backend,
            grants=self.grants,
            journal=self.journal,
            watcher=Patient(),
            sessions=self.ender,
        )
        self.fleet = Fleet(config, services, self.governor, random.Random(1))
        self.dsn = dsn
        self.tickets: list[Ticket] = []
        self.sink = Awaited()
        self.withdrawn: set[Ticket] = set()
        self.take(config)

    def take(self, config: Config) -> None:
        """What the daemon tells the engine of a configuration."""
        balances = {name: pool.balance for name, pool in config.pools.items()}
        timeout, grace = config.agents.timeout, config.agents.hard_timeout_grace
        self.engine.configure(balances, Watermarks(), timeout, grace, Policy(enabled=False))

    def start(self) -> None:
        self.fleet.start(self.dsn)

    async def reload(self, config: Config) -> None:
        await self.fleet.reload(config)
        self.take(config)
        await self.fleet.rolled()

    def states(self) -> dict[str, str]:
        return {view.name: view.state.value for view in self.fleet.workers()}

    def puppet(self, name: str) -> Puppet:
        """The one that sits in this seat."""
        view = self.fleet.worker(name)
        assert view is not None
        return next(each for each in self.backend.made if each.pid == view.pid)

    def submit(self, agent: str = "p-a", timeout: float = 20.0) -> Ticket | None:
        """Begin a call; None: the agent is not known."""
        listing = self.engine.catalogue.lookup(agent)
        if not isinstance(listing, Listing):
            return None
        now = time.monotonic()
        ticket = Ticket(
            listing.agent,
            now,
            now + timeout,
            request_id=f"r{len(self.tickets)}",
            body=b"",
            headers=None,
            priority=3,
            client="c",
            affinity="",
            sink=self.sink,
        )
        self.tickets.append(ticket)
        self.engine.submit(ticket)
        return ticket

    def check(self) -> None:
        """What must hold at any moment."""
        budget = self.grants._ledger
        assert budget.held <= budget.budget
        assert sum(sum(each.held.values()) for each in self.backend.living) <= budget.budget
        assert max(self.observer.ends.values(), default=0) <= 1, "a request with two answers"
        for one in self.fleet._seats.alive():
            if one.worker is not None:
                assert len(one.worker.calls) <= one.worker.slots

    async def end(self) -> None:
        """Shut down, and see that nothing is left."""
        await self.fleet.shutdown(5.0)
        self.engine.cut_off("it is over")
        assert not self.backend.living
        assert not self.fleet._seats.alive()
        assert all(template.closed for template in self.backend.templates)
        self.check()
        for ticket in self.tickets:
            assert ticket.outcome is not None or ticket in self.withdrawn, "a request without an answer"
            assert self.observer.ends[ticket] == 1 or isinstance(ticket.outcome, Refusal)
        assert not self.engine.scheduler.in_flight
        assert not self.engine.scheduler.backlog.requests


async def until(condition: Callable[[], Any], what: str, patience: float = 600.0) -> None:
    """Let time pass until a condition holds, and fail with ``what`` when that takes too long."""
    ends = time.monotonic() + patience
    while not condition():
        if time.monotonic() > ends:
            pytest.fail(f"timed out after {patience:g} virtual seconds, waiting until {what}")
        await asyncio.sleep(0.005)
