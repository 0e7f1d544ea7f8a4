"""Calls that wait for calls of their own, and what they give back meanwhile.

A call that waits for calls of its own (``engine.nested``) gives its slot, its share of processors and its thread back
until they have ended, so that they can run there, and takes them again without waiting, since what it waited for then
could be itself. It keeps its connection, and its place among the calls of an agent with a limit of its own, which may
well be a lock. A batch keeps all: its one slot is that of many.

What came from outside goes to no worker with ``WAITING`` suspended calls for each slot. Children do, so that what was
begun can end. Of those that wait the deepest goes first (``scheduler``). So when a child begins, each suspended call
below the first level has a descendant that runs, of which there are no more than slots, with ``BELOW`` calls above each
at most. That is how many may be suspended; a call beyond keeps its slot. A worker never has more than ``places`` calls.
"""

from __future__ import annotations

from typing import Final

from .model import Request, Worker

LEVELS: Final = 8
"""Calls of which each has asked for the next, that of the client included."""

WAITING: Final = 4
"""Calls for each slot, or thread, that may be suspended before a worker gets nothing more from outside."""

BELOW: Final = LEVELS - 1
"""Calls for each slot that may be suspended beyond those: the levels below one that came from outside."""


def suspendable(slots: int) -> int:
    """Calls that a worker with so many slots may have suspended."""
    return (WAITING + BELOW) * slots


def places(slots: int) -> int:
    """Calls that a worker with so many slots may have, those that are suspended included."""
    return slots + suspendable(slots)


def is_open(worker: Worker, request: Request) -> bool:
    """Whether this worker takes such a request at all: from outside it takes none while too much waits in it."""
    return request.depth > 1 or worker.suspended < WAITING * worker.slots


def suspend(worker: Worker, request: Request) -> None:
    """A call waits for calls of its own: give back what they may need. Nothing happens if too many do already."""
    if request.suspended or request.batch is not None or worker.suspended >= suspendable(worker.slots):
        return
    request.suspended = True
    worker.suspended += 1
    worker.load = worker.load - request.work if len(worker.calls) > worker.suspended else 0.0
    worker.processors.release(request)
    worker.host.release(request)
    if request.agent.sync:
        worker.sync_calls -= 1


def resume(worker: Worker, request: Request) -> None:
    """A call goes on, whether there is a credit or not. Nothing happens if it was not suspended."""
    if not request.suspended:
        return
    request.suspended = False
    worker.suspended -= 1
    worker.load += request.work
    worker.processors.take(request)
    worker.host.take(request)
    if request.agent.sync:
        worker.sync_calls += 1
