"""Workers as processes of this host: forked from a forkserver, reached by ZeroMQ over Unix sockets, watched through a
shared page, with pipes for what they print.

A process's end is learnt from the forkserver, what it has said from the answer socket, and neither way waits for the
other: so the answer socket is read for ``REAP_DELAY`` before it is said that it has finished.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import Final

import zmq

from penstock.ipc.frames import encode
from penstock.ipc.messages import (
    PROTOCOL,
    Answer,
    Batch,
    Call,
    Cancel,
    DatabaseAccess,
    Failed,
    FromCall,
    Grant,
    Items,
    Launch,
    Leaving,
    More,
    Part,
    Ready,
    Released,
    Reply,
    Starting,
    Statistics,
    Stop,
)
from penstock.ipc.scoreboard import Scoreboard

from ...config.settings import Config
from ...core.suspension import places
from ...fleet.backend import Identity, SpawnError, Stage, Template, Vitals, WorkerEvents
from ...host import pyspy
from .channels import Channels, Told
from .forkserver import Server
from .output import WorkerOutput
from .process import Process, Spawner

REAP_DELAY: Final = 0.05
"""Seconds between a process's end and the moment when all that it had said is taken to have arrived."""


class LocalTemplate:
    """A forkserver."""

    def __init__(self, server: Server, spawner: Spawner) -> None:
        self.server = server
        self._spawner = spawner

    @property
    def lost(self) -> bool:
        return self.server.lost

    def settle(self) -> None:
        try:
            self._spawner.settle(self.server)
        except OSError as error:
            raise SpawnError(f"{self.server.workplace.directory}: {error.strerror}") from error

    def close(self) -> None:
        self.server.close()


class LocalHandle:
    """One process with its channels, its page and its pipes."""

    node = ""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channels: Channels,
        identity: Identity,
        slots: int,
        events: WorkerEvents,
    ) -> None:
        """``slots``: on the page. ``OSError`` or ``ZMQError`` if the channels or the page could not be made."""
        self._loop = loop
        self._channels = channels
        self._identity = identity
        self._events = events
        self._process: Process
        self._finishing: asyncio.TimerHandle | None = None
        self.link = channels.link(identity.name, identity.generation, self)
        try:
            self.board = Scoreboard.create(identity.name, slots)
        except OSError:
            self._close_channels()
            raise
        # Bound once: each request passes both.
        self.send: Callable[[Call, bytes], None] = self.link.send
        self.send_batch: Callable[[Batch, bytes], None] = self.link.send_batch
        self.answered: Callable[[Answer, bytes], None] = events.answered
        self.items: Callable[[Items, bytes], None] = events.items

    def spawn(self, spawner: Spawner, template: LocalTemplate, parameters: Launch, worker_output: WorkerOutput) -> None:
        """Ask for the process (``SpawnError``: nothing is left then)."""
        name = self._identity.name
        try:
            outlets = worker_output.open(name)
            self._process = spawner.spawn(template.server, name, encode(parameters), self.board, outlets, self._exited)
        except OSError as error:
            self.close()
            if isinstance(error, (ConnectionError, FileNotFoundError)):
                template.close()
            raise SpawnError(f"the forkserver did not accept the request: {error}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    # What it says

    def received(self, message: Told) -> None:
        """Everything that it says but its answers to calls."""
        events = self._events
        match message:
            case Ready() if message.protocol != PROTOCOL:
                events.unusable(f"it speaks protocol {message.protocol} and the daemon {PROTOCOL}: restart the daemon")
            case Ready():
                self.link.when_open(lambda: events.ready(message))
            case Starting():
                events.starting(message.step)
            case Failed():
                events.failed(message)
            case Released():
                events.released(message.kind, message.connections)
            case Statistics():
                events.statistics(message)
            case Leaving():
                events.leaving()

    def asked(self, message: FromCall, body: bytes) -> None:
        """What a call says of its children."""
        self._events.asked(message, body)

    def refused(self, call_ids: list[int]) -> None:
        """The channel did not take these calls."""
        self._events.refused(call_ids)

    def _exited(self, status: int | None) -> None:
        self._finishing = self._loop.call_later(REAP_DELAY, self._finish)
        self._events.exited(status)

    def _finish(self) -> None:
        self._finishing = None
        self._channels.catch_up()
        self._events.finished()

    # What it is told

    def cancel(self, call_id: int, reason: str) -> None:
        self.link.control(Cancel(call_id, reason))

    def allow(self, call_id: int, credit: int) -> None:
        self.link.control(More(call_id, credit))

    def reply(self, message: Part | Reply, body: bytes) -> None:
        self.link.control(message, body)

    def grant(self, kind: str, connections: int) -> None:
        self.link.control(Grant(kind, connections))

    def stop(self) -> None:
        self.link.control(Stop())

    def signal(self, number: int) -> None:
        self._process.signal(number)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._close_channels()
        self.board.close()

    def _close_channels(self) -> None:
        self._channels.forget(self._identity.name, self._identity.generation)
        self.link.close()

    # What is known of it

    def begun(self, call_ids: Iterable[int]) -> set[int]:
        return self.board.begun(call_ids)

    def sessions(self) -> list[int]:
        return [slot.backend for slot in self.board.busy() if slot.backend]

    def vitals(self) -> Vitals | None:
        board = self.board
        if board.fd < 0:
            return None
        stages = {slot.call: Stage(slot.begun, slot.since) for slot in board.busy()}
        return Vitals(board.turned_at, board.lag, board.stepped, stages)

    async def stacks(self, timeout: float, *, nonblocking: bool = False) -> list[pyspy.Thread]:
        return await pyspy.dump(self.pid, timeout, nonblocking)

    async def record(self, seconds: float, form: str) -> pyspy.Recording:
        return await pyspy.record(self.pid, seconds, form)

    def is_stopped(self) -> bool:
        return pyspy.is_stopped(self.pid)


class LocalBackend:
    """Makes the workers of this host."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, channels: Channels, spawner: Spawner, worker_output: WorkerOutput
    ) -> None:
        self._loop = loop
        self._channels = channels
        self._spawner = spawner
        self._worker_output = worker_output

    def template(self, config: Config, *, anew: bool = False) -> LocalTemplate:
        """A fresh forkserver (``SpawnError``)."""
        modules = config.agents.modules if config.agents.preload else ()
        try:
            return LocalTemplate(self._spawner.server(modules, anew=anew), self._spawner)
        except OSError as error:
            raise SpawnError(f"the forkserver could not be started: {error}") from error

    def launch(
        self,
        template: Template,
        identity: Identity,
        config: Config,
        database: DatabaseAccess | None,
        events: WorkerEvents,
    ) -> LocalHandle:
        """Ask the forkserver for a process (``SpawnError``)."""
        assert isinstance(template, LocalTemplate)
        settings = config.pools[identity.pool]
        try:
            handle = LocalHandle(self._loop, self._channels, identity, places(settings.concurrency), events)
        except (OSError, zmq.ZMQError) as error:
            raise SpawnError(f"its channels could not be created: {error}") from error
        parameters = Launch(
            protocol=PROTOCOL,
            name=identity.name,
            pool=identity.pool,
            index=identity.index,
            generation=identity.generation,
            supervisor_pid=os.getpid(),
            work_address=handle.link.work_address,
            control_address=handle.link.control_address,
            answer_address=self._channels.answer_address,
            modules=list(config.agents.modules),
            pools={name: list(pool.agents) for name, pool in config.pools.items()},
            concurrency=settings.concurrency,
            threads=settings.threads,
            database=database,
            log_level=config.log.level,
            log_format=config.log.format,
            max_item=config.http.max_body,
        )
        handle.spawn(self._spawner, template, parameters, self._worker_output)
        return handle

    def forget(self, name: str) -> None:
        """Close its log files."""
        self._worker_output.forget(name)
