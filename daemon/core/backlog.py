"""The bounded queue: what waits for a worker, in which order, and when to refuse more.

Order: by urgency first, then by arrival. A request whose agent has no free worker must not hold up those behind it
that have one, so each agent has a lane of its own and the head of every lane is looked at; lanes are few (one for each
agent that somebody waits for), requests many.

Marks: refusing starts when ``high_water`` requests wait or a body would bring the waiting bytes over ``max_bytes``,
and ends when the requests are down to ``low_water`` and the bytes to three quarters of the mark. The distance between
the marks keeps a full queue from flapping between yes and no with every single request that leaves it.

A request that a dead worker gives back returns to its old place, marks or no marks: it was accepted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .requests import PRIORITIES, Agent, Request, State

LOW_BYTES: Final = 0.75
"""The low-water mark for bytes, as a part of the high one."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Limits for everything that waits: requests, and bytes of bodies."""

    high_water: int = 1024
    low_water: int = 768
    max_bytes: int = 256 * 1024 * 1024


class Lane:
    """What waits for one agent. A heap, since a request that comes back keeps its place in the order of arrival.

    A request that leaves before its turn (deadline, client gone) is only marked; it is dropped when it comes to the
    head, or when more than half of the lane is such waste.
    """

    __slots__ = ("_heap", "agent", "live")

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.live = 0
        self._heap: list[tuple[int, int, Request]] = []

    def push(self, request: Request) -> None:
        heapq.heappush(self._heap, (request.priority, request.order, request))
        self.live += 1

    def head(self) -> tuple[int, int, Request] | None:
        heap = self._heap
        while heap and heap[0][2].state is not State.WAITING:
            heapq.heappop(heap)
        return heap[0] if heap else None

    def left(self) -> None:
        """One of the waiting has changed its state."""
        self.live -= 1
        if len(self._heap) > 2 * self.live + 16:
            self._heap = [entry for entry in self._heap if entry[2].state is State.WAITING]
            heapq.heapify(self._heap)

    def __iter__(self) -> Iterator[Request]:
        return (entry[2] for entry in sorted(self._heap) if entry[2].state is State.WAITING)


class Queue:
    """What waits for one pool."""

    __slots__ = ("lanes", "requests", "work")

    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}
        self.requests = 0
        self.work = [0.0] * PRIORITIES
        """Expected wall seconds of what waits, by urgency."""

    def ahead(self, priority: int) -> float:
        """Expected wall seconds of everything that goes before a new request of this urgency."""
        return sum(self.work[: priority + 1])


class Backlog:
    """All queues under one set of marks."""

    __slots__ = ("_marks", "_order", "_over", "bytes", "queues", "requests")

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._order = 0
        self._over = False
        self.queues: dict[str, Queue] = {}
        self.requests = 0
        self.bytes = 0

    @property
    def marks(self) -> Marks:
        return self._marks

    @property
    def refusing(self) -> bool:
        """A high-water mark was reached, and the low ones are not yet."""
        return self._over

    def remark(self, marks: Marks) -> None:
        """Take new marks; what waits stays."""
        self._marks = marks
        self._over = self.requests >= marks.high_water or self.bytes > marks.max_bytes

    def queue(self, pool: str) -> Queue:
        found = self.queues.get(pool)
        if found is None:
            found = self.queues[pool] = Queue()
        return found

    def fits(self, size: int) -> bool:
        """Whether one more request with a body of ``size`` bytes may wait. Asking is what trips the byte mark."""
        if self._over:
            return False
        if self.bytes + size > self._marks.max_bytes:
            self._over = self.bytes > self._marks.max_bytes * LOW_BYTES
            return False
        return True

    def number(self, request: Request) -> None:
        """Give the request its place in the order of arrival."""
        self._order += 1
        request.order = self._order

    def push(self, request: Request) -> None:
        """Let the request wait, in its place by urgency and arrival."""
        queue = self.queue(request.agent.pool)
        lane = queue.lanes.get(request.agent.name)
        if lane is None:
            lane = queue.lanes[request.agent.name] = Lane(request.agent)
        request.state = State.WAITING
        request.work = request.agent.cost.wall
        lane.push(request)
        queue.requests += 1
        queue.work[request.priority] += request.work
        self.requests += 1
        self.bytes += request.size
        if self.requests >= self._marks.high_water:
            self._over = True

    def leave(self, request: Request, state: State) -> None:
        """Take a waiting request out, wherever it stands; it goes on in ``state``."""
        queue = self.queues[request.agent.pool]
        request.state = state
        queue.requests -= 1
        left = queue.work[request.priority] - request.work
        queue.work[request.priority] = left if queue.requests and left > 0.0 else 0.0
        lane = queue.lanes[request.agent.name]
        lane.left()
        if not lane.live:
            del queue.lanes[request.agent.name]
        self.requests -= 1
        self.bytes -= request.size
        marks = self._marks
        if self._over and self.requests <= marks.low_water and self.bytes <= marks.max_bytes * LOW_BYTES:
            self._over = False

    def heads(self, pool: str) -> list[Request]:
        """The first of every lane of a pool, the one that is next before the others; all keep waiting."""
        queue = self.queues.get(pool)
        if queue is None or not queue.requests:
            return []
        heads = [head for lane in queue.lanes.values() if (head := lane.head()) is not None]
        heads.sort()
        return [request for _, _, request in heads]

    def waiting(self, pool: str, agent: str | None = None) -> list[Request]:
        """Everything that waits in a pool, or there for one agent, in the order of arrival."""
        queue = self.queues.get(pool)
        if queue is None:
            return []
        lanes = [lane for name, lane in queue.lanes.items() if agent is None or name == agent]
        return sorted((request for lane in lanes for request in lane), key=lambda request: request.order)
