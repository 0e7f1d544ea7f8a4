"""Whom the engine talks to, as it sees them: the worker that runs a call, the fleet, and whoever counts.

Those who are told know the engine; it knows of them what is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from penstock.ipc.messages import ToWorker

from ..core.model import Worker
from .tickets import Ticket


class WorkerLink(Protocol):
    """What the engine needs of a worker's channel."""

    refused: Callable[[list[int]], None]

    def send_call(self, call: int, header: bytes, body: bytes) -> None: ...
    def control(self, message: ToWorker) -> None: ...


class Listener(Protocol):
    """Whom the engine tells what it cannot do itself."""

    def drained(self, worker: Worker) -> None:
        """A worker that drains has no call left."""

    def eased(self, worker: Worker) -> None:
        """A worker that is to be told a smaller share of connections has a call less."""

    def stalled(self, worker: Worker, ticket: Ticket) -> None:
        """A call did not yield within half the grace: its worker may have to be killed soon."""

    def overdue(self, worker: Worker, ticket: Ticket) -> None:
        """A call did not yield within the grace: the worker has to be killed."""


class Observer(Protocol):
    """Who counts what becomes of requests. Called on the request path: it is quick and raises nothing."""

    def answered(self, ticket: Ticket, worker: Worker, now: float) -> None:
        """A worker has ended a call for which somebody waits. ``now``: monotonic seconds."""

    def ended(self, ticket: Ticket) -> None:
        """A request that was accepted has ended in any other way than by a worker's answer."""

    def expired(self, agent: str, stage: str) -> None:
        """A deadline was over, or could not be met: at ``admission``, in the ``queue``, or with the ``agent``."""


class Unobserved:
    """The observer where nobody counts."""

    def answered(self, ticket: Ticket, worker: Worker, now: float) -> None:
        pass

    def ended(self, ticket: Ticket) -> None:
        pass

    def expired(self, agent: str, stage: str) -> None:
        pass
