"""Whether a request may wait, asked once for each request that finds no free worker.

The order of the questions is the order of the answers that help a client most: nobody will ever run it; it cannot be
in time; there is no room.

The predicted wait counts what waits ahead at the same urgency or a better one, in seconds of measured wall time, over
the slots that work it off. It leaves out the rest of the calls that run, so it errs on the low side: a request that is
refused for its deadline could really not have been met. While nothing waits the prediction is 0 and cannot lock the
door, however wrong the measured cost is.
"""

from __future__ import annotations

from .backlog import Backlog, Queue
from .requests import Problem, Refusal, Request


def predicted_wait(queue: Queue, request: Request, slots: int) -> float:
    """Seconds that a new request will wait, at the least, for one of ``slots`` (at least one is assumed)."""
    if not queue.requests:
        return 0.0
    return queue.ahead(request.priority) / max(slots, 1)


def admit(request: Request, backlog: Backlog, slots: int, now: float) -> Refusal | None:
    """None: the request may wait. Otherwise the reason why not."""
    queue = backlog.queue(request.agent.pool)
    if request.deadline <= now:
        return Refusal(Problem.DEADLINE_EXCEEDED, "the deadline was over before the request could be queued")
    # Without a serving worker there is no rate to predict from: a restart is due, and the deadline bounds the wait.
    wait = predicted_wait(queue, request, slots) if slots else 0.0
    if now + wait > request.deadline:
        left = request.deadline - now
        detail = f"about {wait:.3g} s of waiting are ahead of it, and its deadline is in {left:.3g} s"
        return Refusal(Problem.DEADLINE_EXCEEDED, detail)
    if not backlog.fits(request.size):
        marks = backlog.marks
        detail = (
            f"{backlog.requests} requests with {backlog.bytes} bytes wait"
            f" (the marks are {marks.high_water} requests and {marks.max_bytes} bytes)"
        )
        return Refusal(Problem.OVERLOADED, detail, retry_after=max(wait, predicted_wait(queue, request, slots)))
    return None
