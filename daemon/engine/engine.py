"""The one bridge between the core, which decides, and the I/O around it.

Towards whoever asks: look an agent up in the ``catalogue``, ``submit`` a ticket, whose ``sink`` is told when it has
ended, and ``withdraw`` it if nobody wants the answer any more.
Towards the fleet: workers ``join``, ``drain`` and ``leave``, answers come in by ``answered``; what the fleet has to do
in turn it is told through ``Listener``. Everything runs on the loop's thread, and nothing here waits for anything: each
event is handled to its end, so that the core's invariants hold between any two events.

Booking a call, encoding and sending it are one step: it has happened, or it is taken back. A request at which a step
raises, which is a fault of ours, ends by itself (``_fail``), and what waits behind it goes on.

The request path makes one ticket; it makes no task and no timer. All deadlines share one timer, which
is set for the earliest tick of the core's wheel.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

from penstock.ipc.log import call_fields
from penstock.ipc.messages import AgentInfo, Answer, Batch, Call, Items, Outcome

from ..core.backlog import Watermarks
from ..core.comebacks import Hold
from ..core.dispatch import Balance
from ..core.model import Agent, Block, State, Worker
from ..core.refusals import Comeback, Problem, Refusal
from ..core.scheduler import Escalation, Scheduler, Step, Undecided, together
from ..core.throttle import Policy
from ..host.cgroups import processors
from .catalogue import Catalogue
from .holding import Holding
from .ports import Listener, Observer, Unobserved, WorkerLink
from .processors import Measuring
from .tickets import Failed, Ticket

log = logging.getLogger("penstock.engine")

STALLED_RETRY: Final = 0.005
"""Seconds until a worker whose socket took no message is tried again."""


STUCK: Final = 5.0
"""Seconds that a deadline may be acted on late before something is wrong with the dispatcher."""


class Engine:
    """Runs the core against the loop's clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, observer: Observer | None = None) -> None:
        """``observer``: who counts; None: nobody."""
        self._loop = loop
        self.observer: Observer = observer or Unobserved()
        self.scheduler: Scheduler[Ticket] = Scheduler(Watermarks(), 1.0, Policy(), processors(), random.Random())
        self.catalogue = Catalogue()
        self.closed = ""
        """Why no request is taken any more; empty while requests are taken."""
        self._links: dict[Worker, WorkerLink] = {}
        self._listeners: dict[Worker, Listener] = {}
        self._offers: dict[Worker, frozenset[str]] = {}
        """The agents that each worker has, whether it may be asked for them now or not."""
        self._draining: set[Worker] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._armed = math.inf
        self._gather_timer: asyncio.TimerHandle | None = None
        self._gathers_until = math.inf
        self._idle: asyncio.Future[None] | None = None
        self._measuring = Measuring(loop, self.scheduler, self._pump_all)
        self._holding = Holding(loop)
        self.paced = 0
        """Refusals that were held back, since the start."""
        self.refused: Counter[tuple[str, int]] = Counter()
        """Requests refused under load since the start, by reason and urgency."""
        self.streams = 0
        """Streamed answers that are being sent now."""
        self._forgotten: set[str] = set()
        """Pools where at the last look something waited that could have run."""

    # Settings

    def configure(
        self, balances: dict[str, str], marks: Watermarks, timeout: float, grace: float, policy: Policy | None = None
    ) -> None:
        """Take the settings of a configuration, at the start or at a reload.

        ``balances``: every pool's policy; ``timeout``: seconds for agents that state none; ``grace``: seconds past the
        deadline until a worker that does not yield is killed; ``policy``: the throttle's.
        """
        self.catalogue.configure(balances, timeout)
        pools = {name: Balance(text) for name, text in balances.items()}
        self.scheduler.configure(pools, marks, grace, policy or Policy())

    @property
    def ready(self) -> str:
        """Empty while requests are being taken; else why not."""
        if self.closed:
            return self.closed
        if not any(worker.serving and worker not in self._draining for worker in self._links):
            return "starting: no worker is ready yet" if not self.catalogue.has_reports else "no worker is running"
        if self.scheduler.backlog.refusing:
            return "over the high-water mark"
        return ""

    # Workers

    def join(self, worker: Worker, link: WorkerLink, agents: Collection[AgentInfo], listener: Listener) -> None:
        """A worker is ready, and calls can be sent to it. ``listener`` is told about this one from now on."""
        self._links[worker] = link
        self._listeners[worker] = listener
        self._offers[worker] = frozenset(info.name for info in agents)
        worker.batches = {info.name: info.batch for info in agents if info.batch}
        self.catalogue.report(worker.pool, agents)
        self.scheduler.join(worker)
        self._prune(worker.pool)
        self.pump(worker.pool)

    def _prune(self, pool: str) -> None:
        """Drop the agents of a pool that none of its serving workers offers any more (a reload took them away)."""
        serving = [worker for worker in self._links if worker.pool == pool and worker not in self._draining]
        if serving:
            offered = frozenset[str]().union(*(self._offers[worker] for worker in serving))
            self._forget(self.catalogue.prune(pool, offered), "the agent {name!r} was removed by a reload")

    def _forget(self, agents: Collection[Agent], why: str) -> None:
        """Refuse what waits for these agents, which nobody offers any more. ``why`` has a place for the name."""
        for agent in agents:
            self._refuse_all(self.scheduler.forget(agent), Refusal(Problem.UNAVAILABLE, why.format(name=agent.name)))

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
        for requeue in self.scheduler.leave(worker, begun, blame, now):
            if requeue.end is not None:
                ticket = requeue.request
                log.warning("%s: %s", requeue.end.problem.value, requeue.end.detail, extra=log_fields(ticket, worker))
                self._refuse(ticket, requeue.end)
        self._prune(worker.pool)
        self.pump(worker.pool)
        self._check_idle()

    def mark_unavailable(self, pool: str) -> None:
        """None of a pool's workers can come back by itself."""
        self.catalogue.mark_unavailable(pool)
        refusal = Refusal(Problem.UNAVAILABLE, f"no worker of pool {pool!r} runs, and none is about to")
        self._refuse_all(self.scheduler.mark_unavailable(pool), refusal)
        self._check_idle()

    def mark_available(self, pool: str) -> None:
        """A worker of a pool runs, or is about to."""
        self.catalogue.mark_available(pool)
        self.scheduler.mark_available(pool)
        for worker in self._draining:
            if worker.pool == pool:
                worker.block(Block.DRAINING)

    def close_pool(self, pool: str) -> None:
        """All workers of a pool are about to be stopped: new requests for it are refused, and what waits is done."""
        self.scheduler.close(pool)

    def forget_pool(self, pool: str) -> None:
        """There is no such pool any more, and its agents are unknown from now on."""
        self._forget(self.catalogue.forget(pool), "{name!r} was removed")
        self.scheduler.mark_available(pool)

    # The request path

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
        """Admit, and send or queue, or refuse. Either way the ticket's sink is told once there is an outcome."""
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
        elif not self._measuring.reestimating and ticket.agent.running:
            self._measuring.reestimate_unmeasured()
        if ticket.agent.batching is not None and verdict is None:
            # What waits for others to go with may be complete by this one.
            self.pump(ticket.agent.pool)
        if ticket.tick < self._armed:
            self._arm()

    def _send(self, ticket: Ticket, worker: Worker) -> None:
        """Send a call that is booked on this worker, with those of its batch; what cannot be sent is booked nowhere any
        more and ends.
        """
        try:
            if ticket.batch is None:
                self._links[worker].send(_call(ticket), ticket.body)
            else:
                self._send_batch(ticket.batch.members, worker)
        except Exception as error:
            self.scheduler.discard_all(together(ticket))
            for each in together(ticket):
                self._fail(each, error)

    def _send_batch(self, tickets: Sequence[Ticket], worker: Worker) -> None:
        first = tickets[0]
        if len(tickets) == 1:
            self._links[worker].send(_call(first), first.body)
        else:
            batch = Batch([_call(each) for each in tickets], [len(each.body) for each in tickets])
            self._links[worker].send_batch(batch, b"".join([each.body for each in tickets]))
        waited = first.dispatched_at - min([each.arrived_at for each in tickets])
        self.observer.batched(first.agent.name, len(tickets), waited)

    def _fail(self, ticket: Ticket, error: BaseException | None, *, accepted: bool = True) -> None:
        """A step at a request raised. It is in no book any more, and its client is told that the fault is ours.

        ``accepted``: it waited or was sent already.
        """
        fields = call_fields(ticket.request_id, ticket.traceparent, ticket.agent.name)
        log.error("the supervisor failed at a request, which ends by itself", exc_info=error, extra=fields)
        if accepted:
            self.observer.ended(ticket)
        ticket.end(Failed())
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
        held = self.scheduler.calls(worker)
        for call in calls:
            request = held.get(call)
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
                for each in together(error.request):
                    self._fail(each, error.__cause__)
                continue
            if pair is None:
                break
            ticket, worker = pair
            for each in together(ticket) if ticket.agent.connection else ():
                if each.lacked_at:
                    self.observer.waited(now - each.lacked_at)
                    each.lacked_at = 0.0
            self._send(ticket, worker)
        if self.scheduler.gathering:
            self._gather()

    def _gather(self) -> None:
        """Set the one timer for what waits for others to go with, for the first moment at which it waits no longer."""
        until = min(self.scheduler.gathering.values(), default=math.inf)
        if until >= self._gathers_until:
            return  # by then it is set again
        if self._gather_timer is not None:
            self._gather_timer.cancel()
        self._gathers_until = until
        self._gather_timer = self._loop.call_later(max(0.0, until - time.monotonic()), self._gathered)

    def _gathered(self) -> None:
        self._gather_timer, self._gathers_until = None, math.inf
        # What is due within the millisecond goes, too: the loop's timers know no less.
        for pool in self.scheduler.gathered(time.monotonic() + 0.001):
            self.pump(pool)
        self._gather()

    def _pump_all(self, last: str = "") -> None:
        """Pump all pools, since they share the host's processors. The one where a call has ended goes ``last``, so that
        pools take turns where processors are short.
        """
        for pool in list(self.scheduler.backlog.queues):
            if pool != last:
                self.pump(pool)
        self.pump(last)

    def answered(self, worker: Worker, answer: Answer, body: bytes) -> None:
        """A worker has ended a call."""
        ticket = self.scheduler.finish(worker, answer.call)
        if ticket is None:
            what = "dropped an answer of %s to call %d, which is not its own"
            log.debug(what, answer.worker, answer.call, extra={"worker": answer.worker})
            return
        now = time.monotonic()
        waited_for = ticket.state is State.RUNNING
        if waited_for:
            # First of all: the call is in no book any more, so whatever fails from here on, nobody else would answer.
            ticket.end(answer, body)
        if ticket.streamed:
            self.observer.waited_for_reader(ticket.agent.name, answer.stalled)
        if answer.outcome != Outcome.CANCELLED and answer.wall > 0.0:
            self._measuring.learn(worker, ticket, answer, now)
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

    def items(self, worker: Worker, items: Items, body: bytes) -> None:
        """Part of a call's streamed result has come."""
        ticket = self.scheduler.calls(worker).get(items.call)
        if ticket is None or ticket.state is not State.RUNNING:
            return  # nobody waits for it any more, which the worker is being told
        ticket.streamed = True
        if items.count:
            self.observer.streamed(ticket.agent.name, items.count)
        ticket.sink.items(ticket, body, items.head)

    def allow(self, ticket: Ticket, credit: int) -> None:
        """Let the call's worker send so many bytes more of its stream."""
        worker = ticket.worker
        if ticket.state is State.RUNNING and worker is not None:
            self._links[worker].allow(ticket.call, credit)

    def _check_drained(self, worker: Worker) -> None:
        if worker in self._draining and not worker.calls:
            worker.block(Block.DRAINING)
            self._listeners[worker].drained()

    def _ease(self, worker: Worker) -> None:
        if worker.owed:
            self._listeners[worker].eased()

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
        ticket.end(refusal)

    def _refuse_all(self, tickets: Collection[Ticket], refusal: Refusal) -> None:
        for ticket in tickets:
            self._refuse(ticket, refusal)

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
            ticket = due.request
            try:
                self._act_on(due, ticket)
            except Exception:
                # The deadlines of others are over, too, and those that come want the timer.
                log.exception("a deadline could not be acted on", extra={"request_id": ticket.request_id})
        self._arm()
        self._check_idle()

    def _act_on(self, due: Escalation[Ticket], ticket: Ticket) -> None:
        if due.step is Step.FAILED:
            self._fail(ticket, due.error)
            return
        if due.step is Step.ANSWER:
            self.observer.expired(ticket.agent.name, "queue")
            self._refuse(ticket, Refusal(Problem.DEADLINE_EXCEEDED, "the deadline was over while it waited"))
            return
        if due.refusal is not None:
            self.refused[due.refusal.reason, ticket.priority] += 1
            self._refuse(ticket, due.refusal)
            return
        worker = ticket.worker
        assert worker is not None
        if due.step is Step.CANCEL:
            self.observer.expired(ticket.agent.name, "agent")
            late = "the deadline was over while it ran"
            self._refuse(ticket, Refusal(Problem.DEADLINE_EXCEEDED, late, worker=worker.name))
            self._cancel(ticket, worker, "deadline")
        elif due.step is Step.STALLED:
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
        running = [request for request in self.scheduler.calls(worker).values() if request.state is State.RUNNING]
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


def _call(ticket: Ticket) -> Call:
    return Call(
        ticket.call,
        ticket.agent.name,
        ticket.deadline,
        ticket.request_id,
        ticket.client,
        ticket.headers,
        ticket.traceparent,
        ticket.tracestate,
        None,
        ticket.media_type,
    )


def log_fields(ticket: Ticket, worker: Worker) -> dict[str, str]:
    """What a line of the log that concerns a call on a worker says of both."""
    return call_fields(ticket.request_id, ticket.traceparent, ticket.agent.name, worker.name)
