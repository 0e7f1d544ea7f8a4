"""The whole of the request path's decisions in one object: what happens to a request, from admission to its end.

It puts together what the other modules of this package decide one by one: the backlog (what may wait and in which
order), the pools (who gets it), the wheel (when it is over). The shell calls it with every event and carries out what
it returns; nothing here sends, waits or logs.

What is decided of one request must not touch the others. So where a decision raises, which is a fault of ours, that
request is taken out of every book and the shell is told (``Undecided``, ``Step.FAILED``): it ends, and the next one
has its turn.

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

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

from .admission import admit, beyond_marks
from .backlog import Backlog, Queue, Watermarks
from .batching import PART, Batch
from .comebacks import Hold
from .deadlines import Wheel
from .dispatch import Balance, Pool
from .model import FULL, OVERLAP, Agent, Block, Request, State, Worker
from .processing import QUANTUM, Processors
from .refusals import Comeback, Problem, Refusal
from .throttle import FLOOR, Policy, Throttle

if TYPE_CHECKING:
    from random import Random

R = TypeVar("R", bound=Request)
"""What the shell makes of a request."""

LOOK_AGAIN: Final = 0.1
"""Seconds between two looks whether a request that waits for long should wait on."""

PASSING: Final = 0.3
"""Of the objective: short calls go past those that wait for a processor as long as all that waits takes no more."""

DEADLY: Final = 2
"""Workers that a request may have been at work on when they died, before it is called poison."""


class Step(Enum):
    """What is to be done about a request whose time is over."""

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
    """A request whose time has come, and what is to be done. ``refusal`` comes with ``Step.SHED``, ``error`` with
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
        super().__init__("a decision about a request raised")
        self.request = request


class Scheduler(Generic[R]):
    """Admission, queue, dispatch, deadlines and deaths of the requests of all pools."""

    __slots__ = (
        "_attempts",
        "_floor",
        "_left",
        "_policy",
        "_processors",
        "_rng",
        "_unavailable",
        "backlog",
        "gathering",
        "grace",
        "host",
        "pools",
        "throttles",
        "wheel",
    )

    def __init__(self, marks: Watermarks, grace: float, policy: Policy, processors: float, rng: Random) -> None:
        """``grace``: seconds past its deadline until a call that does not yield costs its worker's life.
        ``processors``: of the host, as many as the daemon may use; a part of one where it has a quota.
        """
        self.backlog: Backlog[R] = Backlog(marks)
        self.grace = grace
        self.pools: dict[str, Pool] = {}
        self.throttles: dict[str, Throttle] = {}
        self.wheel: Wheel[R] = Wheel()
        self.host = Processors(quantum=QUANTUM * processors)
        self._policy = policy
        self._processors = processors
        self._left = processors
        self._rng = rng
        self._attempts = 0
        self._floor = 0.0
        self._unavailable: set[str] = set()
        self.gathering: dict[str, float] = {}
        """Until when something waits for others to go with, by pool. ``next`` writes it."""
        self._limit()

    # Pools and workers

    def configure(self, balances: dict[str, Balance], marks: Watermarks, grace: float, policy: Policy) -> None:
        """Take the settings of a configuration. A pool that is gone stays as long as it has workers."""
        for name, balance in balances.items():
            self.pools.setdefault(name, Pool(name)).balance = balance
        for name in [name for name, pool in self.pools.items() if name not in balances and not pool.workers]:
            del self.pools[name]
            self.throttles.pop(name, None)
        self.backlog.remark(marks)
        self.grace = grace
        self._policy = policy
        for throttle in self.throttles.values():
            throttle.policy = policy
        self._limit()

    def leave_processors(self, left: float) -> None:
        """Of the host's processors, others leave so many for the workers. Call ``next`` for all pools afterwards."""
        self._left = left
        if self._policy.enabled:
            self.host.limit = OVERLAP * left * FULL

    def _limit(self) -> None:
        """Set what calls may want of processors; without the throttle, slots alone count."""
        limited = self._policy.enabled
        self.host.limit = OVERLAP * self._left * FULL if limited else math.inf
        self.host.long_limit = self._processors if limited else math.inf
        for pool in self.pools.values():
            for worker in pool.workers:
                worker.processors.limit = FULL if limited else math.inf

    def throttle(self, pool: str) -> Throttle:
        """The throttle of a pool."""
        found = self.throttles.get(pool)
        if found is None:
            found = self.throttles[pool] = Throttle(self._policy, self._processors, self._rng)
        return found

    @property
    def policy(self) -> Policy:
        """Of the throttles."""
        return self._policy

    def predicted_wait(self, pool: str) -> float:
        """Seconds that what waits in a pool will take, as predicted."""
        queue = self.backlog.queues.get(pool)
        return 0.0 if queue is None else self.throttle(pool).backlog_seconds(queue)

    def join(self, worker: Worker) -> None:
        """A worker is ready. Call ``next`` for its pool afterwards."""
        worker.host = self.host
        worker.processors.limit = FULL if self._policy.enabled else math.inf
        pool = self.pools.setdefault(worker.pool, Pool(worker.pool))
        pool.join(worker)
        self.throttle(worker.pool).capacity = pool.capacity()

    def leave(self, worker: Worker, begun: Collection[int], blame: bool, now: float) -> list[Requeue[R]]:
        """A worker's process is gone; ``begun`` are the calls whose function it had entered, ``blame`` is whether it
        died by itself. Call ``next`` for its pool afterwards.
        """
        pool = self.pools[worker.pool]
        pool.remove(worker)
        worker.block(Block.DEAD)
        self.throttle(worker.pool).capacity = pool.capacity()
        requeued: list[Requeue[R]] = []
        for call, request in list(self.calls(worker).items()):
            worker.release(request)
            if request.state is State.ENDED:
                self.wheel.remove(request)
            else:
                requeued.append(self._survive(request, worker, _had_begun(request, call, begun), blame, now))
        return requeued

    def _survive(self, request: R, worker: Worker, begun: bool, blame: bool, now: float) -> Requeue[R]:
        """Back into the queue, or to an end."""
        end: Refusal | None = None
        if begun:
            request.deaths += blame
            again = request.agent.idempotent and not request.retried and not request.streamed and now < request.deadline
            request.retried = True
            # Whoever of a batch it was that cost the worker's life: alone, it costs no other's.
            request.alone = request.batch is not None and len(request.batch.members) > 1
            if request.deaths >= DEADLY:
                died = f"{request.deaths} workers died while they worked on this request"
                end = Refusal(Problem.POISON_REQUEST, died, worker=worker.name)
            elif not again:
                end = Refusal(Problem.WORKER_DIED, _why_not_again(request, now), worker=worker.name)
        if end is None:
            self._push(request)
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

    def screen(
        self,
        agent: Agent,
        name: str,
        priority: int,
        *,
        left: float,
        own_deadline: bool,
        now: float,
        back: Comeback | None = None,
        fresh: bool = True,
    ) -> int | Refusal | Hold:
        """Look at a request before its body is read: its rank if it is welcome; else the refusal, or a hold, after
        which it is to be looked at ``again``.

        ``name``: the client's. ``left``: seconds until its deadline; ``own_deadline``: that is the client's. ``back``:
        what its connection was told with the last refusal; ``fresh``: it is the first request on its connection.
        """
        pool, throttle, backlog = self.pools[agent.pool], self.throttle(agent.pool), self.backlog
        queue = backlog.queue(agent.pool)
        if throttle.is_due(now):
            throttle.tick(pool.capacity(), queue, now)
        rank = throttle.arrive(name, priority, agent, now)
        if back is None and fresh:
            back = throttle.taken_over(name)
        if back is not None:
            throttle.comebacks.see(back)
        wait = None
        if backlog.refusing:
            wait = 0.0
        elif queue.requests and (queue.has(agent) or not pool.has_room(agent)):
            inside = back is None and not fresh
            wait = throttle.screen(
                queue, rank, agent, left=left, own_deadline=own_deadline, held=0.0, inside=inside, now=now
            )
        early = back if back is not None and back.is_early(now) else None
        if wait is None:
            if early is not None:
                throttle.comebacks.free(early)
            return rank
        if early is not None:
            deadline = now + left
            return throttle.comebacks.hold(
                early, agent, priority, deadline=deadline, own_deadline=own_deadline, now=now
            )
        return self._turn_away(agent, name, rank, wait, left, None, now)

    def again(self, hold: Hold, now: float) -> int | Refusal:
        """Look at a request once more whose refusal was held, and is so no longer."""
        self.release(hold)
        agent, back = hold.agent, hold.comeback
        throttle, queue = self.throttle(agent.pool), self.backlog.queue(agent.pool)
        rank = throttle.rank(back.client, hold.priority)
        left, held = hold.deadline - now, now - hold.came_at
        wait: float | None = 0.0
        if not self.backlog.refusing:
            wait = throttle.screen(
                queue, rank, agent, left=left, own_deadline=hold.own_deadline, held=held, inside=False, now=now
            )
        if wait is None:
            throttle.comebacks.free(back)
            return rank
        return self._turn_away(agent, back.client, rank, wait, left, back, now)

    def _turn_away(
        self, agent: Agent, name: str, rank: int, wait: float, left: float, back: Comeback | None, now: float
    ) -> Refusal:
        """The refusal of a request that would have to wait for so many seconds. ``back``: what it was told before."""
        throttle = self.throttle(agent.pool)
        if self.backlog.refusing:
            refusal = beyond_marks(agent, name, 0, self.backlog, throttle, back, now)
            assert refusal is not None
            return refusal
        if wait >= left:
            detail = f"about {wait:.3g} s of waiting are ahead of it, and its deadline is in {left:.3g} s"
            comeback = throttle.too_late(agent, name, rank, back, now)
            return Refusal(Problem.DEADLINE_EXCEEDED, detail, reason="deadline", comeback=comeback)
        return throttle.refuse(rank, name, wait, agent, back, now)

    def release(self, hold: Hold) -> None:
        """A refusal is held no longer: it is its turn, or the client has gone."""
        self.throttle(hold.comeback.pool).comebacks.release(hold)

    def stray(self, comeback: Comeback) -> None:
        """The connection of one who was turned away is closed."""
        self.throttle(comeback.pool).stray(comeback)

    def room(self, agent: Agent, name: str, size: int, now: float) -> Refusal | None:
        """None: a body of ``size`` bytes that begins to arrive would have room now. Nothing is kept for it.

        ``name``: the client's.
        """
        return beyond_marks(agent, name, size, self.backlog, self.throttle(agent.pool), None, now)

    def reserve(self, agent: Agent, name: str, size: int, now: float) -> Refusal | None:
        """None: these bytes of a body have arrived, and count until ``backlog.release``. Else there is no room."""
        return None if self.backlog.reserve(size) else self.room(agent, name, size, now)

    def submit(self, request: R, now: float) -> Worker | Refusal | None:
        """A worker: the call is booked there, send it. None: it waits. Else the refusal; the request was never here.

        Call ``discard`` where this raises.
        """
        agent = request.agent
        if self._unavailable and agent.pool in self._unavailable:
            return Refusal(Problem.UNAVAILABLE, f"no worker of pool {agent.pool!r} runs, and none is about to")
        backlog = self.backlog
        backlog.number(request)
        queue = backlog.queue(agent.pool)
        worker = None
        gathers = False
        if agent.batching is not None:
            agent.batching.arrives(now)
            gathers = agent.batching.wait > 0.0
        if not gathers and request.deadline > now and not backlog.refusing and not queue.is_behind(request):
            worker = self.pools[agent.pool].choose(request, now)
        throttle = self.throttle(agent.pool)
        if worker is not None:
            self._book(request, worker, queue, now)
            throttle.dispatched(0.0, agent, waited=False)
            self.wheel.add(request, request.deadline)
            return worker
        refusal = admit(request, backlog, throttle, now)
        if refusal is not None:
            return refusal
        request.tag = throttle.tag(request.client, agent, not queue.has_client(request.client))
        if not queue.requests and not gathers:
            throttle.waits(now)
        if agent.connection and self.pools[agent.pool].lacks_connection(agent):
            request.lacked_at = now
        self._push(request)
        self.wheel.add(request, throttle.expiry(request.arrived_at, request.deadline, request.own_deadline))
        return None

    def _push(self, request: R) -> None:
        """Let a request wait, in its place."""
        request.batch = None
        batching = request.agent.batching
        if batching is not None:
            first = not self.backlog.queue(request.agent.pool).has(request.agent)
            batching.waits(request.arrived_at, request.deadline, first=first)
        self.backlog.push(request)

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
        queue.kept_for = None
        for band in bands:
            for request in band.heads():
                try:
                    if queue.kept_for is not None and queue.holds_back(request):
                        continue
                    batched = request.agent.batching is not None
                    worker = self._place_batch(request, queue, now) if batched else place(request, now)
                    if worker is None:
                        if not last_first and self._is_kept_for(request, queue, now):
                            queue.kept_for = request
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
            and (request.agent.batching is None or not self._gathers(request, queue, now))
        )

    def _send(self, request: R, worker: Worker, queue: Queue[R], now: float) -> None:
        """Out of the queue, onto the worker."""
        throttle = self.throttles[worker.pool]
        if request.agent.batching is None:
            self.backlog.leave(request, State.RUNNING)
        self._book(request, worker, queue, now)
        for each in together(request):
            self.wheel.add(each, each.deadline)
            throttle.dispatched(each.tag, each.agent, waited=True)
        if not queue.requests:
            throttle.emptied(now)

    # Batches

    def gathered(self, now: float) -> list[str]:
        """The pools where something has waited for others for long enough. Call ``next`` for them afterwards."""
        due = [pool for pool, until in self.gathering.items() if until <= now]
        for pool in due:
            del self.gathering[pool]
        return due

    def _place_batch(self, request: R, queue: Queue[R], now: float) -> Worker | None:
        """The worker for a batch with this request for its first; None: it waits for one, or for others."""
        pool = request.agent.pool
        if self._gathers(request, queue, now):
            return None
        worker = self.pools[pool].choose(request, now)
        if worker is None:
            self.throttles[pool].waits_for_worker(now)
        return worker

    def _gathers(self, request: R, queue: Queue[R], now: float) -> bool:
        """Whether the first that waits for a batched agent waits for others to go with it."""
        agent = request.agent
        assert agent.batching is not None
        until = now if request.alone else agent.batching.goes_at(queue.count(agent), now)
        if until <= now:
            return False
        self.gathering[agent.pool] = min(until, self.gathering.get(agent.pool, math.inf))
        return True

    def _gathered(self, first: R, worker: Worker, queue: Queue[R], now: float) -> Batch[R]:
        """The batch that goes with the first of those that wait, taken out of the queue, which it has left."""
        members = [first]
        if not first.alone and first.agent.name in worker.batches:
            try:
                self._add_members(members, worker, queue, now)
            except Exception:
                for each in members[1:]:
                    self._push(each)
                raise
        return Batch(first.agent, members, PART * (min(each.deadline for each in members) - now))

    def _add_members(self, members: list[R], worker: Worker, queue: Queue[R], now: float) -> None:
        """Take those that go with the first out of the queue."""
        agent, soonest = members[0].agent, members[0].deadline
        batching, is_meant = agent.batching, self.pools[worker.pool].is_meant
        assert batching is not None
        limit = min(batching.limit, worker.batches[agent.name])
        for each in queue.waiting_for(agent) if limit > 1 else ():
            if each.alone or not is_meant(worker, each):
                continue
            if batching.seconds(len(members) + 1) > PART * (min(soonest, each.deadline) - now):
                break
            soonest = min(soonest, each.deadline)
            self.backlog.leave(each, State.RUNNING)
            members.append(each)
            if len(members) >= limit:
                break
        if 0 < queue.count(agent) < batching.limit:
            for at, each in enumerate(queue.waiting_for(agent)):
                batching.waits(each.arrived_at, each.deadline, first=not at)

    def is_forgotten(self, pool: str, now: float) -> bool:
        """Whether something waits that could run, which must not last (see the invariants above)."""
        queue = self.backlog.queues.get(pool)
        if queue is None:
            return False
        heads = [request for band in queue.busy for request in band.heads()]
        return any(not queue.holds_back(request) and self._has_turn(request, queue, now) for request in heads)

    def _has_turn(self, request: R, queue: Queue[R], now: float) -> bool:
        try:
            if request.agent.batching is not None and self._gathers(request, queue, now):
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
        batch = self._gathered(request, worker, queue, now)
        worker.take_batch(batch, self._attempts, now)
        self._attempts += len(batch.members) - 1

    def unsend(self, request: R) -> None:
        """The call that was booked could not be sent: it waits again, in its old place."""
        worker = request.worker
        assert worker is not None
        worker.release(request)
        self._push(request)
        self.wheel.add(request, request.deadline)

    def discard(self, request: R) -> None:
        """A step at this request raised, before its worker had the call: nothing of it is left in any book."""
        if request.state is State.WAITING:
            self.backlog.leave(request, State.ENDED)
        request.state = State.ENDED
        worker = request.worker
        if worker is not None and request.call in worker.calls:
            worker.release(request)
        self.wheel.remove(request)

    def discard_all(self, requests: Iterable[R]) -> None:
        """The same, of several that go together."""
        for request in requests:
            self.discard(request)

    def finish(self, worker: Worker, call: int) -> R | None:
        """A worker has given a slot back. None: it was no call of this worker (any more).

        The request's state tells whether its client still waits: RUNNING if so, and it is for the shell to answer
        and to set ENDED.
        """
        request = self.calls(worker).get(call)
        if request is None:
            return None
        worker.release(request)
        if request.batch is None:
            self.throttles[worker.pool].ended(request.share)
        else:
            request.batch.ended = True
            if not request.batch.left:
                self.throttles[worker.pool].ended(request.batch.share)
        worker.answered += 1
        self.wheel.remove(request)
        return request

    def withdraw(self, request: R) -> Worker | None:
        """The client is gone. A worker: have it cancel ``request.call``."""
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
        found: list[Escalation[R]] = []
        for request in self.wheel.due(now):
            if request.state is State.WAITING:
                try:
                    due = self._overdue_in_queue(request, now)
                except Exception as error:
                    self.discard(request)
                    due = Escalation(request, Step.FAILED, error=error)
                if due is not None:
                    found.append(due)
            elif request.state is State.RUNNING:
                request.state = State.ENDED
                self.wheel.add(request, max(now, request.deadline) + self.grace / 2)
                found.append(Escalation(request, Step.CANCEL))
            elif (again := self._spared_until(request, now)) > now:
                self.wheel.add(request, again)
            elif not request.stalled:
                request.stalled = True
                self.wheel.add(request, now + self.grace / 2)
                found.append(Escalation(request, Step.STALLED))
            else:
                found.append(Escalation(request, Step.KILL))
        return found

    def _spared_until(self, request: R, now: float) -> float:
        """Until when nothing happens to a worker for the sake of this one: others of its batch have more time, or
        another of them is the one that is acted for. ``now``, or before: its time has come.
        """
        batch = request.batch
        if batch is None:
            return now
        last: float = max(each.deadline for each in batch.members) + self.grace / 2
        if now < last:
            return last
        batch.late = batch.late or request
        return now if batch.late is request else now + self.grace

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

    def calls(self, worker: Worker) -> dict[int, R]:
        """The calls in flight of a worker, by id. This scheduler has booked all of them, so they are of its type."""
        return cast("dict[int, R]", worker.calls)

    def crowd(self, worker: Worker) -> float:
        """Calls for each processor: of the host, or of the one that this worker's interpreter can use."""
        running = sum(each.processors.calls for pool in self.pools.values() for each in pool.workers)
        return max(running / self._processors, float(worker.processors.calls))

    @property
    def in_flight(self) -> int:
        """Calls that workers have."""
        return sum(len(worker.calls) for pool in self.pools.values() for worker in pool.workers)


def together(request: R) -> Sequence[R]:
    """This request and all that are in one batch with it."""
    return [request] if request.batch is None else request.batch.members


def _had_begun(request: Request, call: int, begun: Collection[int]) -> bool:
    """Whether the function was entered. Of a batch its first call says so; where one has its answer, all had ended."""
    batch = request.batch
    return call in begun if batch is None else batch.ended or batch.call in begun


def _why_not_again(request: Request, now: float) -> str:
    if request.streamed:
        return "the worker died when part of the stream had gone out"
    if not request.agent.idempotent:
        return "the worker died after the call had begun, and the agent is not marked idempotent"
    if now >= request.deadline:
        return "the worker died after the call had begun, and no time is left for another try"
    return "the worker died after the call had begun, as the one before it had"
