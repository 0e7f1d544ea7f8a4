"""The whole of the request path's decisions in one object: what happens to a request, from admission to its end.

It puts together what the other modules of this package decide one by one: the backlog (what may wait and in which
order), the pools (who gets it), the wheel (when it is over). The shell calls it with every event and carries out what
it returns; nothing here sends, waits or logs.

The object has three layers, each a class that knows only those below it: ``books.Books`` is what there is and the
settings, ``screening.Screening`` decides before a request has a body, ``Scheduler`` does the rest. They inherit from
each other, since a call handed on to another object at each step would cost the request path more.

What is decided of one request must not touch the others. So where a decision raises, which is a fault of ours, that
request is taken out of every book and the shell is told (``Undecided``, ``Step.FAILED``): it ends, and the next one
has its turn.

A request that another's call asks for (``Request.depth`` above 1) was let in with that one. It waits for as long as its
deadline allows, before all others of its urgency, and the deeper ones first, so that what was begun ends first.

Two invariants keep the calls cheap:

* *Nothing waits that could run.* After every event that frees a credit the shell calls ``next`` until it returns
  None. So a new request for which a worker is free may go at once: whoever waits has found none. There is one
  exception. Short calls go past one that waits for a processor, since they fit in beside what runs; but they take its
  processor in the end, and clients who ask again as soon as they are answered would all come to wait for what is
  longer. So once much waits (``PASSING``) the next free processor is kept for the first that waits for one
  (``Queue.kept_for``), and what computes and comes after it waits, too. Long calls are always passed.
* *A request is in the wheel exactly as long as something may still have to happen to it by the clock*: until it has
  ended and its worker has given the slot back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Generic

from . import suspension
from .admission import admit, admit_child
from .backlog import Queue, Watermarks
from .books import R
from .gathering import Gathering, had_begun, together
from .model import Agent, Block, Request, State, Worker
from .refusals import Problem, Refusal
from .throttle import FLOOR, Policy

if TYPE_CHECKING:
    from random import Random

LOOK_AGAIN: Final = 0.1
"""Seconds between two checks whether a request that has waited for long should keep waiting."""

PASSING: Final = 0.3
"""Of the objective: short calls go past those that wait for a processor as long as all that waits takes no more."""

DEADLY: Final = 2
"""Workers that a request may have been at work on when they died, before it is called poison."""


class Step(Enum):
    """What is to be done about a request whose deadline has expired."""

    ANSWER = "answer"
    """It waited: tell its client."""
    SHED = "shed"
    """It waited for too long while others are turned away: its client gets the refusal that comes with it."""
    CANCEL = "cancel"
    """It runs: tell its client, and have its worker cancel the call."""
    STALLED = "stalled"
    """Its worker was told to cancel it, and half the grace is over: see what it is doing."""
    KILL = "kill"
    """Its worker was told to cancel it and did not within the grace."""
    FAILED = "failed"
    """What to do could not be decided: ``Escalation.error``. It is in no book any more."""


@dataclass(frozen=True, slots=True)
class Requeue(Generic[R]):
    """What becomes of a request whose worker died. ``end`` is None if it waits for another worker."""

    request: R
    end: Refusal | None


@dataclass(frozen=True, slots=True)
class Escalation(Generic[R]):
    """A request whose timer has fired, and what is to be done. ``refusal`` comes with ``Step.SHED``, ``error`` with
    ``Step.FAILED``.
    """

    request: R
    step: Step
    refusal: Refusal | None = None
    error: Exception | None = None


class Undecided(Exception, Generic[R]):
    """A decision about a waiting request raised; its cause is what was raised. The request is in no book any more, nor
    are those that were to go ``together`` with it.
    """

    def __init__(self, request: R) -> None:
        super().__init__("a decision about a request raised an exception")
        self.request = request


class Scheduler(Gathering[R]):
    """Queue, dispatch, deadlines and deaths of the requests of all pools, on top of their screening."""

    __slots__ = ("_attempts", "_floor", "_unavailable")

    def __init__(self, marks: Watermarks, grace: float, policy: Policy, processors: float, rng: Random) -> None:
        """The arguments are those of ``Books``."""
        super().__init__(marks, grace, policy, processors, rng)
        self._attempts = 0
        self._floor = 0.0
        self._unavailable: set[str] = set()

    # Pools and workers

    def leave(self, worker: Worker, begun: Collection[int], blame: bool, now: float) -> list[Requeue[R]]:
        """A worker's process is gone; ``begun`` are the calls whose function it had entered, ``blame`` is whether it
        died by itself. Call ``next`` for its pool afterwards.
        """
        pool = self.pools[worker.pool]
        pool.remove(worker)
        worker.block(Block.DEAD)
        self.throttle(worker.pool).capacity = pool.capacity()
        requeued: list[Requeue[R]] = []
        for call_id, request in list(self.calls(worker).items()):
            _release(worker, request)
            if request.state is State.ENDED:
                self.wheel.remove(request)
            else:
                requeued.append(self._survive(request, worker, had_begun(request, call_id, begun), blame, now))
        return requeued

    def _survive(self, request: R, worker: Worker, begun: bool, blame: bool, now: float) -> Requeue[R]:
        """Back into the queue, or to an end."""
        end: Refusal | None = None
        if begun:
            request.deaths += blame
            again = request.agent.idempotent and not request.retried and not request.streamed and now < request.deadline
            request.retried = True
            self.set_apart(request)
            if request.deaths >= DEADLY:
                died = f"{request.deaths} workers died while they worked on this request"
                end = Refusal(Problem.POISON_REQUEST, died, worker=worker.name)
            elif not again:
                end = Refusal(Problem.WORKER_DIED, _why_not_again(request, now), worker=worker.name)
        if end is None:
            self.push(request)
        else:
            request.state = State.ENDED
            self.wheel.remove(request)
        return Requeue(request, end)

    def mark_unavailable(self, pool: str) -> list[R]:
        """No worker of this pool can come back by itself: what waits has ended, and new requests are refused."""
        self._unavailable.add(pool)
        return self._end(self.backlog.waiting(pool))

    def close(self, pool: str) -> None:
        """All workers of this pool are about to stop: new requests are refused, and what waits is still done."""
        self._unavailable.add(pool)

    def is_closing(self, pool: str) -> bool:
        """Whether new requests for this pool are refused."""
        return pool in self._unavailable

    def mark_available(self, pool: str) -> None:
        """A worker of this pool is on its way again."""
        self._unavailable.discard(pool)

    def forget(self, agent: Agent) -> list[R]:
        """Nobody will offer this agent any more: what waits for it has ended."""
        return self._end(self.backlog.waiting(agent.pool, agent.name))

    def end_waiting(self) -> list[R]:
        """End everything that waits, in all pools."""
        return [request for pool in list(self.backlog.queues) for request in self._end(self.backlog.waiting(pool))]

    def _end(self, requests: Iterable[R]) -> list[R]:
        ended = list(requests)
        for request in ended:
            self.backlog.leave(request, State.ENDED)
            self.wheel.remove(request)
        return ended

    # The request path

    def submit(self, request: R, now: float) -> Worker | Refusal | None:
        """A worker: the call is booked there, send it. None: it waits. Else the refusal; the request was never here.

        Call ``discard`` where this raises.
        """
        agent = request.agent
        nested = request.depth > 1
        if agent.pool in self._unavailable and not (nested and self.pools[agent.pool].serves()):
            return Refusal(Problem.UNAVAILABLE, f"no worker of pool {agent.pool!r} is running or starting")
        backlog = self.backlog
        backlog.number(request)
        queue = backlog.queue(agent.pool)
        worker = None
        gathers = self.waits_for_others(agent, now)
        if not gathers and request.deadline > now and (nested or not backlog.refusing) and not queue.is_behind(request):
            worker = self.pools[agent.pool].choose(request, now)
        throttle = self.throttle(agent.pool)
        if nested:
            throttle.arrive(request.client, request.priority, agent, now)
        if worker is not None:
            self._book(request, worker, queue, now)
            throttle.dispatched(0.0, agent, waited=False)
            self.wheel.add(request, request.deadline)
            return worker
        if nested:
            refusal = admit_child(request, self.pools[agent.pool].workers, now)
        else:
            refusal = admit(request, backlog, throttle, now)
        if refusal is not None:
            return refusal
        expiry = request.deadline
        if nested:
            # The tags of others are not negative.
            request.tag = -float(request.depth)
        else:
            request.tag = throttle.tag(request.client, agent, not queue.has_client(request.client))
            expiry = throttle.expiry(request.arrived_at, request.deadline, request.own_deadline)
        if not queue.requests and not gathers:
            throttle.waits(now)
        if agent.connection and self.pools[agent.pool].lacks_connection(agent):
            request.lacked_at = now
        self.push(request)
        self.wheel.add(request, expiry)
        return None

    def next(self, pool: str, now: float) -> tuple[R, Worker] | None:
        """The waiting request that goes next, and where to; booked there already. With it go the others of its
        ``batch``. None: no more for now; ``gathering`` says when to ask again if nothing happens before.

        ``Undecided`` for a request at which that raised: call again for those behind it.
        """
        queue = self.backlog.queues.get(pool)
        self.gathering.pop(pool, None)
        if queue is None or not queue.requests:
            return None
        bands = queue.busy
        # Now and then the last rank goes before all others, so that it does not wait for ever.
        several = len(bands) > 1
        last_first = several and self._floor >= 1.0
        if last_first:
            bands = [bands[-1], *bands[:-1]]
        place = self.pools[pool].choose
        queue.keep_for(None)
        for band in bands:
            for request in band.heads():
                try:
                    if queue.kept_for is not None and queue.holds_back(request):
                        continue
                    batched = request.agent.batching is not None
                    worker = self.place_batch(request, queue, now) if batched else place(request, now)
                    if worker is None:
                        if not last_first and self._is_kept_for(request, queue, now):
                            queue.keep_for(request)
                        continue
                    self._send(request, worker, queue, now)
                except Exception as error:
                    self.discard_all(together(request))
                    raise Undecided(request) from error
                if several:
                    self._floor += FLOOR - last_first
                return request, worker
        return None

    def _is_kept_for(self, request: R, queue: Queue[R], now: float) -> bool:
        """Whether the next free processor is kept for this one, which has found none."""
        pool = request.agent.pool
        enough = PASSING * self._policy.objective
        return (
            queue.kept_for is None
            and self.pools[pool].lacks_processor(request.agent)
            and self.throttles[pool].backlog_seconds(queue) > enough
            and (request.agent.batching is None or not self.is_gathering(request, queue, now))
        )

    def _send(self, request: R, worker: Worker, queue: Queue[R], now: float) -> None:
        """Out of the queue, onto the worker."""
        throttle = self.throttles[worker.pool]
        if request.agent.batching is None:
            self.backlog.leave(request, State.RUNNING)
        self._book(request, worker, queue, now)
        for each in together(request):
            self.wheel.add(each, each.deadline)
            throttle.dispatched(each.tag, each.agent, waited=each.depth == 1)
        if not queue.requests:
            throttle.emptied(now)

    def is_forgotten(self, pool: str, now: float) -> bool:
        """Whether something waits that could run, which must not last (see the invariants above)."""
        queue = self.backlog.queues.get(pool)
        if queue is None:
            return False
        heads = [request for band in queue.busy for request in band.heads()]
        return any(not queue.holds_back(request) and self._has_turn(request, queue, now) for request in heads)

    def _has_turn(self, request: R, queue: Queue[R], now: float) -> bool:
        try:
            if request.agent.batching is not None and self.is_gathering(request, queue, now):
                return False
            return self.pools[request.agent.pool].choose(request, now) is not None
        except Exception:
            # ``next`` ends it, and says why.
            return True

    def _book(self, request: R, worker: Worker, queue: Queue[R], now: float) -> None:
        self._attempts += 1
        if request.agent.batching is None:
            request.state = State.RUNNING
            worker.take(request, self._attempts, now)
            return
        if request.state is State.WAITING:
            self.backlog.leave(request, State.RUNNING)
        request.state = State.RUNNING
        batch = self.gather(request, worker, queue, now)
        worker.take_batch(batch, self._attempts, now)
        self._attempts += len(batch.members) - 1

    def suspend(self, request: R) -> None:
        """Its call waits for calls of its own. Call ``next`` for all pools afterwards."""
        if request.worker is not None:
            suspension.suspend(request.worker, request)

    def resume(self, request: R) -> None:
        """Its call goes on, if it was suspended."""
        if request.worker is not None:
            suspension.resume(request.worker, request)

    def unsend(self, request: R) -> None:
        """The call that was booked could not be sent: it waits again, in its old place."""
        worker = request.worker
        assert worker is not None
        _release(worker, request)
        self.push(request)
        self.wheel.add(request, request.deadline)

    def discard(self, request: R) -> None:
        """A step at this request raised, before its worker had the call: nothing of it is left in any book."""
        if request.state is State.WAITING:
            self.backlog.leave(request, State.ENDED)
        request.state = State.ENDED
        worker = request.worker
        if worker is not None and request.call_id in worker.calls:
            _release(worker, request)
        self.wheel.remove(request)

    def discard_all(self, requests: Iterable[R]) -> None:
        """The same, of several that go together."""
        for request in requests:
            self.discard(request)

    def finish(self, worker: Worker, call_id: int) -> R | None:
        """A worker has given a slot back. None: it was no call of this worker (any more).

        The request's state tells whether its client still waits: RUNNING if so, and it is for the shell to answer
        and to set ENDED.
        """
        request = self.calls(worker).get(call_id)
        if request is None:
            return None
        _release(worker, request)
        if request.batch is None:
            self.throttles[worker.pool].ended(request.share)
        else:
            if request.batch.has_ended():
                self.throttles[worker.pool].ended(request.batch.share)
        worker.answered += 1
        self.wheel.remove(request)
        return request

    def withdraw(self, request: R) -> Worker | None:
        """The client is gone. A worker: have it cancel ``request.call_id``."""
        if request.state is State.WAITING:
            self.backlog.leave(request, State.ENDED)
            self.wheel.remove(request)
            return None
        if request.state is not State.RUNNING:
            return None
        request.state = State.ENDED
        self.wheel.add(request, request.deadline + self.grace / 2)
        return request.worker

    def expire(self, now: float) -> list[Escalation[R]]:
        """What is due by now, and what to do about it. Call ``next`` for the pools of what was shed afterwards."""
        escalations: list[Escalation[R]] = []
        for request in self.wheel.due(now):
            if request.state is State.WAITING:
                try:
                    escalation = self._overdue_in_queue(request, now)
                except Exception as error:
                    self.discard(request)
                    escalation = Escalation(request, Step.FAILED, error=error)
                if escalation is not None:
                    escalations.append(escalation)
            elif request.state is State.RUNNING:
                request.state = State.ENDED
                self.wheel.add(request, max(now, request.deadline) + self.grace / 2)
                escalations.append(Escalation(request, Step.CANCEL))
            elif (again := self.spared_until(request, now)) > now:
                self.wheel.add(request, again)
            elif not request.stalled:
                request.stalled = True
                self.wheel.add(request, now + self.grace / 2)
                escalations.append(Escalation(request, Step.STALLED))
            else:
                escalations.append(Escalation(request, Step.KILL))
        return escalations

    def _overdue_in_queue(self, request: R, now: float) -> Escalation[R] | None:
        """None: it waits on, and is in the wheel again."""
        refusal = None
        if now < request.deadline:
            throttle = self.throttle(request.agent.pool)
            objective = request.deadline - request.arrived_at if request.own_deadline else throttle.policy.objective
            refusal = throttle.expire(request.rank, request.client, request.agent, objective, now)
            if refusal is None:
                self.wheel.add(request, min(request.deadline, now + LOOK_AGAIN))
                return None
        self.backlog.leave(request, State.ENDED)
        return Escalation(request, Step.ANSWER if refusal is None else Step.SHED, refusal)


def _release(worker: Worker, request: Request) -> None:
    if request.suspended:
        suspension.resume(worker, request)
    worker.release(request)


def _why_not_again(request: Request, now: float) -> str:
    if request.streamed:
        return "the worker died after part of the stream had been sent"
    if not request.agent.idempotent:
        return "the worker died after the call had begun, and the agent is not marked idempotent"
    if now >= request.deadline:
        return "the worker died after the call had begun, and no time is left for a retry"
    return "the worker died after the call had begun, and it had been retried already"
