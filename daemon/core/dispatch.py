"""Which worker gets a request: credits say who may, the balance policy says who of them does.

*Credits.* A worker has ``slots``; of these at most ``threads`` may be sync calls at once; an agent may have a limit of
its own. A request goes to a worker only against a free credit, so nothing ever queues inside a worker.

*least-loaded* compares expected work: each call in flight counts with the measured cost of its agent (CPU time; waiting
hardly counts), and the oldest call counts with the time that it has computed already, since a call that has outlived
its average is most likely a long one. Counting calls instead would put a 1 ms call behind a 200 ms one as readily as
behind another of 1 ms.

*round-robin* takes turns, and skips who may not.

*hash* sends requests with the same ``Affinity-Key`` to the same worker, by rendezvous hashing (Thaler and Ravishankar,
1996): a worker that comes or goes moves only its own keys. Bounded load (Mirrokni, Thorup and Zadimoghaddam, 2016)
keeps one hot key from drowning its worker: above 1.25 times the mean number of calls the next in the key's order is
taken. Requests without a key are placed as by least-loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from zlib import crc32

from .requests import Request

BOUND: Final = 1.25
"""How far above the mean a worker may be loaded before its keys go elsewhere."""


class Balance(StrEnum):
    """The policies, by their names in the configuration."""

    LEAST_LOADED = "least-loaded"
    ROUND_ROBIN = "round-robin"
    HASH = "hash"


@dataclass(slots=True, eq=False)
class Worker:
    """One incarnation of a worker, as far as placing requests goes."""

    name: str
    generation: int
    pool: str
    slots: int
    threads: int
    agents: frozenset[str] = frozenset()
    """The agents it may be asked for now."""
    serving: bool = True
    """It may be given calls. False while it drains."""
    calls: dict[int, Request] = field(default_factory=dict)
    """Calls in flight by id, the oldest first."""
    sync_calls: int = 0
    by_agent: dict[str, int] = field(default_factory=dict)
    """Calls in flight of the agents that have a limit."""
    load: float = 0.0
    """Expected seconds of work in flight."""
    answered: int = 0

    def may_take(self, request: Request) -> bool:
        """Whether there is a free credit for this request."""
        agent = request.agent
        return (
            self.serving
            and len(self.calls) < self.slots
            and agent.name in self.agents
            and not (agent.sync and self.sync_calls >= self.threads)
            and not (agent.max_concurrency and self.by_agent.get(agent.name, 0) >= agent.max_concurrency)
        )

    def expected(self, now: float) -> float:
        """Seconds of work that a new call would find before it."""
        if not self.calls:
            return 0.0
        oldest = next(iter(self.calls.values()))
        return self.load + (now - oldest.dispatched_at) * oldest.agent.cost.cpu_share

    def take(self, request: Request, call: int, now: float) -> None:
        """Book a call on this worker."""
        agent = request.agent
        request.worker = self
        request.call = call
        request.dispatched_at = now
        request.work = agent.cost.work
        self.calls[call] = request
        self.load += request.work
        if agent.sync:
            self.sync_calls += 1
        if agent.max_concurrency:
            self.by_agent[agent.name] = self.by_agent.get(agent.name, 0) + 1

    def release(self, request: Request) -> None:
        """Give the call's credit back."""
        agent = request.agent
        del self.calls[request.call]
        # Sums of floats drift; an empty worker is the natural place to begin anew.
        self.load = self.load - request.work if self.calls else 0.0
        if agent.sync:
            self.sync_calls -= 1
        if agent.max_concurrency:
            self.by_agent[agent.name] -= 1
        request.worker = None


class Pool:
    """The workers of one pool and the policy that chooses among them."""

    __slots__ = ("_turn", "balance", "name", "workers")

    def __init__(self, name: str, balance: Balance = Balance.LEAST_LOADED) -> None:
        self.name = name
        self.balance = balance
        self.workers: list[Worker] = []
        self._turn = 0

    def join(self, worker: Worker) -> None:
        self.workers.append(worker)
        self.workers.sort(key=lambda each: (each.name, each.generation))

    def part(self, worker: Worker) -> None:
        self.workers.remove(worker)

    @property
    def slots(self) -> int:
        """Slots of all serving workers."""
        return sum(worker.slots for worker in self.workers if worker.serving)

    def choose(self, request: Request, now: float) -> Worker | None:
        """The worker for this request; None when no one has a credit for it."""
        if self.balance is Balance.HASH and request.affinity:
            return self._by_affinity(request)
        if self.balance is Balance.ROUND_ROBIN:
            return self._in_turn(request)
        return self._least_loaded(request, now)

    def _least_loaded(self, request: Request, now: float) -> Worker | None:
        best: Worker | None = None
        least = math.inf
        workers = self.workers
        count = len(workers)
        self._turn = turn = (self._turn + 1) % count if count else 0
        for step in range(count):
            worker = workers[turn + step - count]
            if worker.may_take(request):
                expected = worker.expected(now)
                if expected < least:
                    best, least = worker, expected
                    if not expected:
                        break
        return best

    def _in_turn(self, request: Request) -> Worker | None:
        workers = self.workers
        for step in range(len(workers)):
            at = (self._turn + step) % len(workers)
            if workers[at].may_take(request):
                self._turn = at + 1
                return workers[at]
        return None

    def _by_affinity(self, request: Request) -> Worker | None:
        serving = [worker for worker in self.workers if worker.serving and request.agent.name in worker.agents]
        if not serving:
            return None
        calls = sum(len(worker.calls) for worker in serving) + 1
        bound = math.ceil(BOUND * calls / len(serving))
        key = crc32(request.affinity.encode())
        # The hash of a tuple of integers is the same in every process, and mixes well; that of strings is not.
        serving.sort(key=lambda worker: hash((crc32(worker.name.encode()), key)), reverse=True)
        able = [worker for worker in serving if worker.may_take(request)]
        # The bound says where to go, never whether: a free credit is not left unused.
        return next((worker for worker in able if len(worker.calls) < bound), able[0] if able else None)
