"""The one bridge between the core, which decides, and the I/O around it.

Towards the front: ``lookup`` an agent, ``submit`` a ticket, await its ``future``, ``withdraw`` it if the client goes.
Towards the fleet: workers ``join``, ``drain`` and ``leave``, answers come in by ``answered``; what the fleet has to do
in turn it is told through ``Listener``. Everything runs on the loop's thread, and nothing here waits for anything: each
event is handled to its end, so that the core's invariants hold between any two events.

Booking a call, encoding and sending it are one step: it has happened, or it is taken back. A request at which a step
raises, which is a fault of ours, ends by itself (``_fail``), and what waits behind it goes on.

The request path makes one ticket and one future; it makes no task and no timer. All deadlines share one timer, which
is set for the earliest tick of the core's wheel.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Protocol

from penstock.ipc.log import call_fields
from penstock.ipc.messages import AgentInfo, Answer, Call, Outcome

from ..core.backlog import LOW_BYTES, Marks
from ..core.comebacks import Comeback, Hold
from ..core.dispatch import Balance, Block, Worker
from ..core.requests import Agent, Problem, Refusal, Request, State
from ..core.scheduler import Due, Overdue, Scheduler, Undecided
from ..core.throttle import Policy
from ..host.cgroups import processors
from .holding import Holding
from .pressure import INTERVAL, Pressure

log = logging.getLogger("penstock.engine")

STALLED_RETRY: Final = 0.005
"""Seconds until a worker whose socket took no message is tried again."""


STUCK: Final = 5.0
"""Seconds that a deadline may be acted on late before something is wrong with the dispatcher."""


class WorkerLink(Protocol):
    """What the engine needs of a worker's channel."""

    def send(self, call: Call, body: bytes, /) -> None:
        """Send a call, or raise what is wrong with it. If there is no way to the worker, ``refused_by`` is called."""

    def cancel(self, call_id: int, reason: str) -> None:
        """Have the worker stop working on a call. ``reason``: ``deadline`` or ``gone``."""


class Listener(Protocol):
    """Whom the engine tells what it cannot do itself about one worker."""

    def drained(self) -> None:
        """The worker drains, and has no call left."""

    def eased(self) -> None:
        """The worker is to be told a smaller share of connections, and has a call less."""

    def stalled(self, ticket: Ticket) -> None:
        """A call did not yield within half the grace: the worker may have to be killed soon."""

    def overdue(self, ticket: Ticket) -> None:
        """A call did not yield within the grace: the worker has to be killed."""


class Observer(Protocol):
    """Who counts what becomes of requests. Called on the request path: it is quick and raises nothing."""

    def responded(self, agent: str, status: int) -> None:
        """A request for an agent that exists was answered with this HTTP status; 499 if its client had gone before."""

    def answered(self, ticket: Ticket, worker: Worker, now: float) -> None:
        """A worker has ended a call for which somebody waits. ``now``: monotonic seconds."""

    def ended(self, ticket: Ticket) -> None:
        """A request that was accepted has ended in any other way than by a worker's answer."""

    def expired(self, agent: str, stage: str) -> None:
        """A deadline was over, or could not be met: at ``admission``, in the ``queue``, or with the ``agent``."""

    def waited(self, seconds: float) -> None:
        """A request has got a database connection that it waited for in the queue."""


class Unobserved:
    """The observer where nobody counts."""

    def responded(self, agent: str, status: int) -> None:
        pass

    def answered(self, ticket: Ticket, worker: Worker, now: float) -> None:
        pass

    def ended(self, ticket: Ticket) -> None:
        pass

    def expired(self, agent: str, stage: str) -> None:
        pass

    def waited(self, seconds: float) -> None:
        pass


class Ticket(Request):
    """A request together with what only the I/O around the core needs."""

    __slots__ = (
        "answer",
        "body",
        "failed",
        "future",
        "headers",
        "refusal",
        "request_id",
        "result",
        "traceparent",
        "tracestate",
    )

    def __init__(
        self,
        agent: Agent,
        now: float,
        deadline: float,
        *,
        request_id: str,
        body: bytes,
        headers: dict[str, str] | None,
        priority: int,
        client: str,
        affinity: str,
        future: asyncio.Future[None],
        own_deadline: bool = False,
        rank: int | None = None,
        trace: tuple[str, str] = ("", ""),
    ) -> None:
        """``rank``: as ``Engine.screen`` gave it; None: the urgency alone counts."""
        super().__init__(
            agent,
            now,
            deadline,
            priority=priority,
            size=len(body),
            client=client,
            affinity=affinity,
            own_deadline=own_deadline,
        )
        if rank is not None:
            self.rank = rank
        self.request_id = request_id
        self.body = body
        self.headers = headers
        self.future = future
        self.traceparent, self.tracestate = trace
        self.answer: Answer | None = None
        self.result = b""
        self.refusal: Refusal | None = None
        self.failed = False
        """The supervisor failed at it, and its log has that: there is neither an answer nor a refusal."""

    @property
    def queued(self) -> float:
        """Seconds until a worker began with it; of one that has no answer, until it was sent to one, or until now."""
        began_at = self.answer.taken_at if self.answer is not None else self.dispatched_at or time.monotonic()
        return began_at - self.arrived_at


@dataclass(slots=True)
class Listing:
    """An agent in the catalogue: what it is to the core, and how its worker describes it."""

    agent: Agent
    info: AgentInfo


class Engine:
    """Runs the core against the loop's clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, observer: Observer | None = None) -> None:
        """``observer``: who counts; None: nobody."""
        self._loop = loop
        self.observer: Observer = observer or Unobserved()
        self.scheduler = Scheduler(Marks(), 1.0, Policy(), processors(), random.Random())
        self.catalogue: dict[str, Listing] = {}
        self.closed = ""
        """Why no request is taken any more; empty while requests are taken."""
        self.timeout = 30.0
        self._links: dict[Worker, WorkerLink] = {}
        self._listeners: dict[Worker, Listener] = {}
        self._offers: dict[Worker, frozenset[str]] = {}
        """The agents that each worker has, whether it may be asked for them now or not."""
        self._draining: set[Worker] = set()
        self._pools: tuple[str, ...] = ()
        self._heard: set[str] = set()
        self._hopeless: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._armed = math.inf
        self._idle: asyncio.Future[None] | None = None
        self._pressure = Pressure()
        self._revealing = False
        self._holding = Holding(loop)
        self.paced = 0
        """Refusals that were held back, since the start."""
        self.refused: Counter[tuple[str, int]] = Counter()
        """Requests refused under load since the start, by reason and urgency."""
        self._forgotten: set[str] = set()
        """Pools where at the last look something waited that could have run."""

    # Arrangement

    def arrange(
        self, balances: dict[str, str], marks: Marks, timeout: float, grace: float, policy: Policy | None = None
    ) -> None:
        """Take the settings of a configuration, at the start or at a reload.

        ``balances``: every pool's policy; ``timeout``: seconds for agents that state none; ``grace``: seconds past the
        deadline until a worker that does not yield is killed; ``policy``: the throttle's.
        """
        self.timeout = timeout
        self._pools = tuple(balances)
        pools = {name: Balance(text) for name, text in balances.items()}
        self.scheduler.arrange(pools, marks, grace, policy or Policy())
        for listing in self.catalogue.values():
            listing.agent.timeout = timeout if listing.info.timeout is None else listing.info.timeout

    @property
    def ready(self) -> str:
        """Empty while requests are being taken; else why not."""
        if self.closed:
            return self.closed
        if not any(worker.serving and worker not in self._draining for worker in self._links):
            return "starting: no worker is ready yet" if not self._heard else "no worker is running"
        if self.scheduler.backlog.refusing:
            return "over the high-water mark"
        return ""

    # Workers

    def join(self, worker: Worker, link: WorkerLink, agents: Collection[AgentInfo], listener: Listener) -> None:
        """A worker is ready, and calls can be sent to it. ``listener`` is told about this one from now on."""
        self._links[worker] = link
        self._listeners[worker] = listener
        self._offers[worker] = frozenset(info.name for info in agents)
        for info in agents:
            self._list(info)
        self._heard.add(worker.pool)
        self.scheduler.join(worker)
        self._prune(worker.pool)
        self.pump(worker.pool)

    def _list(self, info: AgentInfo) -> None:
        listing = self.catalogue.get(info.name)
        if listing is None or listing.agent.pool != info.pool:
            listing = self.catalogue[info.name] = Listing(Agent(info.name, info.pool), info)
        listing.info = info
        agent = listing.agent
        agent.sync = info.kind == "sync"
        agent.idempotent = info.idempotent
        agent.timeout = self.timeout if info.timeout is None else info.timeout
        agent.priority = info.priority
        agent.max_concurrency = info.max_concurrency
        agent.database = info.database
        agent.connection = info.connection

    def _prune(self, pool: str) -> None:
        """Drop the agents of a pool that none of its serving workers offers any more (a reload took them away)."""
        serving = [worker for worker in self._links if worker.pool == pool and worker not in self._draining]
        if not serving:
            return
        offered = frozenset[str]().union(*(self._offers[worker] for worker in serving))
        for name in [name for name, each in self.catalogue.items() if each.agent.pool == pool and name not in offered]:
            agent = self.catalogue.pop(name).agent
            refusal = Refusal(Problem.UNAVAILABLE, f"the agent {name!r} was removed by a reload")
            self._refuse_all(self.scheduler.forget(agent), refusal)

    def drain(self, worker: Worker) -> bool:
        """Give a worker no new calls. True: it has none already; else ``Listener.drained`` tells when."""
        # The last workers of a pool that closes do what waits for it, and nothing new comes.
        if not worker.calls or not self.scheduler.is_closing(worker.pool):
            worker.block(Block.DRAINING)
        self._draining.add(worker)
        self._prune(worker.pool)
        return not worker.calls

    def leave(self, worker: Worker, begun: Collection[int], blame: bool) -> None:
        """A worker's process is gone. ``begun`` are the calls that it had begun, ``blame`` is whether it died by
        itself.
        """
        now = time.monotonic()
        del self._links[worker], self._listeners[worker], self._offers[worker]
        self._draining.discard(worker)
        for fate in self.scheduler.leave(worker, begun, blame, now):
            if fate.end is not None:
                ticket = _ticket(fate.request)
                log.warning("%s: %s", fate.end.problem.value, fate.end.detail, extra=_marks(ticket, worker))
                self._refuse(ticket, fate.end)
        self._prune(worker.pool)
        self.pump(worker.pool)
        self._check_idle()

    def hopeless(self, pool: str, hopeless: bool) -> None:
        """Whether none of a pool's workers can come back by itself."""
        if hopeless:
            self._hopeless.add(pool)
            refusal = Refusal(Problem.UNAVAILABLE, f"no worker of pool {pool!r} runs, and none is about to")
            self._refuse_all(self.scheduler.give_up(pool), refusal)
            self._check_idle()
        else:
            self._hopeless.discard(pool)
            self.scheduler.hope(pool)
            for worker in self._draining:
                if worker.pool == pool:
                    worker.block(Block.DRAINING)

    def close_pool(self, pool: str) -> None:
        """All workers of a pool are about to be stopped: new requests for it are refused, and what waits is done."""
        self.scheduler.close(pool)

    def forget_pool(self, pool: str) -> None:
        """There is no such pool any more, and its agents are unknown from now on."""
        for name in [name for name, listing in self.catalogue.items() if listing.agent.pool == pool]:
            agent = self.catalogue.pop(name).agent
            self._refuse_all(self.scheduler.forget(agent), Refusal(Problem.UNAVAILABLE, f"{name!r} was removed"))
        self._heard.discard(pool)
        self._hopeless.discard(pool)
        self.scheduler.hope(pool)

    # The request path

    def lookup(self, name: str) -> Listing | Refusal | None:
        """The agent of that name; None if there is none; a refusal while that cannot be known."""
        listing = self.catalogue.get(name)
        if listing is not None:
            return listing
        unheard = [pool for pool in self._pools if pool not in self._heard]
        if not unheard:
            return None
        hopeless = [pool for pool in unheard if pool in self._hopeless]
        if hopeless:
            return Refusal(Problem.UNAVAILABLE, f"the workers of pool {hopeless[0]!r} could not be started")
        return Refusal(Problem.UNAVAILABLE, f"the workers of pool {unheard[0]!r} are starting")

    def screen(
        self,
        agent: Agent,
        client: str,
        priority: int,
        *,
        seconds: float,
        own_deadline: bool,
        now: float,
        back: Comeback | None = None,
        fresh: bool = True,
    ) -> int | Refusal | Hold:
        """Whether a request is welcome, known before its body is read: its rank; else why not, or that it has to
        ``wait`` before it is told.

        ``seconds``: until its deadline; ``own_deadline``: that is the client's. ``back`` and ``fresh``: what is known
        of its connection, as ``Scheduler.screen`` has it.
        """
        verdict = self.scheduler.screen(
            agent, client, priority, left=seconds, own_deadline=own_deadline, now=now, back=back, fresh=fresh
        )
        if isinstance(verdict, Refusal):
            self._count(verdict, agent, priority)
        return verdict

    async def wait(self, hold: Hold) -> int | Refusal:
        """Hold the refusal of a request until it is its turn, and look at the request once more."""
        try:
            await self._holding.wait(hold.until)
        except asyncio.CancelledError:
            self.scheduler.release(hold)
            raise
        agent = hold.agent
        gone = self.closed
        if not gone and self.catalogue.get(agent.name) is None:
            gone = f"the agent {agent.name!r} was removed by a reload"
        if gone:
            self.scheduler.release(hold)
            return Refusal(Problem.UNAVAILABLE, gone)
        verdict = self.scheduler.again(hold, time.monotonic())
        if isinstance(verdict, Refusal):
            self.paced += 1
            self._count(verdict, agent, hold.priority)
        return verdict

    def _count(self, refusal: Refusal, agent: Agent, priority: int) -> None:
        self.refused[refusal.reason, priority] += 1
        if refusal.problem is Problem.DEADLINE_EXCEEDED:
            self.observer.expired(agent.name, "admission")

    def submit(self, ticket: Ticket) -> None:
        """Admit, and send or queue, or refuse. Either way the ticket's future is done when there is an answer."""
        if self.closed:
            self._refuse(ticket, Refusal(Problem.UNAVAILABLE, self.closed))
            return
        try:
            verdict = self.scheduler.submit(ticket, ticket.arrived_at)
        except Exception as error:
            self.scheduler.discard(ticket)
            self._fail(ticket, error, accepted=False)
            return
        if isinstance(verdict, Worker):
            self._send(ticket, verdict)
        elif verdict is not None:
            if verdict.reason:
                self.refused[verdict.reason, ticket.priority] += 1
            self._refuse(ticket, verdict)
            return
        elif not self._revealing and ticket.agent.running:
            self._reveal()
        if ticket.tick < self._armed:
            self._arm()

    def _send(self, ticket: Ticket, worker: Worker) -> None:
        """Send a call that is booked on this worker; what cannot be sent is booked nowhere any more and ends."""
        try:
            call = Call(
                ticket.call,
                ticket.agent.name,
                ticket.deadline,
                ticket.request_id,
                ticket.client,
                ticket.headers,
                ticket.traceparent,
                ticket.tracestate,
            )
            self._links[worker].send(call, ticket.body)
        except Exception as error:
            self.scheduler.discard(ticket)
            self._fail(ticket, error)

    def _fail(self, ticket: Ticket, error: BaseException | None, *, accepted: bool = True) -> None:
        """A step at a request raised. It is in no book any more, and its client is told that the fault is ours.

        ``accepted``: it waited or was sent already.
        """
        marks = call_fields(ticket.request_id, ticket.traceparent, ticket.agent.name)
        log.error("the supervisor failed at a request, which ends by itself", exc_info=error, extra=marks)
        if accepted:
            self.observer.ended(ticket)
        ticket.state = State.ENDED
        ticket.failed = True
        if not ticket.future.done():
            ticket.future.set_result(None)
        # It may have been booked on any of them.
        for worker in self._links:
            self._ease(worker)
        for worker in self._draining:
            # Later, since what waits may be about to be sent to it.
            self._loop.call_soon(self._check_drained, worker)
        self._check_idle()

    def refused_by(self, worker: Worker, calls: list[int]) -> None:
        """A worker's channel took no message.

        Credits keep it far from its mark, so its peer is gone or about to be: the calls wait for whoever is next, and
        the worker is left alone until it takes messages again or is buried.
        """
        stalled = Block.STALLED in worker.blocks
        worker.block(Block.STALLED)
        for call in calls:
            request = worker.calls.get(call)
            if request is not None and request.state is State.RUNNING:
                self.scheduler.unsend(request)
            elif request is not None:
                self.scheduler.finish(worker, call)
        self._ease(worker)
        if not stalled:
            self._loop.call_later(STALLED_RETRY, self._resume, worker)
        self.pump(worker.pool)

    def _resume(self, worker: Worker) -> None:
        """Try a worker again whose socket took no message. Whatever else blocks it still does."""
        worker.unblock(Block.STALLED)
        if worker.serving:
            self.pump(worker.pool)
        # The stall may have taken its last calls away.
        self._check_drained(worker)

    def pump(self, pool: str) -> None:
        """Send what waits and can run now."""
        queue = self.scheduler.backlog.queues.get(pool)
        if queue is None or not queue.requests:
            return
        now = time.monotonic()
        while queue.requests:
            try:
                pair = self.scheduler.next(pool, now)
            except Undecided as error:
                self._fail(_ticket(error.request), error.__cause__)
                continue
            if pair is None:
                return
            request, worker = pair
            if request.lacked_at:
                self.observer.waited(now - request.lacked_at)
                request.lacked_at = 0.0
            self._send(_ticket(request), worker)

    def _pump_all(self, last: str) -> None:
        """A call has ended in a pool, and all share the host's processors. The others go first, so that pools take
        turns where these are short.
        """
        for pool in list(self.scheduler.backlog.queues):
            if pool != last:
                self.pump(pool)
        self.pump(last)

    def answered(self, worker: Worker, answer: Answer, body: bytes) -> None:
        """A worker has ended a call."""
        request = self.scheduler.finish(worker, answer.call)
        if request is None:
            what = "dropped an answer of %s to call %d, which is not its own"
            log.debug(what, answer.worker, answer.call, extra={"worker": answer.worker})
            return
        now = time.monotonic()
        waited_for = request.state is State.RUNNING
        if waited_for:
            # First of all: the call is in no book any more, so whatever fails from here on, nobody else would answer.
            request.state = State.ENDED
            ticket = _ticket(request)
            ticket.answer = answer
            ticket.result = body
            if not ticket.future.done():
                ticket.future.set_result(None)
        if answer.outcome != Outcome.CANCELLED and answer.wall > 0.0:
            self._learn(worker, request, answer, now)
        if waited_for:
            self.observer.answered(ticket, worker, now)
        if worker.owed:
            self._ease(worker)
        if self.scheduler.backlog.requests:
            self._pump_all(worker.pool)
        if self._draining:
            self._check_drained(worker)
        if self._idle is not None:
            self._check_idle()

    def _check_drained(self, worker: Worker) -> None:
        if worker in self._draining and not worker.calls:
            worker.block(Block.DRAINING)
            self._listeners[worker].drained()

    def _ease(self, worker: Worker) -> None:
        if worker.owed:
            self._listeners[worker].eased()

    def _learn(self, worker: Worker, request: Request, answer: Answer, now: float) -> None:
        """What the call has cost."""
        pressure = self._pressure
        if pressure.is_due(now):
            self._feel(now)
        pressed = pressure.was_pressed(worker.pid, request.dispatched_at)
        cost = request.agent.cost
        # Only the first call of an agent asks for the crowd, which takes a look at all workers.
        crowd = 1.0 if cost.calls else self.scheduler.crowd(worker)
        cost.observe(answer.wall, answer.cpu, answer.db, pressed, crowd)

    def _feel(self, now: float) -> None:
        """Look at the processors. Pump all pools afterwards."""
        self._pressure.sample([worker.pid for worker in self._links], now)
        self.scheduler.leave_processors(self._pressure.left(processors()))

    def _reveal(self) -> None:
        """While something waits, see what the calls of unknown agents take of the processors, so that calls that only
        wait do not hold up others until the first of them ends.
        """
        self._revealing = False
        now = time.monotonic()
        workers = list(self._links)
        if not self.scheduler.backlog.requests or not any(each.has_unknown for each in workers):
            return
        if self._pressure.is_due(now):
            self._feel(now)
            for worker in workers:
                worker.reveal(1.0 if self._pressure.host_pressed(now) else self._pressure.rate(worker.pid), now)
            for pool in self._pools:
                self.pump(pool)
        self._revealing = True
        self._loop.call_later(INTERVAL, self._reveal)

    def withdraw(self, ticket: Ticket) -> None:
        """The client is gone."""
        if ticket.state is State.WAITING or ticket.state is State.RUNNING:
            self.observer.ended(ticket)
        worker = self.scheduler.withdraw(ticket)
        if worker is not None:
            self._cancel(ticket, worker, "gone")
            self._arm()
        self._check_idle()

    def _cancel(self, ticket: Ticket, worker: Worker, reason: str) -> None:
        self._links[worker].cancel(ticket.call, reason)

    def _refuse(self, ticket: Ticket, refusal: Refusal) -> None:
        if ticket.state is not State.NEW:
            self.observer.ended(ticket)
        elif refusal.problem is Problem.DEADLINE_EXCEEDED:
            self.observer.expired(ticket.agent.name, "admission")
        ticket.state = State.ENDED
        ticket.refusal = refusal
        if not ticket.future.done():
            ticket.future.set_result(None)

    def _refuse_all(self, requests: Collection[Request], refusal: Refusal) -> None:
        for request in requests:
            self._refuse(_ticket(request), refusal)

    # Deadlines

    def _arm(self) -> None:
        """Set the one timer for the earliest tick that has entries."""
        at = self.scheduler.wheel.next_at()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed = math.inf
        if at is not None:
            self._armed = self.scheduler.wheel.tick(at)
            self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        for due in self.scheduler.expire(time.monotonic()):
            ticket = _ticket(due.request)
            try:
                self._act_on(due, ticket)
            except Exception:
                # The deadlines of others are over, too, and those that come want the timer.
                log.exception("a deadline could not be acted on", extra={"request_id": ticket.request_id})
        self._arm()
        self._check_idle()

    def _act_on(self, due: Due, ticket: Ticket) -> None:
        if due.overdue is Overdue.FAILED:
            self._fail(ticket, due.error)
            return
        if due.overdue is Overdue.ANSWER:
            self.observer.expired(ticket.agent.name, "queue")
            self._refuse(ticket, Refusal(Problem.DEADLINE_EXCEEDED, "the deadline was over while it waited"))
            return
        if due.refusal is not None:
            self.refused[due.refusal.reason, ticket.priority] += 1
            self._refuse(ticket, due.refusal)
            return
        worker = ticket.worker
        assert worker is not None
        if due.overdue is Overdue.CANCEL:
            self.observer.expired(ticket.agent.name, "agent")
            late = "the deadline was over while it ran"
            self._refuse(ticket, Refusal(Problem.DEADLINE_EXCEEDED, late, worker=worker.name))
            self._cancel(ticket, worker, "deadline")
        elif due.overdue is Overdue.STALLED:
            self._listeners[worker].stalled(ticket)
        else:
            self._listeners[worker].overdue(ticket)

    def stuck(self) -> str:
        """Why the dispatcher does not move; empty if it does. Asked once in a while, for the watchdog.

        Two things must never last: a deadline that nobody acts on, and a request that waits while a worker could have
        it. The second is mended at the first look, and said to be stuck if it is there again at the next.
        """
        now = time.monotonic()
        due = self.scheduler.wheel.next_at()
        if due is not None and now - due > STUCK:
            return f"a deadline has been over for {now - due:.1f} s"
        forgotten = [name for name in self.scheduler.pools if self.scheduler.is_forgotten(name, now)]
        before, self._forgotten = self._forgotten, set(forgotten)
        for name in forgotten:
            if name in before:
                return f"requests wait for pool {name!r} while it has free workers"
            self.pump(name)
        return ""

    # Views

    def throttle_view(self) -> dict[str, Any]:
        """The throttle as people see it, all pools together; seconds, and totals since the start."""
        scheduler = self.scheduler
        policy = scheduler.policy
        now = time.monotonic()
        refused: Counter[str] = Counter()
        for (reason, _), count in self.refused.items():
            refused[reason] += count
        waits = [scheduler.predicted_wait(pool) for pool in self._pools]
        return {
            "enabled": policy.enabled,
            "objective": policy.objective,
            "target": policy.target,
            "delay": max(waits, default=0.0),
            "limit": sum(each.limit for each in scheduler.throttles.values()),
            "pace": {pool: each.pace for pool, each in scheduler.throttles.items()},
            "overloaded": any(each.overloaded(now) for each in scheduler.throttles.values()),
            "refused": dict(refused),
            "held": sum(each.comebacks.holding for each in scheduler.throttles.values()),
            "paced": self.paced,
        }

    def queue_view(self) -> dict[str, Any]:
        """The queue as people see it."""
        backlog = self.scheduler.backlog
        marks = backlog.marks
        waiting = [request for queue in backlog.queues.values() for request in queue]
        now = time.monotonic()
        return {
            "requests": backlog.requests,
            "bytes": backlog.bytes,
            "high_water": marks.high_water,
            "low_water": marks.low_water,
            "max_bytes": marks.max_bytes,
            "low_bytes": int(marks.max_bytes * LOW_BYTES),
            "refusing": backlog.refusing,
            "oldest": now - min((each.arrived_at for each in waiting), default=now),
            "by_agent": dict(Counter(each.agent.name for each in waiting)),
        }

    # Stopping

    def close(self, reason: str) -> None:
        """Take no new request; those that were accepted go on."""
        self.closed = reason
        self._holding.let_go()

    def idle(self) -> asyncio.Future[None]:
        """Done once nothing waits and nothing runs for a client."""
        if self._idle is None:
            self._idle = self._loop.create_future()
            self._check_idle()
        return self._idle

    def _check_idle(self) -> None:
        if self._idle is None or self._idle.done():
            return
        if not self.scheduler.backlog.requests and not self.scheduler.in_flight:
            self._idle.set_result(None)

    def cut_off_worker(self, worker: Worker, reason: str) -> int:
        """Answer every call of a worker that has no answer yet with ``unavailable``; how many there were."""
        running = [request for request in worker.calls.values() if request.state is State.RUNNING]
        self._refuse_all(running, Refusal(Problem.UNAVAILABLE, reason, worker=worker.name))
        return len(running)

    def cut_off(self, reason: str) -> int:
        """End every request that has no answer yet with ``unavailable``; how many there were."""
        refusal = Refusal(Problem.UNAVAILABLE, reason)
        waiting = self.scheduler.end_waiting()
        self._refuse_all(waiting, refusal)
        count = len(waiting)
        for worker in self._links:
            count += self.cut_off_worker(worker, reason)
        self._check_idle()
        return count


def _marks(ticket: Ticket, worker: Worker) -> dict[str, str]:
    """What a line of the log that concerns a call on a worker says of both."""
    return call_fields(ticket.request_id, ticket.traceparent, ticket.agent.name, worker.name)


def _ticket(request: Request) -> Ticket:
    assert isinstance(request, Ticket)
    return request
