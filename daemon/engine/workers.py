"""The workers that are ready: how each is reached, who hears about it, what it offers, and whether it drains."""

from __future__ import annotations

from collections.abc import Collection

from penstock.ipc.messages import AgentInfo

from ..core.model import Block, Worker
from .ports import Listener, WorkerLink
from .tickets import Ticket


class Workers:
    """From ``join`` to ``leave`` a worker is in all of these."""

    def __init__(self) -> None:
        self.links: dict[Worker, WorkerLink] = {}
        self.listeners: dict[Worker, Listener] = {}
        self._offers: dict[Worker, frozenset[str]] = {}
        """The agents that each worker has, whether it may be asked for them now or not."""
        self.draining: set[Worker] = set()

    def join(self, worker: Worker, link: WorkerLink, agents: Collection[AgentInfo], listener: Listener) -> None:
        """A worker is ready."""
        self.links[worker] = link
        self.listeners[worker] = listener
        self._offers[worker] = frozenset(info.name for info in agents)
        worker.batches = {info.name: info.batch for info in agents if info.batch}

    def leave(self, worker: Worker) -> None:
        """A worker's process is gone."""
        del self.links[worker], self.listeners[worker], self._offers[worker]
        self.draining.discard(worker)

    def offered(self, pool: str) -> frozenset[str] | None:
        """The agents of the pool's workers that do not drain; None if all of them do."""
        serving = [worker for worker in self.links if worker.pool == pool and worker not in self.draining]
        return frozenset[str]().union(*(self._offers[worker] for worker in serving)) if serving else None

    @property
    def are_serving(self) -> bool:
        """Whether any worker may get calls."""
        return any(worker.serving and worker not in self.draining for worker in self.links)

    def check_drained(self, worker: Worker) -> None:
        """Tell the fleet if a draining worker has no call left."""
        if worker in self.draining and not worker.calls:
            worker.block(Block.DRAINING)
            self.listeners[worker].drained()

    def ease(self, worker: Worker) -> None:
        """Tell the fleet if a worker that has a call less is owed connections."""
        if worker.owed:
            self.listeners[worker].eased()

    def cancel(self, ticket: Ticket, worker: Worker, reason: str) -> None:
        """Have a worker stop working on a call. ``reason``: ``deadline`` or ``gone``."""
        self.links[worker].cancel(ticket.call_id, reason)
