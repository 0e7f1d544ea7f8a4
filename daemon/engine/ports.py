"""The protocols through which the engine calls others: the worker that runs a call, the fleet, and the observer.

Those who implement them know the engine; the engine knows of them what is written here.
"""

from __future__ import annotations

from typing import Protocol

from penstock.ipc.messages import Batch, Call, Part, Reply

from ..core.model import Worker
from .tickets import Ticket


class WorkerLink(Protocol):
    """The way to a worker."""

    def send(self, call: Call, body: bytes, /) -> None:
        """Send a call, or raise what is wrong with it. If there is no way to the worker, ``refused_by`` is called."""

    def send_batch(self, batch: Batch, bodies: bytes, /) -> None:
        """The same for calls that go together, with their bodies one after another."""

    def cancel(self, call_id: int, reason: str) -> None:
        """Have the worker stop working on a call. ``reason``: ``deadline`` or ``gone``."""

    def allow(self, call_id: int, credit: int) -> None:
        """Let the worker send so many bytes more of a call's stream."""

    def reply(self, message: Part | Reply, body: bytes) -> None:
        """Tell a call what has become of its child."""


class Listener(Protocol):
    """Whom the engine tells what it cannot do itself about one worker."""

    def drained(self) -> None:
        """The worker drains, and has no call left."""

    def eased(self) -> None:
        """The worker is to be told a smaller share of connections, and has a call less."""

    def stalled(self, ticket: Ticket) -> None:
        """A call did not yield within half the grace: the worker may have to be killed soon."""

    def overdue(self, ticket: Ticket) -> None:
        """A call did not yield within the grace: the worker has to be killed."""


class Observer(Protocol):
    """Who counts what becomes of requests. Called on the request path: it is quick and raises nothing."""

    def answered(self, ticket: Ticket, worker: Worker, now: float) -> None:
        """A worker has ended a call for which somebody waits. ``now``: monotonic seconds."""

    def ended(self, ticket: Ticket) -> None:
        """A request that was accepted has ended in any other way than by a worker's answer."""

    def expired(self, agent: str, stage: str) -> None:
        """A deadline was over, or could not be met: at ``admission``, in the ``queue``, or with the ``agent``."""

    def streamed(self, agent: str, items: int) -> None:
        """So many items of a stream have come."""

    def waited_for_reader(self, agent: str, seconds: float) -> None:
        """A stream has ended that had to wait for its reader for so long."""

    def batched(self, agent: str, size: int, seconds: float) -> None:
        """A batch of so many requests goes to a worker, this long after the first of them came."""

    def waited(self, seconds: float) -> None:
        """A request has got a database connection that it waited for in the queue."""

    def nested(self, agent: str) -> None:
        """A call has asked for this agent."""


class Unobserved:
    """The observer where nobody counts."""

    def answered(self, ticket: Ticket, worker: Worker, now: float) -> None:
        pass

    def ended(self, ticket: Ticket) -> None:
        pass

    def expired(self, agent: str, stage: str) -> None:
        pass

    def streamed(self, agent: str, items: int) -> None:
        pass

    def waited_for_reader(self, agent: str, seconds: float) -> None:
        pass

    def batched(self, agent: str, size: int, seconds: float) -> None:
        pass

    def waited(self, seconds: float) -> None:
        pass

    def nested(self, agent: str) -> None:
        pass
