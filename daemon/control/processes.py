"""The processes that clients name: ``group:name``, ``group:*`` for all of a group, or a group of one by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from supervisor.xmlrpc import Faults, RPCError

from ..fleet.fleet import Fleet
from ..fleet.views import WorkerView
from . import views
from .rpc import printable

Work = Callable[[WorkerView], Coroutine[Any, Any, object]]


class Processes:
    """Finds the fleet's workers by supervisord's names."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def find(self, name: str) -> tuple[str, WorkerView | None]:
        """The group, and the process unless all of the group is meant (``RPCError``)."""
        group, colon, process = name.partition(":")
        if not colon:
            process = group
        if not any(worker.pool == group for worker in self._fleet.workers()):
            raise RPCError(Faults.BAD_NAME, name)
        if colon and process in ("", "*"):
            return group, None
        worker = self._fleet.worker(f"{group}:{process}")
        if worker is None:
            raise RPCError(Faults.BAD_NAME, name)
        return group, worker

    def one(self, name: str) -> WorkerView:
        """The process (``RPCError``)."""
        worker = self.find(name)[1]
        if worker is None:
            raise RPCError(Faults.BAD_NAME, name)
        return worker

    def group(self, name: str) -> list[WorkerView]:
        """All of a group (``RPCError``)."""
        workers = [worker for worker in self._fleet.workers() if worker.pool == name]
        if not workers:
            raise RPCError(Faults.BAD_NAME, name)
        return workers

    def all(self) -> list[WorkerView]:
        """Those of all groups."""
        return self._fleet.workers()


async def on_each(workers: Iterable[WorkerView], work: Work) -> list[Any]:
    """Do it with all at once; a status struct for each, in the order in which they were done."""
    results: list[Any] = []

    async def one(worker: WorkerView) -> None:
        code, text = Faults.SUCCESS, "OK"
        try:
            await work(worker)
        except RPCError as error:
            code, text = error.code, printable(error.text)
        results.append({"name": views.process_name(worker), "group": worker.pool, "status": code, "description": text})

    await asyncio.gather(*(one(worker) for worker in workers))
    return results
