"""What becomes of requests, counted: the engine's observer, which the metrics and all views read.

Everything here is called for every request, on the loop, so it counts and does nothing else: a dictionary of agents
that exist, lists and small dictionaries of integers in it, no object for a request, no lock. Answers are only noted,
and counted some hundred at once, or when somebody reads. Counters only rise. They belong to the supervisor and not to
workers, so a worker's death takes none of them along; an agent that a reload removes keeps its own, so
that they do not fall if it comes back.

Three times are told apart. A *response* lasts from the moment a request is complete to its end, whatever that is; of
requests that are refused at once there is none, since fast refusals would make a slow service look quick. Its part in
the *queue* ends when a worker gets it. The rest is the worker's: by that, workers are compared.

``tick`` ends a turn, about each second: rates are the differences between turns.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from operator import sub
from typing import Final

from ..core.model import Worker
from ..core.window import SPAN, Histogram, Window, merged, quantile, tally
from ..engine.tickets import Ticket
from .poolstats import DatabasePools

REFUSALS: Final = frozenset({429, 503})
"""Status codes of refusals; other ones from 500 up are failures."""

NOTED: Final = 256
"""Answers of a worker to an agent's calls that are counted at once."""

Totals = tuple[int, int, int]
"""2xx answers, refusals and failures so far."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Traffic of a stretch of time. Rates are a second; times are seconds, None where nothing came."""

    rate: float
    """2xx answers."""
    refused: float
    failed: float
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Pace:
    """What a worker answers. ``rate`` is a second, times are seconds."""

    rate: float
    p50: float | None
    p95: float | None


class Answers:
    """What one worker has answered to the calls of one agent: the newest as they are, the others counted."""

    __slots__ = ("took", "waited", "window")

    def __init__(self) -> None:
        self.took: list[float] = []
        """Seconds from arrival to answer, of those that are not counted yet."""
        self.waited: list[float] = []
        """Seconds of these in the queue."""
        self.window = Window()
        """Those that are counted, with the worker's part of the time."""


class AgentTraffic:
    """The counters of one agent."""

    __slots__ = (
        "batches",
        "codes",
        "expired",
        "gathered",
        "items",
        "nested",
        "responses",
        "stalled",
        "totals",
        "window",
        "workers",
    )

    def __init__(self) -> None:
        self.codes: defaultdict[int, int] = defaultdict(int)
        """Requests by the status of their answer; 499 where the client had gone."""
        self.expired: defaultdict[str, int] = defaultdict(int)
        """Deadlines that were over, by stage."""
        self.items = 0
        """Items of streams."""
        self.nested = 0
        """Times that other agents have asked for it."""
        self.stalled = 0.0
        """Seconds in which streams waited for their readers."""
        self.batches: defaultdict[int, int] = defaultdict(int)
        """Batches by the number of their requests."""
        self.gathered = Histogram()
        """Seconds from the arrival of a batch's first request until it went."""
        self.responses = Histogram()
        self.window = Window()
        self.workers: dict[str, Answers] = {}
        self.totals: deque[Totals] = deque([(0, 0, 0)], maxlen=SPAN + 1)
        """At the end of each of the last turns."""

    def sums(self) -> Totals:
        good = refused = failed = 0
        for code, count in self.codes.items():
            if code in REFUSALS:
                refused += count
            elif code >= 500:
                failed += count
            elif code < 300:
                good += count
        return good, refused, failed


class Traffic:
    """An ``engine.Observer``."""

    def __init__(self, now: float, pools: DatabasePools | None = None) -> None:
        """``now``: monotonic seconds; ``pools``: who counts the waits for connections."""
        self._pools = pools or DatabasePools()
        self._turn = 0
        self._turned: deque[float] = deque([now], maxlen=SPAN + 1)
        self._agents: dict[str, AgentTraffic] = {}
        self._queue = Histogram()

    @property
    def agents(self) -> Mapping[str, AgentTraffic]:
        """Every agent that was ever called, everything counted."""
        self._count_all()
        return self._agents

    def agent(self, name: str) -> AgentTraffic | None:
        """One agent, its answers counted to the end of the last turn; None if it was never called."""
        return self._agents.get(name)

    @property
    def queue(self) -> Histogram:
        """Seconds between a request's arrival and its worker."""
        self._count_all()
        return self._queue

    def waited(self, seconds: float) -> None:
        """As ``engine.Observer``."""
        self._pools.waited(seconds)

    def _agent(self, name: str) -> AgentTraffic:
        found = self._agents.get(name)
        if found is None:
            found = self._agents[name] = AgentTraffic()
        return found

    # The engine's and the front's observer

    def responded(self, agent: str, status: int) -> None:
        """A request for an agent that exists has its answer."""
        # Its own lookup here and below: calls of ``_agent`` would be a ninth of what both take.
        (self._agents.get(agent) or self._agent(agent)).codes[status] += 1

    def answered(self, ticket: Ticket, worker: Worker, now: float) -> None:
        """A worker has ended a call for which somebody waits. ``now``: monotonic seconds."""
        name = ticket.agent.name
        agent = self._agents.get(name) or self._agent(name)
        answers = agent.workers.get(worker.name)
        if answers is None:
            answers = agent.workers[worker.name] = Answers()
        arrived = ticket.arrived_at
        answers.waited.append(ticket.dispatched_at - arrived)
        took = answers.took
        took.append(now - arrived)
        if len(took) >= NOTED:
            self._count(agent, answers)

    def _count_all(self) -> None:
        for agent in self._agents.values():
            for answers in agent.workers.values():
                if answers.took:
                    self._count(agent, answers)

    def _count(self, agent: AgentTraffic, answers: Answers) -> None:
        took, waited = answers.took, answers.waited
        theirs = list(map(sub, took, waited)) if any(waited) else took
        counts = tally(took)
        agent.responses.add(counts, sum(took))
        agent.window.add(counts, self._turn)
        self._queue.add(tally(waited), sum(waited))
        answers.window.add(counts if theirs is took else tally(theirs), self._turn)
        took.clear()
        waited.clear()

    def ended(self, ticket: Ticket) -> None:
        """A request that was accepted has ended without an answer of a worker."""
        now = time.monotonic()
        agent = self._agent(ticket.agent.name)
        agent.window.observe(agent.responses.observe(now - ticket.arrived_at), self._turn)
        self._queue.observe((ticket.dispatched_at or now) - ticket.arrived_at)

    def expired(self, agent: str, stage: str) -> None:
        """A deadline was over: at ``admission``, in the ``queue``, or with the ``agent``."""
        self._agent(agent).expired[stage] += 1

    def streamed(self, agent: str, items: int) -> None:
        """So many items of a stream have come."""
        self._agent(agent).items += items

    def waited_for_reader(self, agent: str, seconds: float) -> None:
        """A stream has ended that had to wait for its reader for so long."""
        self._agent(agent).stalled += seconds

    def nested(self, agent: str) -> None:
        """A call has asked for this agent."""
        self._agent(agent).nested += 1

    def batched(self, agent: str, size: int, seconds: float) -> None:
        """A batch of so many requests goes to a worker, this long after the first of them came."""
        found = self._agent(agent)
        found.batches[size] += 1
        found.gathered.observe(seconds)

    # Turns

    def tick(self, now: float) -> None:
        """A turn has ended. ``now``: monotonic seconds."""
        self._count_all()
        for agent in self._agents.values():
            agent.totals.append(agent.sums())
        self._turn += 1
        self._turned.append(now)

    def _seconds(self, span: int) -> float:
        """The length of the last ``span`` turns, or of as many as there were."""
        turned = self._turned
        return max(1e-9, turned[-1] - turned[max(0, len(turned) - 1 - span)])

    def summary(self, span: int = SPAN, agent: AgentTraffic | None = None) -> Summary:
        """Of one agent, or of all together, over the last turns."""
        chosen = list(self._agents.values()) if agent is None else [agent]
        seconds = self._seconds(span)
        counts = merged(each.window.counts(self._turn, span) for each in chosen)
        grown = [_growth(each.totals, span) for each in chosen]
        good, refused, failed = (sum(column) / seconds for column in zip(*grown, strict=True)) if grown else (0, 0, 0)
        return Summary(good, refused, failed, *(quantile(counts, part) for part in (0.5, 0.95, 0.99)))

    def paces(self, worker: str) -> tuple[Pace, dict[str, Pace]]:
        """What a worker answers: all together, and by agent."""
        seconds = self._seconds(SPAN)
        counts: dict[str, dict[int, int]] = {}
        for name, agent in self._agents.items():
            answers = agent.workers.get(worker)
            if answers is not None and (found := answers.window.counts(self._turn)):
                counts[name] = found
        return _pace(merged(counts.values()), seconds), {name: _pace(each, seconds) for name, each in counts.items()}


def _growth(totals: deque[Totals], span: int) -> Totals:
    newest, oldest = totals[-1], totals[max(0, len(totals) - 1 - span)]
    return newest[0] - oldest[0], newest[1] - oldest[1], newest[2] - oldest[2]


def _pace(counts: Mapping[int, int], seconds: float) -> Pace:
    return Pace(sum(counts.values()) / seconds, quantile(counts, 0.5), quantile(counts, 0.95))
