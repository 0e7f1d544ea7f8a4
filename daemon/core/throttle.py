"""The throttle of one pool: who may wait, in which order, and when the others should come back.

The queue is ours and the slots are known, so nothing has to be inferred from response times, as limiters in front of
somebody else's queue must (Netflix's concurrency-limits, Envoy's adaptive concurrency). The wait that a new request
would have is *predicted*: the work before it over the rate at which work is done. Work is counted in *pool seconds*:
how long the whole pool is occupied by a call, by its slots or by the processors, whichever it has less of. In theory
one pool second of work is done a second; ``pace`` is what was measured of that while something waited, so that a
database that is slow, or others on the same host, are accounted for without being known.

Refusing. What would wait too long is refused when it comes, not after it has waited (Bouncer, Breakwater). There is no
reason to refuse while all who ask are answered in time: a queue may stand as long as what waits, together with those
who were turned away and would come in (``comebacks``), fits into ``FITS`` of the objective. Clients are counted, not
their requests, so that the same crowd always leads to the same state. What does not fit is an overload: then the queue
is held to a wait of ``target``, so that what is accepted is quick. While others are refused, a request that has waited
for ``EXPIRED`` of its objective is refused too. So the time of accepted requests is bounded even where the prediction
is wrong. Two things are never refused for a prediction: a request for which a worker is free (the scheduler does not
even ask), and one of an agent that nothing is known of. Calls of an agent that takes so long by itself that the
objective cannot be met may wait for several times as long as they take. That is bounded: otherwise slow calls would
fill the queue to its marks and keep quick ones out.

Order. ``shares`` has the ranks, by urgency and by each client's fair share, and the turns within a rank. Ranks are
strict but for ``FLOOR``.

Coming back. ``comebacks`` says when, and holds the refusals of those who do not wait for that.

The policy was worked out in a simulator first; ``python -m bench.policies`` shows it beside others.

What each of the constants is for is shown by ``python -m bench.policies --without``, which runs the scenarios with
one of them switched off at a time.

Invariants: ``wait`` is never negative and never falls with the rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .backlog import WAITS, Queue
from .comebacks import AT_ONCE, LATEST, STEADY, Comebacks
from .model import OVERLAP, PRIORITIES, RANKS, Agent, Capacity
from .refusals import Comeback, Problem, Refusal
from .shares import MEMORY, Shares

if TYPE_CHECKING:
    from random import Random

FITS: Final = 0.7
"""Of the objective: the wait that is allowed as long as all who ask fit into it together."""

EXPIRED: Final = 0.6
"""Of the objective: the longest wait of all while others are turned away."""

LONG: Final = 0.4
"""Of the objective: an agent whose calls take longer by themselves cannot be defended."""

IN_TIME: Final = 0.8
"""Of the objective: what waiting and working may come to, as predicted."""

FEW: Final = 12
"""So few in the queue are no overload while nobody is turned away, whatever their calls are thought to take."""

SLOW: Final = 4.0
"""Times its own time that a request of such an agent may wait."""

FLOOR: Final = 0.01
"""Of what is done: kept for the ranks behind the first, so that they do not wait for ever."""

REST: Final = 0.05
"""Of the pace: what a rank is predicted to get at least, however much is asked for in the ranks before it."""

OVERTAKEN: Final = 3.0
"""Times the allowed wait that it may come to, since requests of better ranks go before those that wait already."""

INSIDE: Final = 0.5
"""Of the wait that is allowed in an overload: what one is allowed that was let in before and comes back at once."""

TICK: Final = 0.1
"""Seconds between two times at which averages and shares are made anew."""

PACE_MEMORY: Final = 0.5
"""Seconds over which the pace is averaged."""

SLOWEST: Final = 0.02
"""Pool seconds a second: the pace is never taken for less, since waits are divided by it."""

CROWDED: Final = 1.05
"""Times the pace that is asked for, from which on it is no passing crowd."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings: seconds."""

    enabled: bool = True
    objective: float = 0.5
    target: float = 0.05


class Throttle:
    """One pool's."""

    __slots__ = (
        "_arrived",
        "_busy_done",
        "_busy_since",
        "_busy_time",
        "_done",
        "_inflow",
        "_overloaded_at",
        "_rush",
        "_ticked_at",
        "capacity",
        "comebacks",
        "mean_share",
        "pace",
        "policy",
        "processors",
        "shares",
    )

    def __init__(self, policy: Policy, processors: float, rng: Random) -> None:
        """``processors``: of the host, as many as the daemon may use."""
        self.policy = policy
        self.processors = processors
        self.capacity: Capacity | None = None
        """Of the workers that serve; None while there is none."""
        self.pace = 1.0
        """Pool seconds done a second, as measured while something waited."""
        self.mean_share = 0.0
        """Of a processor, of the calls that have ended recently."""
        self._arrived = [0.0] * RANKS
        self._inflow = [0.0] * RANKS
        self._busy_since: float | None = None
        """Since when something waits, or since when that was counted last."""
        self._done = 0.0
        """Pool seconds sent since then."""
        self._busy_time = self._busy_done = 0.0
        """Seconds in which something waited, and the pool seconds that were sent in them."""
        self._rush = 0.0
        """What all clients asked for since the tick before, not averaged."""
        self._ticked_at = -math.inf
        self._overloaded_at = (-math.inf, -math.inf)
        self.shares = Shares()
        self.comebacks = Comebacks(rng)

    # What is known of the pool

    def cost(self, agent: Agent) -> float:
        """Pool seconds that a call of this agent means."""
        cost = agent.cost
        waiting, computing = cost.wall / self._places(agent), cost.cpu / self.processors
        return waiting if waiting > computing else computing

    def _before(self, queue: Queue[Any], rank: int, agent: Agent) -> float:
        """Pool seconds of what goes before a new request of this rank; 0 while nothing can go."""
        capacity = self.capacity
        if not queue.requests or capacity is None or not capacity.workers:
            return 0.0
        wall = sync = cpu = lane = 0.0
        is_long, limited, name = agent.cost.is_long, agent.max_concurrency, agent.name
        for band in queue.busy:
            if band.rank > rank:
                break
            for work in band.works if is_long else band.works[:1]:
                wall += work.wall
                sync += work.sync
                cpu += work.cpu
            if limited and name in band.lanes:
                lane += band.lanes[name].wall
        found = wall / capacity.slots
        if agent.cost.cpu_share > WAITS:
            found = max(found, cpu / self.processors)
        if agent.sync:
            found = max(found, sync / max(1, capacity.threads))
        if lane:
            found = max(found, lane / max(1, agent.max_concurrency * capacity.workers))
        return found if found > 0.0 else 0.0

    def backlog_seconds(self, queue: Queue[Any]) -> float:
        """Seconds until all that waits has been sent, as predicted; 0 while nothing can be."""
        capacity = self.capacity
        if capacity is None or not capacity.workers:
            return 0.0
        work = queue.work
        sync = work.sync / max(1, capacity.threads) if work.sync > 0.0 else 0.0
        return max(sync, work.wall / capacity.slots, work.cpu / self.processors) / self.pace

    def wait(self, queue: Queue[Any], rank: int, agent: Agent) -> float:
        """Seconds that a new request of this rank would wait, as predicted; 0 while nothing can be."""
        return self._time_of(self._before(queue, rank, agent), rank)

    def _time_of(self, work: float, rank: int) -> float:
        """Seconds that so many pool seconds take in this rank, while better ones keep coming."""
        pace = self.pace
        return work / max(pace - sum(self._inflow[:rank]), REST * pace)

    def overloaded(self, now: float) -> bool:
        """Requests were refused recently, and more than once."""
        first, last = self._overloaded_at
        return now - last < MEMORY and last > first

    # Arrivals

    def is_due(self, now: float) -> bool:
        """Whether ``tick`` is to be called before anything else."""
        return now - self._ticked_at >= TICK

    def arrive(self, name: str, priority: int, agent: Agent, now: float) -> int:
        """Count a request in, whatever becomes of it; its rank."""
        cost = self.cost(agent)
        rank = self.shares.ask(name, priority, cost, now)
        self._arrived[rank] += cost
        return rank

    def rank(self, name: str, priority: int) -> int:
        """The rank of a request that was counted in before."""
        client = self.shares.get(name)
        return priority if client is None else client.rank(priority)

    def stray(self, comeback: Comeback) -> None:
        """The connection of one who was turned away is closed."""
        client = self.shares.get(comeback.client)
        if client is not None:
            client.strays.append(comeback)
        self.comebacks.stray(comeback)

    def taken_over(self, name: str) -> Comeback | None:
        """What the first request on a new connection of this client has to go by, if anything."""
        client = self.shares.get(name)
        return client.strays.popleft() if client is not None and client.strays else None

    def tag(self, name: str, agent: Agent, alone: bool) -> float:
        """The place of a new request of this client within its rank. ``alone``: it has no other that waits."""
        return self.shares.tag(name, self.cost(agent), alone)

    def screen(
        self,
        queue: Queue[Any],
        rank: int,
        agent: Agent,
        *,
        left: float,
        own_deadline: bool,
        held: float,
        inside: bool,
        now: float,
    ) -> float | None:
        """None: a request for which no worker is free may wait. Else it would have to wait for so many seconds, which
        is too long.

        ``left``: seconds until its deadline; ``held``: seconds for which it has been held; ``inside``: its client was
        let in before, and comes back at once.
        """
        ahead = self._before(queue, rank, agent)
        wait = self._time_of(ahead, rank)
        if wait >= left:
            return wait
        policy = self.policy
        if not policy.enabled or not agent.cost.calls:
            return None
        objective = left + held if own_deadline else min(left + held, policy.objective)
        own = agent.own_time(now)
        if own > LONG * objective and wait <= SLOW * own:
            return None
        if not held and not queue.has_rank(rank):
            # One of each rank may wait, for what ``FLOOR`` leaves it.
            return None
        if queue.requests < FEW and wait <= FITS * objective and not self.comebacks.outside(rank):
            return None
        # What calls take beyond their own time, since others compute as well, is not left for waiting.
        room = IN_TIME * objective - agent.cost.wall
        room = room - held if held else max(policy.target, room)
        # Counted is what is there. That the better ranks keep coming may make it up to ``OVERTAKEN`` times as long: a
        # rank that had to be done in the allowed time with the rest that they leave would not fill that rest.
        allowed = self._allowed(queue, rank, objective, inside)
        if ahead <= allowed * self.pace and wait <= min(room, OVERTAKEN * allowed):
            return None
        return wait

    def _places(self, agent: Agent) -> int:
        """Calls of this agent that the pool can run at once."""
        capacity = self.capacity
        if capacity is None:
            return 1
        places = capacity.threads if agent.sync else capacity.slots
        if agent.max_concurrency:
            places = min(places, agent.max_concurrency * capacity.workers)
        return places or 1

    def _allowed(self, queue: Queue[Any], rank: int, objective: float, inside: bool) -> float:
        """Seconds that a new request may have to wait. The same for all agents: what is slow would otherwise fill the
        queue and shut out what is quick.
        """
        policy = self.policy
        short = policy.target * objective / policy.objective
        # Calls of a length end together, and what takes their places has to be there already.
        short = max(short, min(queue.work.wall / max(1, queue.requests), FITS * objective))
        if inside:
            short *= INSIDE
        return max(short, FITS * objective - self.comebacks.outside(rank) / self.pace)

    def refuse(self, rank: int, name: str, wait: float, agent: Agent, back: Comeback | None, now: float) -> Refusal:
        """The refusal of a request that would wait too long."""
        comeback = self.turn_away(agent, name, rank, wait, back, now)
        again = comeback.left(now)
        if rank >= PRIORITIES and self.shares.is_greedy(name):
            detail = "this client asks for more than its fair share while others wait"
            return Refusal(Problem.THROTTLED, detail, again, "share", comeback)
        return Refusal(Problem.OVERLOADED, f"it would have to wait for about {wait:.2g} s", again, "queue", comeback)

    def expiry(self, arrived_at: float, deadline: float, own_deadline: bool) -> float:
        """When a request that waits has to be looked at, at the latest."""
        if not self.policy.enabled:
            return deadline
        objective = deadline - arrived_at if own_deadline else self.policy.objective
        return min(deadline, arrived_at + EXPIRED * objective)

    def expire(self, rank: int, name: str, agent: Agent, objective: float, now: float) -> Refusal | None:
        """What becomes of a request that has waited for as long as ``expiry`` said. None: it waits on."""
        if not self.policy.enabled or not self.overloaded(now) or agent.own_time(now) > LONG * objective:
            return None
        found = self.refuse(rank, name, EXPIRED * objective, agent, None, now)
        detail = f"it has waited for {EXPIRED:.0%} of its time limit, and other requests are being refused"
        return Refusal(found.problem, detail, found.retry_after, "expired", found.comeback)

    # Departures

    def waits(self, now: float) -> None:
        """Something waits, after a time when nothing did."""
        self._busy_since = now
        self._done = 0.0

    def waits_for_worker(self, now: float) -> None:
        """What waited for others to go with waits for a worker now, perhaps since before."""
        if self._busy_since is None:
            self.waits(now)

    def dispatched(self, tag: float, agent: Agent, waited: bool) -> None:
        """A call was sent; ``waited``: out of the queue."""
        self._done += self.cost(agent)
        if waited:
            self.shares.sent(tag)

    def emptied(self, now: float) -> None:
        """Nothing waits any more: the last has been sent."""
        self._keep_pace(now)
        self._busy_since = None
        self.shares.emptied()

    def ended(self, share: float) -> None:
        """A call has ended that wanted this share of a processor."""
        self.mean_share += (share - self.mean_share) * 0.02

    @property
    def limit(self) -> float:
        """Calls like the recent ones that may run at once."""
        capacity = self.capacity
        if capacity is None or not capacity.workers:
            return 0.0
        if not self.policy.enabled or self.mean_share <= 0.0:
            return float(capacity.slots)
        return min(float(capacity.slots), max(1.0, OVERLAP * self.processors / self.mean_share))

    # Time

    def tick(self, capacity: Capacity, queue: Queue[Any], now: float) -> None:
        """Average what was asked for and done since the last time, and deal out the shares anew.

        As long as all who ask fit there is enough for everybody: turns within a rank are fair enough then, and a client
        that happened to ask for more recently need not wait behind all others.
        """
        elapsed = now - self._ticked_at
        self._ticked_at = now
        self.capacity = capacity
        if elapsed == math.inf:
            return
        if queue.requests:
            self._keep_pace(now)
        else:
            # What waited has left by itself, nobody knows when.
            self._busy_since = None
        self.comebacks.tick(round(elapsed / TICK))
        keep = math.exp(-elapsed / MEMORY)
        self._rush = sum(self._arrived) / elapsed
        for rank, arrived in enumerate(self._arrived):
            self._inflow[rank] = self._inflow[rank] * keep + arrived / elapsed * (1.0 - keep)
            self._arrived[rank] = 0.0
        outside = self.comebacks.outside(RANKS - 1) / self.pace
        fits = self.backlog_seconds(queue) + outside <= FITS * self.policy.objective
        self.shares.tick(elapsed, math.inf if fits else self.pace, now)

    def _keep_pace(self, now: float) -> None:
        """Count the time up to now as one in which something waited.

        Only such time counts: while nothing waits the pool idles, and what is done then says what was asked for.
        """
        if self._busy_since is None:
            return
        self._busy_time += now - self._busy_since
        self._busy_done += self._done
        self._busy_since, self._done = now, 0.0
        if self._busy_time >= TICK:
            weight = 1.0 - math.exp(-self._busy_time / PACE_MEMORY)
            self.pace += (self._busy_done / self._busy_time - self.pace) * weight
            self.pace = max(SLOWEST, self.pace)
            self._busy_time = self._busy_done = 0.0

    # Coming back

    def turn_away(self, agent: Agent, name: str, rank: int, wait: float, back: Comeback | None, now: float) -> Comeback:
        """When a client that is turned away now has a good chance; books the place. ``back``: what it was told before,
        if it is early.
        """
        begun, last = self._overloaded_at
        self._overloaded_at = (begun if now - last < MEMORY else now, now)
        if back is not None and back.is_early(now):
            back.rank = rank
            self.comebacks.turn_away(back)
            return back
        first = max(1, math.ceil(wait))
        if max(self.shares.asked, self._rush) > CROWDED * self.pace:
            # Nobody knows how long it lasts: as long again as it has lasted already is a fair guess.
            first = max(first, STEADY, min(int(now - self._overloaded_at[0]), LATEST // 2))
        cost, room = self.cost(agent), AT_ONCE * self.pace
        return self.comebacks.tell(agent.pool, name, cost, rank, room=room, first=min(first, LATEST), now=now)

    def too_late(self, agent: Agent, name: str, rank: int, back: Comeback | None, now: float) -> Comeback:
        """For one that cannot be in time and is told nothing: that it may come again, but not at once. ``back``: what
        it was told before, if it is early.
        """
        comeback = back or Comeback(agent.pool, name, now + 1.0, self.cost(agent), rank)
        self.comebacks.turn_away(comeback)
        return comeback
