"""The one timer that all deadlines share, and what is done when it fires. What is due ``core.deadlines`` tells."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter

from ..core.refusals import Problem, Refusal
from ..core.scheduler import Escalation, Scheduler, Step
from .endings import Endings
from .ports import Observer
from .tickets import Ticket
from .workers import Workers

log = logging.getLogger("penstock.engine")


class Deadlines:
    """Sets the timer for the earliest tick of the scheduler's wheel, and acts on what is due."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        scheduler: Scheduler[Ticket],
        workers: Workers,
        endings: Endings,
        observer: Observer,
        refused: Counter[tuple[str, int]],
    ) -> None:
        """``refused``: requests by reason and urgency, counted here."""
        self._loop = loop
        self._scheduler = scheduler
        self._workers = workers
        self._endings = endings
        self._observer = observer
        self._refused = refused
        self._timer: asyncio.TimerHandle | None = None
        self.armed = math.inf
        """The tick that the timer is set for: whoever adds an earlier one to the wheel calls ``arm``."""

    def arm(self) -> None:
        """Set the one timer for the earliest tick that has entries."""
        at = self._scheduler.wheel.next_at()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.armed = math.inf
        if at is not None:
            self.armed = self._scheduler.wheel.tick(at)
            self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        for escalation in self._scheduler.expire(time.monotonic()):
            ticket = escalation.request
            try:
                self._act_on(escalation, ticket)
            except Exception:
                # The deadlines of others are over, too, and those that come want the timer.
                log.exception("handling an expired deadline failed", extra={"request_id": ticket.request_id})
        self.arm()
        self._endings.check_idle()

    def _act_on(self, escalation: Escalation[Ticket], ticket: Ticket) -> None:
        if escalation.step is Step.FAILED:
            self._endings.fail(ticket, escalation.error)
            return
        if escalation.step is Step.ANSWER:
            self._observer.expired(ticket.agent.name, "queue")
            self._endings.refuse(ticket, Refusal(Problem.DEADLINE_EXCEEDED, "the deadline expired while it waited"))
            return
        if escalation.refusal is not None:
            self._refused[escalation.refusal.reason, ticket.priority] += 1
            self._endings.refuse(ticket, escalation.refusal)
            return
        worker = ticket.worker
        assert worker is not None
        if escalation.step is Step.CANCEL:
            self._observer.expired(ticket.agent.name, "agent")
            late = "the deadline expired while it ran"
            self._endings.refuse(ticket, Refusal(Problem.DEADLINE_EXCEEDED, late, worker=worker.name))
            self._workers.cancel(ticket, worker, "deadline")
        elif escalation.step is Step.STALLED:
            self._workers.listeners[worker].stalled(ticket)
        else:
            self._workers.listeners[worker].overdue(ticket)
