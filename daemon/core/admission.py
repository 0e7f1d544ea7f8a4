"""Whether a request may wait, asked once for each request that finds no free worker.

The checks are in the order in which a refusal helps the client most: the deadline cannot be met; the queue is full; the
wait would be too long (``throttle``). The ``Retry-After`` of a refusal at a mark comes from the throttle too, which
knows the rate at which work is done.
"""

from __future__ import annotations

from typing import Any

from .backlog import Backlog
from .model import Agent, Request
from .refusals import Comeback, Problem, Refusal
from .throttle import Throttle


def beyond_marks(
    agent: Agent, name: str, size: int, backlog: Backlog[Any], throttle: Throttle, back: Comeback | None, now: float
) -> Refusal | None:
    """The refusal of one more request of the client ``name`` with a body of ``size`` bytes, if the marks do not allow
    it to wait. ``back``: what it was told before, if it is early.
    """
    if backlog.fits(size):
        return None
    marks = backlog.marks
    full = backlog.requests >= marks.low_water
    detail = (
        f"{backlog.requests} requests wait, {backlog.bytes} bytes of bodies wait or arrive (the marks are"
        f" {marks.high_water} requests and {marks.max_bytes} bytes); new ones are accepted again at the low-water mark"
    )
    wait = throttle.wait(backlog.queue(agent.pool), agent.priority, agent)
    comeback = throttle.turn_away(agent, name, agent.priority, wait, back, now)
    again = comeback.left(now)
    return Refusal(Problem.OVERLOADED, detail, again, "requests" if full else "bytes", comeback)


def admit(request: Request, backlog: Backlog[Any], throttle: Throttle, now: float) -> Refusal | None:
    """None: the request may wait. Otherwise the reason why not."""
    if request.deadline <= now:
        detail = "the deadline expired before the request could be queued"
        return Refusal(Problem.DEADLINE_EXCEEDED, detail, reason="deadline")
    return beyond_marks(request.agent, request.client, request.size, backlog, throttle, None, now)
