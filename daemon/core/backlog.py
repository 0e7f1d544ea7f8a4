"""The bounded queue: what waits for a worker, in which order, and when to refuse more.

Order: by rank first, then by tag, then by arrival. Rank and tag are given by ``throttle``: the rank is the urgency, or
lies behind all urgencies for clients over their share; the tags let clients take turns within a rank. A request whose
agent has no free worker must not hold up those behind it that have one, so each agent has a lane of its own in every
rank, and the head of every lane is considered; lanes are few (one for each agent that is waited for), requests many.

Marks: refusing starts when ``high_water`` requests wait or a body would bring the bytes over ``max_bytes``, and ends
when the requests are down to ``low_water`` and the bytes to three quarters of the mark. The distance between the marks
keeps a full queue from switching between accepting and refusing with every request that leaves it. The bytes are those
of bodies that wait and of bodies that are on their way, as far as these have arrived: what a client only announces
takes no room, so that slow or idle ones cannot shut out the others. One that finds no room for what it sends next is
refused, and has what it sent given back.

A request that a dead worker gives back returns to its old place, marks or no marks: it was accepted.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from .model import RANKS, Agent, Request, State

R = TypeVar("R", bound=Request)

WAITS: Final = 0.1
"""Of a processor: an agent that wants less of one is not held up by what others compute."""

LOW_BYTES: Final = 0.75
"""The low-water mark for bytes, as a part of the high one."""


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Limits for everything that waits: requests, and bytes of bodies."""

    high_water: int = 1024
    low_water: int = 768
    max_bytes: int = 256 * 1024 * 1024


class Lane(Generic[R]):
    """What waits for one agent in one rank. A heap, since a request that comes back keeps its place.

    A request that leaves before its turn (deadline, client gone) is only marked; it is dropped when it comes to the
    head, or when more than half of the lane is such waste.
    """

    __slots__ = ("_heap", "agent", "live", "wall")

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.live = 0
        self.wall = 0.0
        """Expected wall seconds of what waits."""
        self._heap: list[tuple[float, int, R]] = []

    def push(self, request: R) -> None:
        heapq.heappush(self._heap, (request.tag, request.order, request))
        self.live += 1
        self.wall += request.wall

    def head(self) -> tuple[float, int, R] | None:
        heap = self._heap
        while heap and heap[0][2].state is not State.WAITING:
            heapq.heappop(heap)
        return heap[0] if heap else None

    def left(self, request: R) -> None:
        """One of the waiting has changed its state."""
        self.live -= 1
        self.wall -= request.wall
        if len(self._heap) > 2 * self.live + 16:
            self._heap = [entry for entry in self._heap if entry[2].state is State.WAITING]
            heapq.heapify(self._heap)

    def in_order(self) -> Iterator[R]:
        """What waits, the first first. What is taken out of the lane meanwhile costs no more than its turn would."""
        while (head := self.head()) is not None:
            yield head[2]
            if head[2].state is State.WAITING:
                break
        rest = sorted(self._heap)[1:]
        yield from (entry[2] for entry in rest if entry[2].state is State.WAITING)

    def __iter__(self) -> Iterator[R]:
        return (entry[2] for entry in self._heap if entry[2].state is State.WAITING)


@dataclass(slots=True)
class Work:
    """What requests mean in expected seconds: the wall time of all, that of calls for threads, the CPU time of all."""

    wall: float = 0.0
    sync: float = 0.0
    cpu: float = 0.0

    def count(self, request: Request, sign: float) -> None:
        """Add a request, or take it away."""
        self.wall += sign * request.wall
        self.cpu += sign * request.cpu
        if request.agent.sync:
            self.sync += sign * request.wall

    def clear(self) -> None:
        """Nothing waits: sums of floats drift, and this is the natural place to begin anew."""
        self.wall = self.sync = self.cpu = 0.0


class Band(Generic[R]):
    """What waits in one rank, and the work that it means: of long calls, and of the others.

    They are apart since the others do not wait for the long ones, of which only a few may run at once. What waits for
    agents with a limit of their own counts in its lane only: it can wait there for ever and still hold up nobody else.
    """

    __slots__ = ("brief", "lanes", "long", "rank", "requests", "works")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.lanes: dict[str, Lane[R]] = {}
        self.requests = 0
        self.brief = Work()
        self.long = Work()
        self.works = (self.brief, self.long)

    def push(self, request: R) -> None:
        agent = request.agent
        lane = self.lanes.get(agent.name)
        if lane is None:
            lane = self.lanes[agent.name] = Lane(agent)
        lane.push(request)
        self.requests += 1
        self._count(request, 1.0)

    def leave(self, request: R) -> None:
        name = request.agent.name
        lane = self.lanes[name]
        lane.left(request)
        if not lane.live:
            del self.lanes[name]
        self.requests -= 1
        if self.requests:
            self._count(request, -1.0)
        else:
            self.brief.clear()
            self.long.clear()

    def _count(self, request: R, sign: float) -> None:
        if not request.agent.max_concurrency:
            (self.long if request.long else self.brief).count(request, sign)

    def heads(self) -> list[R]:
        """The first of every lane, the one that is next before the others; all keep waiting."""
        if len(self.lanes) == 1:
            # Most of the time one agent is waited for.
            (only,) = self.lanes.values()
            first = only.head()
            return [] if first is None else [first[2]]
        heads = [head for lane in self.lanes.values() if (head := lane.head()) is not None]
        heads.sort()
        return [head[2] for head in heads]


def _rank(band: Band[Any]) -> int:
    return band.rank


def _take_one(counts: dict[str, int], name: str) -> None:
    left = counts[name] - 1
    if left:
        counts[name] = left
    else:
        del counts[name]


class Queue(Generic[R]):
    """What waits for one pool."""

    __slots__ = ("_agents", "_bands", "_clients", "busy", "kept_for", "requests", "work")

    def __init__(self) -> None:
        self._agents: dict[str, int] = {}
        self._clients: dict[str, int] = {}
        self._bands: list[Band[R]] = [Band(rank) for rank in range(RANKS)]
        self.busy: list[Band[R]] = []
        """The bands in which something waits, the first to be served first."""
        self.requests = 0
        self.work = Work()
        """That of all bands together."""
        self.kept_for: R | None = None
        """The next free processor is kept for this one of those that wait."""

    def push(self, request: R) -> None:
        band = self._bands[request.rank]
        if not band.requests:
            insort(self.busy, band, key=_rank)
        band.push(request)
        self.requests += 1
        agent = request.agent
        self._agents[agent.name] = self._agents.get(agent.name, 0) + 1
        self._clients[request.client] = self._clients.get(request.client, 0) + 1
        if not agent.max_concurrency:
            self.work.count(request, 1.0)

    def leave(self, request: R) -> None:
        band = self._bands[request.rank]
        band.leave(request)
        if not band.requests:
            self.busy.remove(band)
        self.requests -= 1
        if request is self.kept_for:
            self.kept_for = None
        agent = request.agent
        _take_one(self._agents, agent.name)
        _take_one(self._clients, request.client)
        if not self.requests:
            self.work.clear()
        elif not agent.max_concurrency:
            self.work.count(request, -1.0)

    def has_rank(self, rank: int) -> bool:
        """Whether something waits in this rank."""
        return self._bands[rank].requests > 0

    def has(self, agent: Agent) -> bool:
        """Whether something waits for this agent."""
        return agent.name in self._agents

    def keep_for(self, request: R | None) -> None:
        """Keep the next free processor for this one of those that wait, or for none."""
        self.kept_for = request

    def has_client(self, name: str) -> bool:
        """Whether something of this client waits."""
        return name in self._clients

    def is_behind(self, request: R) -> bool:
        """Whether this one, which comes now, has its turn after something that waits."""
        if self.kept_for is None:
            return self.has(request.agent)
        name, rank = request.agent.name, request.rank
        return self.holds_back(request) or any(band.rank <= rank and name in band.lanes for band in self.busy)

    def holds_back(self, request: R) -> bool:
        """Whether this one has to wait for the one for which the next free processor is kept."""
        first = self.kept_for
        return (
            first is not None
            and first is not request
            and first.rank <= request.rank
            and request.agent.cost.cpu_share > WAITS
        )

    def count(self, agent: Agent) -> int:
        """How many requests wait for this agent."""
        return self._agents.get(agent.name, 0)

    def waiting_for(self, agent: Agent) -> Iterator[R]:
        """What waits for this agent, the first to be served first. It may be taken out meanwhile."""
        for band in list(self.busy):
            lane = band.lanes.get(agent.name)
            if lane is not None:
                yield from lane.in_order()

    def __iter__(self) -> Iterator[R]:
        return (request for band in self.busy for lane in band.lanes.values() for request in lane)


class Backlog(Generic[R]):
    """All queues under one set of marks."""

    __slots__ = ("_marks", "_order", "_over", "bytes", "queues", "requests")

    def __init__(self, marks: Watermarks) -> None:
        self._marks = marks
        self._order = 0
        self._over = False
        self.queues: dict[str, Queue[R]] = {}
        self.requests = 0
        self.bytes = 0
        """Of the bodies that wait, and of those that arrive."""

    @property
    def marks(self) -> Watermarks:
        return self._marks

    @property
    def refusing(self) -> bool:
        """A high-water mark was reached, and the low ones are not yet."""
        return self._over

    def remark(self, marks: Watermarks) -> None:
        """Take new marks; what waits stays, and refusing goes on until all is down to the low ones."""
        self._marks = marks
        if self.requests >= marks.high_water or self.bytes > marks.max_bytes:
            self._over = True
        self._settle()

    def queue(self, pool: str) -> Queue[R]:
        queue = self.queues.get(pool)
        if queue is None:
            queue = self.queues[pool] = Queue()
        return queue

    def fits(self, size: int) -> bool:
        """Whether one more request with a body of ``size`` bytes may wait. Asking is what trips the byte mark."""
        if self._over:
            return False
        if self.bytes + size > self._marks.max_bytes:
            self._over = self.bytes > self._marks.max_bytes * LOW_BYTES
            return False
        return True

    def reserve(self, size: int) -> bool:
        """Count bytes of a body that arrives, until ``release``. False: they would bring the bytes over the mark, and
        are not counted. What was begun goes on while requests are refused otherwise, as long as there is room.
        """
        if self.bytes + size > self._marks.max_bytes:
            return self.fits(size)
        self.bytes += size
        return True

    def release(self, size: int) -> None:
        """Give back what was reserved: the body is complete, or will never be."""
        self.bytes -= size
        self._settle()

    def claim(self, size: int) -> None:
        """Count bytes of a stream that are on their way, until ``release``. A call that was let in has its first window
        whether there is room or not.
        """
        self.bytes += size

    def has_plenty(self, size: int) -> bool:
        """Whether the window of a stream may grow by so many bytes: up to the low-water mark."""
        return not self._over and self.bytes + size <= self._marks.max_bytes * LOW_BYTES

    def number(self, request: R) -> None:
        """Give the request its place in the order of arrival."""
        self._order += 1
        request.order = self._order

    def push(self, request: R) -> None:
        """Let the request wait, in its place by rank, tag and arrival."""
        cost = request.agent.cost
        request.state = State.WAITING
        request.wall = cost.wall
        request.cpu = cost.cpu
        request.long = cost.is_long
        self.queue(request.agent.pool).push(request)
        self.requests += 1
        self.bytes += request.size
        if self.requests >= self._marks.high_water:
            self._over = True

    def leave(self, request: R, state: State) -> None:
        """Take a waiting request out, wherever it stands; it goes on in ``state``."""
        request.state = state
        self.queues[request.agent.pool].leave(request)
        self.requests -= 1
        self.bytes -= request.size
        self._settle()

    def _settle(self) -> None:
        """End the refusing if all is down to the low-water marks."""
        marks = self._marks
        if self._over and self.requests <= marks.low_water and self.bytes <= marks.max_bytes * LOW_BYTES:
            self._over = False

    def waiting(self, pool: str, agent: str | None = None) -> list[R]:
        """Everything that waits in a pool, or there for one agent, in the order of arrival."""
        queue = self.queues.get(pool)
        if queue is None:
            return []
        waiting = (request for request in queue if agent is None or request.agent.name == agent)
        return sorted(waiting, key=lambda request: request.order)
