"""The one bridge between the core, which decides, and the I/O around it.

Towards whoever asks: look an agent up in the ``catalogue``, ``submit`` a ticket, whose ``sink`` is told when it has
ended, and ``withdraw`` it if nobody wants the answer any more.
Towards the fleet: workers ``join``, ``drain`` and ``leave``, answers come in by ``answered``; what the fleet has to do
in turn it is told through ``Listener``. Everything runs on the loop's thread, and nothing here waits for anything: each
event is handled to its end, so that the core's invariants hold between any two events.

Booking a call, encoding and sending it are one step: it has happened, or it is taken back. A request at which a step
raises, which is a fault of ours, ends by itself (``Endings.fail``), and what waits behind it goes on.

The request path makes one ticket; it makes no task and no timer.

What the engine is made of: ``workers``, where calls can be sent; ``screening``, which is asked before a body is read;
``deadlines``, one timer for all; ``gathering``, one for batches; ``endings``, for requests that end without a worker's
answer; ``processors``, which measures. None of them knows the engine.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

from penstock.ipc.log import call_fields
from penstock.ipc.messages import AgentInfo, Answer, Batch, Call, Items, Outcome

from ..core.backlog import Watermarks
from ..core.dispatch import Balance
from ..core.gathering import together
from ..core.model import Agent, Block, State, Worker
from ..core.refusals import Problem, Refusal
from ..core.scheduler import Scheduler, Undecided
from ..core.throttle import Policy
from ..host.cgroups import processors
from .catalogue import Catalogue
from .deadlines import Deadlines
from .endings import Endings
from .gathering import Gathering
from .nested import Describe, Nested
from .ports import Listener, Observer, Unobserved, WorkerLink
from .processors import Measuring
from .screening import Screening
from .tickets import Ticket
from .workers import Workers

log = logging.getLogger("penstock.engine")

STALLED_RETRY: Final = 0.005
"""Seconds until a worker whose socket took no message is tried again."""


STUCK: Final = 5.0
"""Seconds that a deadline may be acted on late before something is wrong with the dispatcher."""


class Engine:
    """Runs the core against the loop's clock."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        observer: Observer | None = None,
        describe: Describe | None = None,
    ) -> None:
        """``observer``: who counts; None: nobody. ``describe``: makes the documents of problems that agents get who
        call others; None: they have none of their own.
        """
        self._loop = loop
        self.observer: Observer = observer or Unobserved()
        self.scheduler: Scheduler[Ticket] = Scheduler(Watermarks(), 1.0, Policy(), processors(), random.Random())
        self.catalogue = Catalogue()
        self.closed = ""
        """Why no request is taken any more; empty while requests are taken."""
        self.refused: Counter[tuple[str, int]] = Counter()
        """Requests refused under load since the start, by reason and urgency."""
        self._workers = Workers()
        self.nested = Nested(self, self._workers.links, self._pump_all, describe or _undescribed)
        self._measuring = Measuring(loop, self.scheduler, self._pump_all)
        self._gathering = Gathering(loop, self.scheduler, self.pump)
        self._endings = Endings(loop, self.scheduler, self._workers, self.observer, self.nested.close)
        self._deadlines = Deadlines(loop, self.scheduler, self._workers, self._endings, self.observer, self.refused)
        self.screening = Screening(
            loop, self.scheduler, self.catalogue, self.observer, self.refused, lambda: self.closed
        )
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
        if not self._workers.are_serving:
            return "starting: no worker is ready yet" if not self.catalogue.has_reports else "no worker is running"
        if self.scheduler.backlog.refusing:
            return "over the high-water mark"
        return ""

    # Workers

    def join(self, worker: Worker, link: WorkerLink, agents: Collection[AgentInfo], listener: Listener) -> None:
        """A worker is ready, and calls can be sent to it. ``listener`` is told about this one from now on."""
        self._workers.join(worker, link, agents, listener)
        self.catalogue.report(worker.pool, agents)
        self.scheduler.join(worker)
        self._prune(worker.pool)
        self.pump(worker.pool)

    def _prune(self, pool: str) -> None:
        """Drop the agents of a pool that none of its serving workers offers any more (a reload took them away)."""
        offered = self._workers.offered(pool)
        if offered is not None:
            self._forget(self.catalogue.prune(pool, offered), "the agent {name!r} was removed by a reload")

    def _forget(self, agents: Collection[Agent], why: str) -> None:
        """Refuse what waits for these agents, which nobody offers any more. ``why`` has a place for the name."""
        for agent in agents:
            self._endings.refuse_all(
                self.scheduler.forget(agent), Refusal(Problem.UNAVAILABLE, why.format(name=agent.name))
            )

    def drain(self, worker: Worker) -> bool:
        """Give a worker no new calls. True: it has none already; else ``Listener.drained`` tells when."""
        # The last workers of a pool that closes do what waits for it, and nothing new comes.
        if not worker.calls or not self.scheduler.is_closing(worker.pool):
            worker.block(Block.DRAINING)
        self._workers.draining.add(worker)
        self._prune(worker.pool)
        return not worker.calls

    def leave(self, worker: Worker, begun: Collection[int], blame: bool) -> None:
        """A worker's process is gone. ``begun`` are the calls that it had begun, ``blame`` is whether it died by
        itself.
        """
        now = time.monotonic()
        for parent in list(self.scheduler.calls(worker).values()):
            self.nested.close(parent)
        self._workers.leave(worker)
        for requeue in self.scheduler.leave(worker, begun, blame, now):
            if requeue.end is not None:
                ticket = requeue.request
                log.warning("%s: %s", requeue.end.problem.value, requeue.end.detail, extra=log_fields(ticket, worker))
                self._endings.refuse(ticket, requeue.end)
        self._prune(worker.pool)
        self.pump(worker.pool)
        self._endings.check_idle()

    def mark_unavailable(self, pool: str) -> None:
        """None of a pool's workers can come back by itself."""
        self.catalogue.mark_unavailable(pool)
        refusal = Refusal(Problem.UNAVAILABLE, f"no worker of pool {pool!r} is running or starting")
        self._endings.refuse_all(self.scheduler.mark_unavailable(pool), refusal)
        self._endings.check_idle()

    def mark_available(self, pool: str) -> None:
        """A worker of a pool runs, or is about to."""
        self.catalogue.mark_available(pool)
        self.scheduler.mark_available(pool)
        for worker in self._workers.draining:
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

    def submit(self, ticket: Ticket) -> None:
        """Admit, and send or queue, or refuse. Either way the ticket's sink is told once there is an outcome."""
        if self.closed and ticket.parent is None:
            self._endings.refuse(ticket, Refusal(Problem.UNAVAILABLE, self.closed))
            return
        try:
            verdict = self.scheduler.submit(ticket, ticket.arrived_at)
        except Exception as error:
            self.scheduler.discard(ticket)
            self._endings.fail(ticket, error, accepted=False)
            return
        if isinstance(verdict, Worker):
            self._send(ticket, verdict)
        elif verdict is not None:
            if verdict.reason:
                self.refused[verdict.reason, ticket.priority] += 1
            self._endings.refuse(ticket, verdict)
            return
        elif not self._measuring.reestimating and ticket.agent.running:
            self._measuring.reestimate_unmeasured()
        if ticket.agent.batching is not None and verdict is None:
            # What waits for others to go with may be complete by this one.
            self.pump(ticket.agent.pool)
        if ticket.tick < self._deadlines.armed:
            self._deadlines.arm()

    def _send(self, ticket: Ticket, worker: Worker) -> None:
        """Send a call that is booked on this worker, with those of its batch; what cannot be sent is booked nowhere any
        more and ends.
        """
        try:
            if ticket.batch is None:
                self._workers.links[worker].send(_call(ticket), ticket.body)
            else:
                self._send_batch(ticket.batch.members, worker)
        except Exception as error:
            self.scheduler.discard_all(together(ticket))
            for each in together(ticket):
                self._endings.fail(each, error)

    def _send_batch(self, tickets: Sequence[Ticket], worker: Worker) -> None:
        first = tickets[0]
        if len(tickets) == 1:
            self._workers.links[worker].send(_call(first), first.body)
        else:
            batch = Batch([_call(each) for each in tickets], [len(each.body) for each in tickets])
            self._workers.links[worker].send_batch(batch, b"".join([each.body for each in tickets]))
        waited = first.dispatched_at - min([each.arrived_at for each in tickets])
        self.observer.batched(first.agent.name, len(tickets), waited)

    def refused_by(self, worker: Worker, calls: list[int]) -> None:
        """A worker's channel took no message.

        Credits keep it far from its mark, so its peer is gone or about to be: the calls wait for whoever is next, and
        the worker is left alone until it takes messages again or is reaped.
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
        self._workers.ease(worker)
        if not stalled:
            self._loop.call_later(STALLED_RETRY, self._resume, worker)
        self.pump(worker.pool)

    def _resume(self, worker: Worker) -> None:
        """Try a worker again whose socket took no message. Whatever else blocks it still does."""
        worker.unblock(Block.STALLED)
        if worker.serving:
            self.pump(worker.pool)
        # The stall may have taken its last calls away.
        self._workers.check_drained(worker)

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
                    self._endings.fail(each, error.__cause__)
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
            self._gathering.arm()

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
        self.nested.close(ticket)
        if ticket.streamed:
            self.observer.waited_for_reader(ticket.agent.name, answer.stalled)
        if answer.outcome != Outcome.CANCELLED and answer.wall > 0.0:
            self._measuring.learn(worker, ticket, answer, now)
        if waited_for:
            self.observer.answered(ticket, worker, now)
        if worker.owed:
            self._workers.ease(worker)
        if self.scheduler.backlog.requests:
            self._pump_all(worker.pool)
        if self._workers.draining:
            self._workers.check_drained(worker)
        if self._endings.last is not None:
            self._endings.check_idle()

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
            self._workers.links[worker].allow(ticket.call_id, credit)

    def withdraw(self, ticket: Ticket) -> None:
        """The client is gone."""
        if ticket.state is State.WAITING or ticket.state is State.RUNNING:
            self.observer.ended(ticket)
        self.nested.close(ticket)
        worker = self.scheduler.withdraw(ticket)
        if worker is not None:
            self._workers.cancel(ticket, worker, "gone")
            self._deadlines.arm()
        self._endings.check_idle()

    def stuck(self) -> str:
        """Why the dispatcher does not move; empty if it does. Asked once in a while, for the watchdog.

        Two things must never last: a deadline that nobody acts on, and a request that waits while a worker could have
        it. The second is mended at the first look, and said to be stuck if it is there again at the next.
        """
        now = time.monotonic()
        due_at = self.scheduler.wheel.next_at()
        if due_at is not None and now - due_at > STUCK:
            return f"a deadline expired, and was not handled, for {now - due_at:.1f} s"
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
        self.screening.let_go()

    def idle(self) -> asyncio.Future[None]:
        """Done once nothing waits and nothing runs for a client."""
        return self._endings.idle()

    def cut_off_worker(self, worker: Worker, reason: str) -> int:
        """Answer every call of a worker that has no answer yet with ``unavailable``; how many there were."""
        return self._endings.cut_off_worker(worker, reason)

    def cut_off(self, reason: str) -> int:
        """End every request that has no answer yet with ``unavailable``; how many there were."""
        return self._endings.cut_off(reason)


def _undescribed(
    name: str, detail: str, request_id: str, *, agent: str = "", worker: str = "", status: int = 0
) -> tuple[int, bytes]:
    return status or 500, b""


def _call(ticket: Ticket) -> Call:
    return Call(
        ticket.call_id,
        ticket.agent.name,
        ticket.deadline,
        ticket.request_id,
        ticket.client,
        ticket.headers,
        ticket.traceparent,
        ticket.tracestate,
        None,
        ticket.events,
    )


def log_fields(ticket: Ticket, worker: Worker) -> dict[str, str]:
    """What a line of the log that concerns a call on a worker says of both."""
    return call_fields(ticket.request_id, ticket.traceparent, ticket.agent.name, worker.name)
