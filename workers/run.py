"""The worker's program: load the agents, tell the supervisor what they are, answer calls until told to stop.

Its life is the supervisor's: it dies with its parent (``PR_SET_PDEATHSIG``), it ignores SIGINT (a terminal sends that
to the whole group, and the supervisor drains first) and what else is meant for the supervisor (SIGHUP, SIGUSR1,
SIGUSR2), and SIGTERM from outside only makes it ask to be replaced.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import os
import signal
import time
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

import uvloop
import zmq

from penstock.ipc import frames, groups, sockets
from penstock.ipc.log import call_fields, configure, get_logger
from penstock.ipc.messages import (
    PROTOCOL,
    AgentInfo,
    BrokenModule,
    Cancel,
    Failed,
    FromWorker,
    Grant,
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
from penstock.ipc.prctl import die_with_parent
from penstock.ipc.ptrace import allow_tracer
from penstock.ipc.scoreboard import HEARTBEAT, Scoreboard
from penstock.ipc.tasks import Tasks
from penstock.ipc.tracing import open_spans

from . import searching, signals
from .agent import Definition, all_or_nothing, define, registry, start_hooks, stop_hooks
from .calls import Calls
from .context import current
from .database import Database
from .description import describe
from .ending import Ending
from .nested import Nested
from .serve import undump
from .sources import fingerprint, install
from .steps import Steps
from .streams import Streams
from .threads import Threads

if TYPE_CHECKING:
    from penstock.ipc.spans import Spans

    from .spans import AgentSpans

log = get_logger("penstock.worker")

REPORT: Final = 1.0
"""Seconds between two looks whether there is something to say of the database pools."""

HOOK_PATIENCE: Final = 5.0
"""Seconds that the stop hooks may wait, together. One that blocks the loop is cut off by the supervisor."""

NICE: Final = 5
"""How much a worker gives way to others on the processors. The supervisor must not wait for those whom it is to keep
from too much work: it needs little, and answers of all kinds go through it. The database goes before them, too."""

DILL: Final = "dill:"

door: int = groups.NO_GUARD
"""Where the guard is told of this process, as the forkserver has it from the supervisor."""

unforked: list[str] = []
"""Threads that the import of an agent module has started in the forkserver, and that are missing here."""


class StartError(Exception):
    """The worker cannot serve. ``configuration``: trying again is no use."""

    def __init__(self, reason: str, configuration: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.configuration = configuration


def main(parameters: bytes, board: Scoreboard) -> int:
    """Run one worker; its exit status. ``parameters`` is an encoded ``Launch``."""
    launch = frames.decode_launch(parameters)
    die_with_parent(os.getppid())
    if not _supervised_by(launch.supervisor_pid):
        return 1
    guarded = groups.lead(door)
    allow_tracer(launch.supervisor_pid)
    signals.take_no_notice()
    signals.reset_in_forks()
    configure(launch.log_level, launch.log_format, launch.name, _call_fields)
    if not guarded:
        log.warning("the guard was killed: what this worker starts may outlive it if the supervisor is killed, too")
    give_way()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        worker = Worker(launch, board)
        asyncio.set_event_loop(loop)
        worker.load()
        status = _run_to_the_end(loop, worker)
        ending = Ending()  # before the loop's own threads are waited for
    ending.complete()
    return status


def _run_to_the_end(loop: asyncio.AbstractEventLoop, worker: Worker) -> int:
    """Run the worker, whatever the agents' own tasks raise.

    A task that ends with ``SystemExit`` or ``KeyboardInterrupt`` stops the loop as well; whoever awaits it gets the
    exception too, as it should be, and the loop is started again.
    """
    life = loop.create_task(worker.run())
    while True:
        try:
            return loop.run_until_complete(life)
        except (SystemExit, KeyboardInterrupt) as error:
            if life.done():
                raise
            log.error("a task that an agent started raised %s; the worker goes on", type(error).__name__)


def give_way() -> None:
    """Go behind the supervisor on the processors, where that is allowed."""
    try:
        os.nice(NICE)
    except OSError as error:
        log.warning("the worker keeps the priority of the supervisor: nice(%d): %s", NICE, error.strerror)


def _supervised_by(supervisor: int) -> bool:
    """Whether the parent is the supervisor or its forkserver: false once that is gone and another inherited us."""
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/stat", "rb") as file:
            # The second field, a name in parentheses, may have anything in it.
            grandparent = int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return False
    return supervisor in (parent, grandparent)


def _call_fields() -> dict[str, str]:
    """What a line of the log says of the call that it was written for."""
    call = current.get()
    return {} if call is None else call_fields(call.request_id, call.traceparent, call.agent)


def load(modules: Iterable[str]) -> list[BrokenModule]:
    """Import every module, or unpickle its functions; those that could not be (``StartError`` if none could)."""
    searching.arrange()
    modules = list(modules)
    install(name for name in modules if not name.startswith(DILL))
    broken: list[BrokenModule] = []
    count = 0
    for name in modules:
        count += 1
        try:
            with all_or_nothing():
                if name.startswith(DILL):
                    _unpickle(name.removeprefix(DILL))
                else:
                    _import(name)
        except BaseException as error:
            log.error("the agent module %s cannot be imported", name, exc_info=True)
            broken.append(BrokenModule(name, f"{type(error).__name__}: {error}".partition("\n")[0][:300]))
    if len(broken) == count:
        reasons = "; ".join(f"{each.module}: {each.error}" for each in broken) or "agents.modules is empty"
        raise StartError(f"no agent module could be imported: {reasons}")
    return broken


def _import(name: str) -> None:
    """Import a module, and see to it that it is the one that was meant (``ImportError``)."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if ours := searching.shadowed(name, None):
            raise ImportError(
                f"{error}; {ours} is not imported, since another module has that name: rename it"
            ) from error
        raise
    if not (ours := searching.shadowed(name, module)):
        return
    taken = getattr(module, "__file__", None) or "what is built into Python"
    if name.partition(".")[0] != searching.PROGRAM:
        raise ImportError(f"{taken} goes before {ours} in the working directory: rename that")
    log.warning("the agent module %s is %s, which goes before %s in the working directory", name, taken, ours)


def _unpickle(path: str) -> None:
    for name, (function, hints) in undump(path).items():
        define(function, name, hints=hints)


def place(definitions: Iterable[Definition], pools: dict[str, list[str]]) -> dict[str, str]:
    """The pool of every agent by its name: the one that it names, else the first with a pattern that matches.

    ``StartError`` for a pool that does not exist.
    """
    placed: dict[str, str] = {}
    for each in definitions:
        wanted = each.settings.pool
        if wanted and wanted not in pools:
            known = ", ".join(pools)
            raise StartError(f"agent {each.name!r} asks for the pool {wanted!r}; the pools are: {known}", True)
        found = wanted or next(
            (name for name, patterns in pools.items() if any(fnmatchcase(each.name, one) for one in patterns)), ""
        )
        if found:
            placed[each.name] = found
        else:
            what = "agent %s matches no pool's patterns and is not served"
            log.warning(what, each.name, extra={"agent": each.name})
    return placed


def _agent_spans(spans: Spans | None) -> AgentSpans | None:
    """What makes the calls' spans, where spans are on."""
    if spans is None:
        return None
    from .spans import AgentSpans

    return AgentSpans(spans)


class Worker:
    """One worker process."""

    def __init__(self, launch: Launch, board: Scoreboard) -> None:
        self._launch = launch
        self._board = board
        self._stop = asyncio.Event()
        self._grants = Tasks(log, "applying a grant of database connections")
        self._spans: Spans | None = None
        self._agents: dict[str, Definition] = {}
        self._infos: list[AgentInfo] = []
        self._broken: list[BrokenModule] = []
        self._code = ""
        self._refused: StartError | None = None

    def load(self) -> None:
        """Import the agents' modules. The loop must not run yet: at its import a module may well run one of its own
        (``asyncio.run``). What is wrong with them is told by ``run``.
        """
        self._board.turn(time.monotonic(), 0.0)
        # Before the agents' modules, which may look for it.
        self._spans = open_spans(os.environ, self._launch.name)
        try:
            self._agents, self._infos, self._broken = self._load()
            self._code = fingerprint(name.removeprefix(DILL) for name in self._launch.modules if name.startswith(DILL))
        except StartError as error:
            self._refused = error

    async def run(self) -> int:
        launch = self._launch
        loop = asyncio.get_running_loop()
        context = sockets.context()
        answers = sockets.Outbox(loop, sockets.connect_push(context, launch.answer_address))
        self._outbox = answers
        loop.add_signal_handler(signal.SIGTERM, self._asked_to_leave)
        self._turn(loop, time.monotonic())
        try:
            if self._refused is not None:
                raise self._refused
            self._database = Database(launch.database, f"penstock {launch.name}/{launch.generation}", self._released)
            await self._hooks(start_hooks, "start")
        except StartError as error:
            self._say(Failed(launch.name, launch.generation, error.reason, error.configuration))
            await self._flush(answers, context)
            return 1
        threads = Threads(launch.threads, "penstock-agent")
        identity = (launch.name, launch.generation)
        nested = Nested(loop, identity, answers, threads, launch.max_item)
        self._calls = Calls(
            loop=loop,
            worker=identity,
            agents=self._agents,
            steps=Steps(self._board, _agent_spans(self._spans), nested),
            streams=Streams(loop, identity, answers, launch.max_item),
            database=self._database,
            threads=threads,
            outbox=answers,
        )
        work = sockets.Inbox(loop, sockets.connect_pull(context, launch.work_address), self._calls.receive)
        control = sockets.Inbox(loop, sockets.connect_pull(context, launch.control_address), self._controlled)
        control.open()
        work.open()
        # What is loaded now lives as long as the process: out of the collector's sight it also stays shared memory.
        gc.collect()
        gc.freeze()
        name, generation = launch.name, launch.generation
        self._say(
            Ready(
                worker=name,
                generation=generation,
                protocol=PROTOCOL,
                pid=os.getpid(),
                agents=self._infos,
                broken=self._broken,
                code=self._code,
            )
        )
        if launch.database is not None:
            self._report(loop)
        await self._stop.wait()
        work.close()
        control.close()
        await self._shut_down(answers, threads, context)
        return 0

    def _load(self) -> tuple[dict[str, Definition], list[AgentInfo], list[BrokenModule]]:
        if unforked:
            names = ", ".join(unforked)
            log.warning(
                "threads that agents.preload started do not run in workers: %s; start them with @on_start",
                names,
            )
        broken = load(self._launch.modules)
        placed = place(registry.values(), self._launch.pools)
        mine = {name: registry[name] for name, pool in placed.items() if pool == self._launch.pool}
        return mine, [describe(each, self._launch.pool) for each in mine.values()], broken

    async def _hooks(self, hooks: list[Any], moment: str) -> None:
        for hook in hooks:
            name = f"{getattr(hook, '__module__', '')}.{getattr(hook, '__qualname__', hook)}"
            if moment == "start":
                self._say(Starting(self._launch.name, self._launch.generation, f"the start hook {name}"))
                await self._deliver()  # before a hook that may block the loop
            try:
                result = hook()
                if inspect.isawaitable(result):
                    await result
            except BaseException as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # the hooks' time is over
                log.error("the %s hook %s failed", moment, name, exc_info=True)
                if moment == "start":
                    raise StartError(f"the start hook {name} failed: {type(error).__name__}: {error}") from error

    def _turn(self, loop: asyncio.AbstractEventLoop, asked: float) -> None:
        now = time.monotonic()
        self._board.turn(now, max(0.0, now - asked))
        loop.call_later(HEARTBEAT, self._turn, loop, now + HEARTBEAT)

    def _report(self, loop: asyncio.AbstractEventLoop) -> None:
        pools = self._database.statistics()
        if pools:
            self._say(Statistics(self._launch.name, self._launch.generation, pools))
        loop.call_later(REPORT, self._report, loop)

    def _controlled(self, header: bytes, body: bytes) -> None:
        try:
            message = frames.decode_to_worker(header)
        except frames.DecodeError as error:
            log.error("dropped a message on the control channel: %s", error)
            return
        if isinstance(message, Cancel):
            self._calls.cancel(message.call, message.reason)
        elif isinstance(message, More):
            self._calls.more(message.call, message.credit)
        elif isinstance(message, Part | Reply):
            self._calls.replied(message, body)
        elif isinstance(message, Grant):
            self._grants.start(self._database.grant(message.kind, message.connections))
        elif isinstance(message, Stop):
            self._stop.set()

    def _released(self, kind: str, connections: int) -> None:
        self._say(Released(self._launch.name, self._launch.generation, kind, connections))

    def _asked_to_leave(self) -> None:
        log.info("%s was asked to end from outside, and asks to be replaced", self._launch.name)
        self._say(Leaving(self._launch.name, self._launch.generation))

    def _say(self, message: FromWorker) -> None:
        self._outbox.send(frames.encode(message), b"")

    async def _deliver(self) -> None:
        """Give ZeroMQ what was said; a socket that was made just now may need a moment until it takes it."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + 1.0
        await asyncio.sleep(0)
        while self._outbox.waiting and loop.time() < ends:
            await asyncio.sleep(sockets.Outbox.RETRY)

    async def _flush(self, answers: sockets.Outbox, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Give ZeroMQ's thread the time to hand over what was said last; the process ends right after."""
        await self._deliver()
        answers.close(linger=1000)
        context.term()

    async def _shut_down(
        self,
        answers: sockets.Outbox,
        threads: Threads,
        context: zmq.Context[zmq.Socket[bytes]],
    ) -> None:
        try:
            async with asyncio.timeout(HOOK_PATIENCE):
                await self._hooks(stop_hooks, "stop")
        except TimeoutError:
            log.error("the stop hooks took longer than %g s", HOOK_PATIENCE)
        threads.close()
        await self._database.close()
        if self._spans is not None:
            await self._spans.close()
        await self._flush(answers, context)
