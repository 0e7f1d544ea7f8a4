"""The throttle of one pool: who may wait, in which order, and when the others should come back.

The queue is ours and the slots are known, so nothing has to be inferred from response times, as limiters in front of
somebody else's queue must (Netflix's concurrency-limits, Envoy's adaptive concurrency). The wait that a new request
would have is *predicted*: the work before it over the rate at which work is done. Work is counted in *pool seconds*:
how long the whole pool is occupied by a call, by its slots or by the processors, whichever it has less of. In theory
one pool second of work is done a second; ``pace`` is what was measured of that while something waited, so that a
database that is slow, or others on the same host, are accounted for without being known.

Refusing. What would wait too long is refused when it comes, not after it has waited (Bouncer, Breakwater): a wait of
``target`` is allowed to a standing queue, half of the objective to one that was short a moment ago, as CoDel tells a
good queue from a bad one. While others are turned away, what has waited for half of its objective is thrown out. So
the prediction may be wrong, and the time of what is accepted is bounded anyway. Two things are never refused for a
prediction: a request for which a worker is free (the scheduler does not even ask), and one of an agent that nothing is
known of. A dozen requests are no overload, and may wait for ``PATIENCE`` of the objective each. An agent that takes so
long by itself that the objective cannot be defended may wait for several times as long as it takes; not without end,
lest what is slow fills the queue to its marks and shuts out what is quick.

Order. A client may have its max-min fair share of what the pool can do; requests beyond it rank behind everybody
else's. The share is filled by a client's most urgent requests first, and it counts what is *asked for*, since a client
that hammers would otherwise look small by being refused. Within a rank clients take turns by the work that they bring
(start-time fair queueing: Goyal, Vin and Cheng, 1996). Ranks are strict but for ``FLOOR``.

Coming back. Every refusal books a place in one of the coming seconds, no more into each than the queue can take at
once, and tells its second. While more is asked for than can be done, nobody is told to come back at once.

The policy was worked out in a simulator first; ``bench/policies.py`` shows it beside others.

Invariants: ``wait`` is never negative and never falls with the rank; a lone client is never over its share; the number
of clients remembered is bounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .dispatch import OVERLAP
from .requests import PRIORITIES, RANKS, Problem, Refusal

if TYPE_CHECKING:
    from random import Random

    from .backlog import Queue
    from .dispatch import Capacity
    from .requests import Agent

BURST: Final = 0.5
"""Of the objective: the wait that is allowed while the queue was short a moment ago, and the longest wait of all."""

SHORT: Final = 0.5
"""Of the target: a queue with no more work than this is short."""

WAITS: Final = 0.1
"""Of a processor: an agent that wants less of one is not held up by what others compute."""

INTERVAL: Final = 0.25
"""Seconds after which a queue that is not short any more is a standing one."""

LONG: Final = 0.4
"""Of the objective: an agent whose calls take longer by themselves cannot be defended."""

IN_TIME: Final = 0.8
"""Of the objective: what waiting and working may come to, as predicted."""

FEW: Final = 12
"""So few requests in the queue are no overload, however long they take: ten people at once are to be served ..."""

PATIENCE: Final = 0.3
"""... as long as none would have to wait for more than this part of the objective."""

ROUNDS: Final = 2
"""Of an agent with a limit of its own, so many times as many may always wait as may run."""

SLOW: Final = 4.0
"""Times its own time that a request of such an agent may wait."""

PATIENT: Final = 10.0
"""A client's own deadline stretches the target up to so many times."""

OVERLOADED: Final = 1.0
"""Seconds since the last refusal for which the pool counts as overloaded."""

SLACK: Final = 1.5
"""Times its share that a client may ask for before it ranks behind others: shares shrink while the pace is low."""

GREEDY: Final = 1.5
"""Times the mean that a client over its share must ask for to be told that it is the client, not the load."""

FLOOR: Final = 0.01
"""Of what is done: kept for the ranks behind the first, so that they do not wait for ever."""

REST: Final = 0.05
"""Of the pace: what a rank is predicted to get at least, however much is asked for in the ranks before it."""

OVERTAKEN: Final = 3.0
"""Times the allowed wait that it may come to, since requests of better ranks go before those that wait already."""

TICK: Final = 0.1
MEMORY: Final = 1.0
"""Seconds over which what clients ask for is averaged."""

PACE_MEMORY: Final = 0.5
"""Seconds over which the pace is averaged."""

SLOWEST: Final = 0.02
FASTEST: Final = 8.0
"""Bounds of the pace."""

FORGOTTEN: Final = 5.0
"""Seconds after which a client that is silent is forgotten."""

MOST_CLIENTS: Final = 10_000
"""Clients that are told apart; those beyond share one name."""

EVERYBODY_ELSE: Final = "\0"

AT_ONCE: Final = 0.2
"""Pool seconds of comebacks that are booked into one second: what the queue can take at once."""

CROWDED: Final = 1.05
"""Times the pace that is asked for, from which on it is no passing crowd."""

STEADY: Final = 3
"""Seconds until the first comeback while more is asked for than can be done."""

LATEST: Final = 60
"""Seconds until the last comeback that is ever told."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings: seconds."""

    enabled: bool = True
    objective: float = 0.5
    target: float = 0.05


class Client:
    """What one client asks of one pool."""

    __slots__ = ("asked", "asks", "finish", "heard_at", "over_from", "since")

    def __init__(self, now: float) -> None:
        self.asks = [0.0] * PRIORITIES
        """Pool seconds of work a second that it asks for, by urgency."""
        self.asked = [0.0] * PRIORITIES
        """What it has asked for since the last tick."""
        self.finish = 0.0
        """The tag at which its last request will be done with."""
        self.over_from = PRIORITIES
        """The first urgency that lies beyond its share."""
        self.since = now
        self.heard_at = now

    @property
    def total(self) -> float:
        return sum(self.asks)


class Throttle:
    """One pool's."""

    __slots__ = (
        "_arrived",
        "_booked",
        "_busy",
        "_clients",
        "_done",
        "_full_until",
        "_inflow",
        "_last_finish",
        "_overloaded_at",
        "_rng",
        "_rush",
        "_second",
        "_short_at",
        "_ticked_at",
        "_virtual",
        "asked",
        "capacity",
        "mean_share",
        "pace",
        "policy",
        "processors",
        "share",
    )

    def __init__(self, policy: Policy, processors: float, rng: Random) -> None:
        """``processors``: of the host, as many as the daemon may use."""
        self.policy = policy
        self.processors = processors
        self.capacity: Capacity | None = None
        """Of the workers that serve; None while there is none."""
        self.pace = 1.0
        """Pool seconds done a second, as measured while something waited."""
        self.asked = 0.0
        """Pool seconds of work a second that all clients ask for."""
        self.share = math.inf
        """Pool seconds a second that each client may have; infinite while there is enough for all."""
        self.mean_share = 0.0
        """Of a processor, of the calls that have ended of late."""
        self._clients: dict[str, Client] = {}
        self._arrived = [0.0] * RANKS
        self._inflow = [0.0] * RANKS
        self._done = 0.0
        self._busy = False
        self._rush = 0.0
        """What ``asked`` was since the tick before, not averaged."""
        self._virtual = 0.0
        self._last_finish = 0.0
        self._ticked_at = -math.inf
        self._short_at = -math.inf
        self._overloaded_at = (-math.inf, -math.inf)
        self._booked: dict[int, float] = {}
        self._full_until = 0
        """Seconds of the clock before this one have no place left."""
        self._second = 0
        self._rng = rng

    # What is known of the pool

    def cost(self, agent: Agent) -> float:
        """Pool seconds that a call of this agent means."""
        cost = agent.cost
        waiting, computing = cost.wall / self._places(agent), cost.cpu / self.processors
        return waiting if waiting > computing else computing

    def _before(self, queue: Queue, rank: int, agent: Agent) -> float:
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

    def backlog_seconds(self, queue: Queue) -> float:
        """Seconds until all that waits has been sent, as predicted; 0 while nothing can be."""
        capacity = self.capacity
        if capacity is None or not capacity.workers:
            return 0.0
        work = queue.work
        sync = work.sync / max(1, capacity.threads) if work.sync > 0.0 else 0.0
        return max(sync, work.wall / capacity.slots, work.cpu / self.processors) / self.pace

    def wait(self, queue: Queue, rank: int, agent: Agent) -> float:
        """Seconds that a new request of this rank would wait, as predicted; 0 while nothing can be."""
        return self._time_of(self._before(queue, rank, agent), rank)

    def _time_of(self, work: float, rank: int) -> float:
        """Seconds that so many pool seconds take in this rank, while better ones keep coming."""
        pace = self.pace
        return work / max(pace - sum(self._inflow[:rank]), REST * pace)

    def overloaded(self, now: float) -> bool:
        """Requests have been turned away of late, and not just once."""
        first, last = self._overloaded_at
        return now - last < OVERLOADED and last > first

    # Arrivals

    def is_due(self, now: float) -> bool:
        """Whether ``tick`` is to be called before anything else."""
        return now - self._ticked_at >= TICK

    def arrive(self, name: str, priority: int, agent: Agent, now: float) -> int:
        """Count a request in, whatever becomes of it; its rank."""
        client = self._clients.get(name)
        if client is None:
            client = self._meet(name, now)
        cost = self.cost(agent)
        client.asked[priority] += cost
        client.heard_at = now
        rank = priority + PRIORITIES if priority >= client.over_from else priority
        self._arrived[rank] += cost
        return rank

    def _meet(self, name: str, now: float) -> Client:
        if len(self._clients) >= MOST_CLIENTS:
            name = EVERYBODY_ELSE
        return self._clients.setdefault(name, Client(now))

    def tag(self, name: str, agent: Agent) -> float:
        """The place of a new request of this client within its rank."""
        client = self._clients.get(name) or self._clients.get(EVERYBODY_ELSE)
        if client is None:
            return self._virtual
        start = client.finish if client.finish > self._virtual else self._virtual
        client.finish = finish = start + self.cost(agent)
        if finish > self._last_finish:
            self._last_finish = finish
        return start

    def screen(
        self, queue: Queue, rank: int, agent: Agent, *, left: float, own_deadline: bool, name: str, now: float
    ) -> Refusal | None:
        """None: a request for which no worker is free may wait. ``left``: seconds until its deadline."""
        ahead = self._before(queue, rank, agent)
        wait = self._time_of(ahead, rank)
        if wait >= left:
            detail = f"about {wait:.3g} s of waiting are ahead of it, and its deadline is in {left:.3g} s"
            return Refusal(Problem.DEADLINE_EXCEEDED, detail, reason="deadline")
        policy = self.policy
        if not policy.enabled:
            return None
        objective = left if own_deadline else min(left, policy.objective)
        if not agent.cost.calls:
            return None
        own = agent.own_time(now)
        if own > LONG * objective and wait <= SLOW * own:
            return None
        if agent.max_concurrency and queue.count(agent) < ROUNDS * self._places(agent):
            return None
        # What calls take beyond their own time, since others compute as well, is not left for waiting.
        room = max(policy.target, IN_TIME * objective - agent.cost.wall)
        # Counted is what is there. That the better ranks keep coming may make it up to ``OVERTAKEN`` times as long: a
        # rank that had to be done in the allowed time with the rest that they leave would not fill that rest.
        allowed = self._allowed(queue, objective, now)
        if ahead <= allowed * self.pace and wait <= min(room, OVERTAKEN * allowed):
            return None
        return self._refuse(rank, name, wait, agent, now)

    def _places(self, agent: Agent) -> int:
        """Calls of this agent that the pool can run at once."""
        capacity = self.capacity
        if capacity is None:
            return 1
        places = capacity.threads if agent.sync else capacity.slots
        if agent.max_concurrency:
            places = min(places, agent.max_concurrency * capacity.workers)
        return places or 1

    def _allowed(self, queue: Queue, objective: float, now: float) -> float:
        """Seconds that a new request may have to wait. The same for all agents: what is slow would otherwise fill the
        queue and shut out what is quick.
        """
        policy = self.policy
        assert self.capacity is not None
        standing = policy.target * min(objective / policy.objective, PATIENT)
        # Calls of a length end together, and what takes their places has to be there already.
        mean = queue.work.wall / queue.requests
        standing = max(standing, min(mean, BURST * objective))
        if self.backlog_seconds(queue) <= SHORT * policy.target:
            self._short_at = now
        # Calls that end together empty the queue for a moment in the middle of an overload; that makes it no short one.
        passing = now - self._short_at < INTERVAL and now - self._overloaded_at[1] >= INTERVAL
        if passing or queue.requests < self.capacity.workers:
            return max(standing, BURST * objective)
        return max(standing, PATIENCE * objective) if queue.requests < FEW else standing

    def _refuse(self, rank: int, name: str, wait: float, agent: Agent, now: float) -> Refusal:
        """The refusal of a request that would wait too long."""
        again = self.retry_after(agent, wait, now)
        if rank >= PRIORITIES and self._is_greedy(name):
            detail = "this client asks for more than its fair share while others wait"
            return Refusal(Problem.THROTTLED, detail, again, "share")
        return Refusal(Problem.OVERLOADED, f"it would have to wait for about {wait:.2g} s", again, "queue")

    def _is_greedy(self, name: str) -> bool:
        client = self._clients.get(name) or self._clients.get(EVERYBODY_ELSE)
        return client is not None and client.total * len(self._clients) >= GREEDY * self.asked

    def expiry(self, arrived_at: float, deadline: float, own_deadline: bool) -> float:
        """When a request that waits has to be looked at, at the latest."""
        if not self.policy.enabled:
            return deadline
        objective = deadline - arrived_at if own_deadline else self.policy.objective
        return min(deadline, arrived_at + BURST * objective)

    def expire(self, rank: int, name: str, agent: Agent, objective: float, now: float) -> Refusal | None:
        """What becomes of a request that has waited for as long as ``expiry`` said. None: it waits on."""
        if not self.policy.enabled or not self.overloaded(now) or agent.own_time(now) > LONG * objective:
            return None
        found = self._refuse(rank, name, BURST * objective, agent, now)
        detail = "it has waited for half of the time that it had, and others are turned away"
        return Refusal(found.problem, detail, found.retry_after, "expired")

    # Departures

    def dispatched(self, tag: float, agent: Agent, waited: bool) -> None:
        """A call was sent; ``waited``: out of the queue."""
        self._done += self.cost(agent)
        if waited:
            self._virtual = max(self._virtual, tag)

    def emptied(self, now: float) -> None:
        """Nothing waits any more."""
        self._busy = False
        self._short_at = now
        # Whoever had his turn then does not pay for it in the next queue.
        self._virtual = self._last_finish

    def ended(self, share: float) -> None:
        """A call has ended that wanted this share of a processor."""
        self.mean_share += (share - self.mean_share) * 0.02

    @property
    def limit(self) -> float:
        """Calls like those of late that may run at once."""
        capacity = self.capacity
        if capacity is None or not capacity.workers:
            return 0.0
        if not self.policy.enabled or self.mean_share <= 0.0:
            return float(capacity.slots)
        return min(float(capacity.slots), max(1.0, OVERLAP * self.processors / self.mean_share))

    # Time

    def tick(self, capacity: Capacity, waiting: int, now: float) -> None:
        """Average what was asked for and done since the last time, and deal out the shares anew.

        ``waiting``: requests in the queue.
        """
        elapsed = now - self._ticked_at
        self._ticked_at = now
        self.capacity = capacity
        if elapsed == math.inf:
            return
        self._keep_pace(elapsed)
        self._busy = waiting > 0
        keep = math.exp(-elapsed / MEMORY)
        self._rush = sum(self._arrived) / elapsed
        for rank, arrived in enumerate(self._arrived):
            self._inflow[rank] = self._inflow[rank] * keep + arrived / elapsed * (1.0 - keep)
            self._arrived[rank] = 0.0
        self.asked = 0.0
        for name, client in list(self._clients.items()):
            if now - client.heard_at > FORGOTTEN:
                del self._clients[name]
                continue
            # One that was met a moment ago is not averaged with a time when it was not there.
            fresh = max(1.0 - keep, min(1.0, elapsed / max(elapsed, now - client.since)))
            for urgency, asked in enumerate(client.asked):
                client.asks[urgency] += (asked / elapsed - client.asks[urgency]) * fresh
                client.asked[urgency] = 0.0
            self.asked += client.total
        self._share_out()

    def _keep_pace(self, elapsed: float) -> None:
        done, self._done = self._done, 0.0
        if self._busy:
            weight = 1.0 - math.exp(-elapsed / PACE_MEMORY)
            self.pace += (done / elapsed - self.pace) * weight
            self.pace = min(FASTEST, max(SLOWEST, self.pace))

    def _share_out(self) -> None:
        """The max-min fair share, and from which urgency on each client is beyond it."""
        clients = sorted(self._clients.values(), key=lambda client: client.total)
        self.share = math.inf
        if self.asked > self.pace and len(clients) > 1:
            left = self.pace
            for place, client in enumerate(clients):
                even = left / (len(clients) - place)
                if client.total > even:
                    self.share = even
                    break
                left -= client.total
        for client in clients:
            client.over_from = PRIORITIES
            together = 0.0
            for urgency, asks in enumerate(client.asks):
                together += asks
                if together > SLACK * self.share:
                    client.over_from = urgency
                    break

    # Coming back

    def retry_after(self, agent: Agent, wait: float, now: float) -> float:
        """Whole seconds after which a client that is turned away now has a good chance; books the place."""
        begun, last = self._overloaded_at
        self._overloaded_at = (begun if now - last < OVERLOADED else now, now)
        second = int(now)
        if second != self._second:
            self._second = second
            for past in [each for each in self._booked if each <= second]:
                del self._booked[past]
        first = max(1, math.ceil(wait))
        if max(self.asked, self._rush) > CROWDED * self.pace:
            # Nobody knows how long it lasts: as long again as it has lasted already is a fair guess.
            first = max(first, STEADY, min(int(now - self._overloaded_at[0]), LATEST // 2))
        cost, room = self.cost(agent), AT_ONCE * self.pace
        for at in range(max(second + first, self._full_until), second + LATEST + 1):
            booked = self._booked.get(at, 0.0)
            if not booked or booked + cost <= room:
                self._booked[at] = booked + cost
                return float(at - second)
            self._full_until = at + 1
        return float(self._rng.randint(LATEST // 2, LATEST))
