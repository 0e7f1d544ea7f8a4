"""Calls of agents by agents: a call that a worker has asks for another agent, and gets the result as a reply.

A child is a ticket like any other, whose sink sends what comes to the worker of its parent. It has its parent's client,
urgency and trace, a deadline that is no later, and the parent's request id with the number of the ask. It was let in
with its parent, so it is neither screened nor refused at the marks; the scheduler has it go before what came from
outside (``core.scheduler``).

While children are open their parent is suspended: its worker holds it, and neither a slot nor a share of a processor is
taken by it (``core.suspension``). That holds from the first open child to the reply of the last. A parent that computes
meanwhile, or works on items of a child's stream, is suspended as well: whether a coroutine waits is nothing that the
supervisor could know at every moment, and a stream whose parent had its slot back could wait for that very slot.

Nobody waits for the children of a call that has ended in any way, whose worker has died or that was given up: they are
withdrawn, and theirs with them.

Invariant: a family has children that have not ended, and its parent runs; a parent without a family is not suspended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from penstock.ipc.messages import Abandon, Answer, Ask, FromCall, Head, Outcome, Part, Reply, Taken

from ..core.model import State, Worker
from ..core.refusals import Problem, Refusal
from ..core.scheduler import Scheduler
from ..core.suspension import LEVELS
from .catalogue import Catalogue, Listing
from .ports import Observer, WorkerLink
from .tickets import Ticket


class Describe(Protocol):
    """Makes the document of a problem."""

    def __call__(
        self, name: str, detail: str, request_id: str, *, agent: str = "", worker: str = "", status: int = 0
    ) -> tuple[int, bytes]:
        """Status and JSON. ``status``: other than the usual one of this NAME."""


class Tickets(Protocol):
    """What the engine does with children as with all tickets."""

    observer: Observer
    catalogue: Catalogue
    scheduler: Scheduler[Ticket]

    def submit(self, ticket: Ticket) -> None:
        """Send, queue or refuse it."""

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody waits for it any more."""

    def allow(self, ticket: Ticket, credit: int) -> None:
        """Let its worker send so many bytes more of its stream."""


class Child:
    """The sink of a child's ticket."""

    __slots__ = ("_nested", "ask", "call_id", "parent", "ticket", "worker")

    ticket: Ticket

    def __init__(self, nested: Nested, worker: Worker, parent: Ticket, ask: int) -> None:
        """``worker``: the parent's; ``ask``: the number of the ask in its call."""
        self._nested = nested
        self.worker = worker
        self.parent = parent
        self.call_id = parent.call_id
        self.ask = ask

    def items(self, ticket: Ticket, body: bytes, head: Head | None) -> None:
        """Part of its stream."""
        self._nested.part(self, body, head)

    def ended(self, ticket: Ticket) -> None:
        """It has its outcome."""
        self._nested.settled(self)


class Nested:
    """All calls that have children."""

    def __init__(
        self,
        engine: Tickets,
        links: Mapping[Worker, WorkerLink],
        pump: Callable[[], None],
        describe: Describe,
    ) -> None:
        """``links``: to the workers that there are; ``pump``: send what waits in any pool and can run now."""
        self._engine = engine
        self._links = links
        self._pump = pump
        self._describe = describe
        self.families: dict[Ticket, dict[int, Child]] = {}
        """The open children by their parents, and there by the number of the ask."""

    # From the parent's worker

    def received(self, worker: Worker, message: FromCall, body: bytes) -> None:
        """What a call says of its children. Of a call for which nobody waits it is dropped."""
        parent = self._engine.scheduler.calls(worker).get(message.call)
        if parent is None or parent.state is not State.RUNNING:
            return
        if isinstance(message, Ask):
            self._begin(Child(self, worker, parent, message.ask), message, body)
            return
        child = self.families.get(parent, {}).get(message.ask)
        if child is None:
            return  # it has ended meanwhile
        if isinstance(message, Taken):
            self._engine.allow(child.ticket, message.credit)
        elif isinstance(message, Abandon):
            self._leave(child)
            self._engine.withdraw(child.ticket)
            self._pump()

    def _begin(self, child: Child, ask: Ask, body: bytes) -> None:
        listing = self._listed(child.parent, ask.agent)
        if isinstance(listing, Refusal):
            request_id = f"{child.parent.request_id}.{ask.ask}"
            self._say(child, *self._problem(listing.problem.value, listing.detail, request_id, ask.agent))
            return
        child.ticket = ticket = _ticket(child, ask, body, listing)
        self.families.setdefault(child.parent, {})[child.ask] = child
        self._engine.observer.nested(ask.agent)
        self._engine.scheduler.suspend(child.parent)
        self._engine.submit(ticket)
        self._pump()

    def _listed(self, parent: Ticket, name: str) -> Listing | Refusal:
        """The agent that is asked for."""
        if parent.depth >= LEVELS:
            return Refusal(Problem.CALL_LIMIT, f"agents may call each other over {LEVELS} levels, and this is one more")
        listing = self._engine.catalogue.lookup(name)
        return listing or Refusal(Problem.UNKNOWN_AGENT, f"there is no agent {name!r:.150}")

    # To the parent's worker

    def part(self, child: Child, body: bytes, head: Head | None) -> None:
        """Part of a child's stream has come."""
        self._links[child.worker].reply(Part(child.call_id, child.ask, head), body)

    def settled(self, child: Child) -> None:
        """A child has its outcome. Of one that was withdrawn nobody is told."""
        if self._leave(child):
            self._say(child, *self._outcome(child.ticket))

    def _leave(self, child: Child) -> bool:
        """Take a child out of its family. False: it was in none any more."""
        family = self.families.get(child.parent)
        if family is None or family.get(child.ask) is not child:
            return False
        del family[child.ask]
        if not family:
            del self.families[child.parent]
            self._engine.scheduler.resume(child.parent)
        return True

    def _say(self, child: Child, problem: bool, status: int, content_type: str, body: bytes) -> None:
        self._links[child.worker].reply(Reply(child.call_id, child.ask, problem, status, content_type), body)

    def _outcome(self, ticket: Ticket) -> tuple[bool, int, str, bytes]:
        """Whether it is a problem, its status, its media type and its body."""
        outcome, name = ticket.outcome, ticket.agent.name
        if isinstance(outcome, Refusal):
            return self._problem(outcome.problem.value, outcome.detail, ticket.request_id, name, outcome.worker)
        if not isinstance(outcome, Answer):
            return self._problem("http-error", "the supervisor failed at it", ticket.request_id, name, status=500)
        if outcome.outcome == Outcome.RESULT:
            return False, outcome.status, outcome.content_type, ticket.result
        if outcome.outcome == Outcome.CANCELLED:
            detail = "the agent cancelled itself"
            return self._problem("agent-error", detail, ticket.request_id, name, outcome.worker)
        return self._problem(outcome.problem, outcome.detail, ticket.request_id, name, outcome.worker)

    def _problem(
        self, name: str, detail: str, request_id: str, agent: str, worker: str = "", status: int = 0
    ) -> tuple[bool, int, str, bytes]:
        status, body = self._describe(name, detail, request_id, agent=agent, worker=worker, status=status)
        return True, status, "", body

    # Ends

    def close(self, parent: Ticket) -> None:
        """A call waits for no child any more: it has ended, or its worker has, or nobody waits for it."""
        family = self.families.pop(parent, None)
        if family is None:
            return
        self._engine.scheduler.resume(parent)
        for child in family.values():
            self._engine.withdraw(child.ticket)


def _ticket(child: Child, ask: Ask, body: bytes, listing: Listing) -> Ticket:
    now = time.monotonic()
    parent, agent = child.parent, listing.agent
    ticket = Ticket(
        agent,
        now,
        min(parent.deadline, ask.deadline, now + agent.timeout),
        request_id=f"{parent.request_id}.{ask.ask}",
        body=body,
        headers=None,
        priority=parent.priority,
        client=parent.client,
        affinity="",
        sink=child,
        trace=(ask.traceparent, ask.tracestate),
    )
    ticket.parent = parent
    ticket.depth = parent.depth + 1
    return ticket
