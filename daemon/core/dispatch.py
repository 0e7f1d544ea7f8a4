"""Which worker gets a request: credits say who may (``model``), the balance policy says who of them does.

*least-loaded* compares expected work: each call in flight counts with the measured cost of its agent (CPU time; waiting
hardly counts), and the oldest call counts with the time that it has computed already, since a call that has outlived
its average is most likely a long one. Counting calls instead would put a 1 ms call behind a 200 ms one as readily as
behind another of 1 ms. The worker that got the last call is given the next one, too, while what it has to do takes less
than waking another would: ten echoes at once then cost two thirds of what they do spread over four workers.

*round-robin* takes turns, and skips who may not.

*hash* sends requests with the same ``Affinity-Key`` to the same worker, by rendezvous hashing (Thaler and Ravishankar,
1996): a worker that comes or goes moves only its own keys. What the key's worker has no credit for goes to the next in
the key's order. That bound is enough, since a worker with all its credits taken is not late with what it has; one by
the mean number of calls (Mirrokni, Thorup and Zadimoghaddam, 2016) would send the second of two calls elsewhere
whenever little else is going on. Requests without a key are placed as by least-loaded.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final
from zlib import crc32

from .model import Agent, Capacity, Request, Worker
from .suspension import WAITING, is_open

WAKING: Final = 0.0001
"""CPU seconds that it takes to wake a worker for a call, with ZeroMQ's threads on both sides."""


class Balance(StrEnum):
    """The policies, by their names in the configuration."""

    LEAST_LOADED = "least-loaded"
    ROUND_ROBIN = "round-robin"
    HASH = "hash"


class Pool:
    """The workers of one pool and the policy that chooses among them."""

    __slots__ = ("_last", "_turn", "balance", "name", "workers")

    def __init__(self, name: str, balance: Balance = Balance.LEAST_LOADED) -> None:
        self.name = name
        self.balance = balance
        self.workers: list[Worker] = []
        self._turn = 0
        self._last: Worker | None = None
        """Got the last call."""

    def join(self, worker: Worker) -> None:
        self.workers.append(worker)
        self.workers.sort(key=lambda worker: (worker.name, worker.generation))

    def remove(self, worker: Worker) -> None:
        self.workers.remove(worker)
        if worker is self._last:
            self._last = None

    def capacity(self) -> Capacity:
        """What all serving workers have together."""
        serving = [worker for worker in self.workers if worker.serving]
        return Capacity(
            len(serving), sum(worker.slots for worker in serving), sum(worker.threads for worker in serving)
        )

    def serves(self) -> bool:
        """Whether any worker may be given calls."""
        return any(worker.serving for worker in self.workers)

    def has_room(self, agent: Agent) -> bool:
        """Whether any worker has a credit for a call of this agent."""
        workers = self.workers
        return (
            bool(workers)
            and workers[0].host.has_room(agent)
            and any(each.may_take(agent) and each.suspended < WAITING * each.slots for each in workers)
        )

    def lacks_processor(self, agent: Agent) -> bool:
        """Whether a call of this agent, which is no long one, finds no processor beside some worker's other calls."""
        return not agent.run_cost.is_long and any(
            worker.serving
            and agent.name in worker.agents
            and not (worker.host.has_room(agent) and worker.processors.has_room(agent))
            for worker in self.workers
        )

    def lacks_connection(self, agent: Agent) -> bool:
        """Whether a worker could have a call of this agent if it had a connection for it."""
        return agent.connection and any(
            worker.serving and agent.name in worker.agents and worker.lacks_connection(agent.database)
            for worker in self.workers
        )

    def is_meant(self, worker: Worker, request: Request) -> bool:
        """Whether this worker may have this request in a batch that it gets: not one whose key is another worker's."""
        return self.balance is not Balance.HASH or not request.affinity or self._by_affinity(request) is worker

    def choose(self, request: Request, now: float) -> Worker | None:
        """The worker for this request; None when no one has a credit for it."""
        workers = self.workers
        if workers and not workers[0].host.has_room(request.agent):
            return None
        if self.balance is Balance.HASH and request.affinity:
            return self._by_affinity(request)
        if self.balance is Balance.ROUND_ROBIN:
            return self._in_turn(request)
        return self._least_loaded(request, now)

    def _least_loaded(self, request: Request, now: float) -> Worker | None:
        last = self._last
        if (
            last is not None
            and 0.0 < last.load < WAKING
            and last.is_prompt(now)
            and is_open(last, request)
            and last.may_take(request.agent)
        ):
            return last
        self._last = best = self._least_expected(request, now)
        return best

    def _least_expected(self, request: Request, now: float) -> Worker | None:
        best: Worker | None = None
        least = math.inf
        workers = self.workers
        agent = request.agent
        count = len(workers)
        self._turn = turn = (self._turn + 1) % count if count else 0
        for step in range(count):
            worker = workers[turn + step - count]
            # Under load most have no slot left: asked here, that costs no call.
            if worker.processors.calls < worker.slots and worker.may_take(agent) and is_open(worker, request):
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
            if workers[at].may_take(request.agent) and is_open(workers[at], request):
                self._turn = at + 1
                return workers[at]
        return None

    def _by_affinity(self, request: Request) -> Worker | None:
        able = [each for each in self.workers if each.may_take(request.agent) and is_open(each, request)]
        # Any text is a key: also one with lone surrogates, as a header's odd bytes become.
        key = crc32(request.affinity.encode(errors="surrogatepass"))
        # The hash of a tuple of integers is the same in every process, and mixes well; that of strings is not.
        return max(able, key=lambda worker: hash((crc32(worker.name.encode()), key)), default=None)
