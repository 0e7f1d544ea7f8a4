"""How requests end in other ways than by a worker's answer, and when the last of them has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from penstock.ipc.log import call_fields

from ..core.model import State, Worker
from ..core.refusals import Problem, Refusal
from ..core.scheduler import Scheduler
from .ports import Observer
from .tickets import Failed, Ticket
from .workers import Workers

log = logging.getLogger("penstock.engine")


class Endings:
    """Tells the sink of a request, and whoever counts, that it has ended."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, scheduler: Scheduler[Ticket], workers: Workers, observer: Observer
    ) -> None:
        self._loop = loop
        self._scheduler = scheduler
        self._workers = workers
        self._observer = observer
        self.last: asyncio.Future[None] | None = None
        """Done once the last request has ended; None while nobody waits for that."""

    def fail(self, ticket: Ticket, error: BaseException | None, *, accepted: bool = True) -> None:
        """A step at a request raised. It is in no book any more, and its client is told that the fault is ours.

        ``accepted``: it waited or was sent already.
        """
        fields = call_fields(ticket.request_id, ticket.traceparent, ticket.agent.name)
        log.error("an internal error ended a request", exc_info=error, extra=fields)
        if accepted:
            self._observer.ended(ticket)
        ticket.end(Failed())
        # It may have been booked on any of them.
        for worker in self._workers.links:
            self._workers.ease(worker)
        for worker in self._workers.draining:
            # Later, since what waits may be about to be sent to it.
            self._loop.call_soon(self._workers.check_drained, worker)
        self.check_idle()

    def refuse(self, ticket: Ticket, refusal: Refusal) -> None:
        """End a request without an answer of a worker. It is in no book any more, or never was."""
        if ticket.state is not State.NEW:
            self._observer.ended(ticket)
        elif refusal.problem is Problem.DEADLINE_EXCEEDED:
            self._observer.expired(ticket.agent.name, "admission")
        ticket.end(refusal)

    def refuse_all(self, tickets: Collection[Ticket], refusal: Refusal) -> None:
        """End several in the same way."""
        for ticket in tickets:
            self.refuse(ticket, refusal)

    def idle(self) -> asyncio.Future[None]:
        """Done once nothing waits and nothing runs for a client."""
        if self.last is None:
            self.last = self._loop.create_future()
            self.check_idle()
        return self.last

    def check_idle(self) -> None:
        """Something has ended, and it may have been the last."""
        if self.last is None or self.last.done():
            return
        if not self._scheduler.backlog.requests and not self._scheduler.in_flight:
            self.last.set_result(None)

    def cut_off_worker(self, worker: Worker, reason: str) -> int:
        """Answer every call of a worker that has no answer yet with ``unavailable``; how many there were."""
        running = [request for request in self._scheduler.calls(worker).values() if request.state is State.RUNNING]
        self.refuse_all(running, Refusal(Problem.UNAVAILABLE, reason, worker=worker.name))
        return len(running)

    def cut_off(self, reason: str) -> int:
        """End every request that has no answer yet with ``unavailable``; how many there were."""
        refusal = Refusal(Problem.UNAVAILABLE, reason)
        waiting = self._scheduler.end_waiting()
        self.refuse_all(waiting, refusal)
        count = len(waiting)
        for worker in self._workers.links:
            count += self.cut_off_worker(worker, reason)
        self.check_idle()
        return count
