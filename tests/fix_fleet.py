"""A fleet in the test's own process: real workers, channels, forkservers and engine, without HTTP before them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from penstock.daemon.backends.local.backend import LocalBackend
from penstock.daemon.backends.local.channels import Channels
from penstock.daemon.backends.local.output import WorkerOutput
from penstock.daemon.backends.local.process import Spawner
from penstock.daemon.backends.local.sessions import Sessions
from penstock.daemon.config.settings import Config
from penstock.daemon.config.sources import load
from penstock.daemon.core.backlog import Watermarks
from penstock.daemon.core.refusals import Refusal
from penstock.daemon.diagnostics.watch import Watch
from penstock.daemon.engine.catalogue import Listing
from penstock.daemon.engine.engine import Engine
from penstock.daemon.engine.tickets import Ticket
from penstock.daemon.fleet.fleet import Fleet
from penstock.daemon.fleet.grants import Grants
from penstock.daemon.fleet.incarnation import Services
from penstock.daemon.fleet.journal import Journal
from penstock.daemon.fleet.views import WorkerView
from penstock.ipc.launch import launch
from penstock.ipc.messages import Answer, Statistics
from tests.fix_daemon import AGENTS, PATIENCE, until
from tests.fix_processes import family
from tests.fix_sinks import Awaited


def descendants() -> set[int]:
    """The pids of everything that this process has started and that lives."""
    return {each.pid for each in family(os.getpid())}


def configuration(*modules: str, **settings: Any) -> Config:
    """Two workers without a database that fail fast, unless the settings (``pools__default__workers=3``) say else."""
    chosen: dict[str, Any] = {
        "pools__default__workers": 2,
        "database__dsn": "off",
        "supervision__start_seconds": 0.05,
        "supervision__stop_timeout": 10.0,
        "supervision__state_dir": "/nowhere",
        **settings,
    }
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in chosen.items()]
    return load(None, overrides, {"PENSTOCK_CONFIG": os.devnull}, agents=modules or ("basic",))


@dataclass
class Governor:
    """Who is told what concerns the daemon as a whole."""

    configuration_errors: list[str] = field(default_factory=list)
    first: int = 0
    told: list[Statistics] = field(default_factory=list)

    def first_ready(self) -> None:
        self.first += 1

    def configuration_failed(self, reason: str) -> None:
        self.configuration_errors.append(reason)

    def statistics(self, statistics: Statistics) -> None:
        self.told.append(statistics)


@dataclass
class Stand:
    """A fleet with everything that it needs."""

    config: Config
    engine: Engine
    fleet: Fleet
    channels: Channels
    spawner: Spawner
    printed: bytearray
    governor: Governor
    sink: Awaited = field(default_factory=Awaited)

    def configure(self, config: Config) -> None:
        """What the daemon tells the engine of a configuration."""
        self.engine.configure(
            {name: pool.balance for name, pool in config.pools.items()},
            Watermarks(),
            config.agents.timeout,
            config.agents.hard_timeout_grace,
        )

    async def reload(self, config: Config) -> None:
        """As the daemon does it; returns when every seat has been seen to."""
        await self.fleet.reload(config)
        self.configure(config)
        await until(lambda: not self.fleet.reloading, "the reload is done")

    def view(self, name: str = "default:0") -> WorkerView:
        return next(each for each in self.fleet.workers() if each.name == name)

    def states(self) -> dict[str, str]:
        return {each.name: each.state for each in self.fleet.workers()}

    def pids(self) -> list[int]:
        return [each.pid for each in self.fleet.workers()]

    async def all_run(self) -> list[int]:
        """Wait until every seat runs; their pids."""
        await until(lambda: set(self.states().values()) == {"RUNNING"}, f"all run, and not {self.states()}")
        return self.pids()

    def submit(self, agent: str, body: Any = None, timeout: float = 20.0) -> Ticket:
        """Begin a call."""
        listing = self.engine.catalogue.lookup(agent)
        assert isinstance(listing, Listing), f"{agent}: {listing}"
        now = time.monotonic()
        ticket = Ticket(
            listing.agent,
            now,
            now + timeout,
            request_id="test",
            body=json.dumps(body).encode(),
            headers=None,
            priority=3,
            client="test",
            affinity="",
            sink=self.sink,
        )
        self.engine.submit(ticket)
        return ticket

    async def end(self, ticket: Ticket) -> Any:
        """The result of a call, or the name of its problem."""
        await asyncio.wait_for(self.sink.wait(ticket), PATIENCE)
        outcome = ticket.outcome
        if isinstance(outcome, Refusal):
            return outcome.problem.value
        assert isinstance(outcome, Answer)
        return outcome.problem or json.loads(ticket.result)

    async def call(self, agent: str, body: Any = None, timeout: float = 20.0) -> Any:
        return await self.end(self.submit(agent, body, timeout))

    async def begin(self, agent: str, body: Any = None, timeout: float = 20.0) -> Ticket:
        """Begin a call, and wait until its function was entered."""
        ticket = self.submit(agent, body, timeout)
        await until(
            lambda: (
                ticket.call_id
                in {
                    call
                    for one in self.fleet._seats.alive()
                    if (vitals := one.handle.vitals()) is not None
                    for call, stage in vitals.calls.items()
                    if stage.begun
                }
            ),
            "the call has begun",
        )
        return ticket


@asynccontextmanager
async def standing(config: Config, target: Any = launch) -> AsyncIterator[Stand]:
    """A started fleet; at the end it has been shut down, and nothing of it is left."""
    before = descendants()
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="fleet-", dir="/tmp") as made:
        directory = Path(made)
        printed = bytearray()
        worker_output = WorkerOutput(loop, directory / "log", printed.extend)
        worker_output.configure("text", "info", limit=2**20, kept=1)
        engine = Engine(loop)
        channels = Channels(loop, directory)
        spawner = Spawner(loop, directory, target)
        governor, journal = Governor(), Journal()
        services = Services(
            loop=loop,
            engine=engine,
            backend=LocalBackend(loop, channels, spawner, worker_output),
            grants=Grants(config.database.max_connections),
            journal=journal,
            watcher=Watch(loop, journal),
            sessions=Sessions(),
        )
        fleet = Fleet(config, services, governor, random.Random(1))
        stand = Stand(config, engine, fleet, channels, spawner, printed, governor)
        stand.configure(config)
        fleet.start(None)
        try:
            yield stand
        finally:
            await fleet.shutdown(0.0)
            channels.close()
            worker_output.close()
            await until(lambda: descendants() <= before, "no process is left")


def play(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for a test's agent modules, which workers and forkservers find there or among the tests' own."""
    for directory in (AGENTS, tmp_path):
        monkeypatch.syspath_prepend(str(directory))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(AGENTS), *sys.path]))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return tmp_path
