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
        if not any(place.pool == group for place in self._fleet.workers()):
            raise RPCError(Faults.BAD_NAME, name)
        if colon and process in ("", "*"):
            return group, None
        place = self._fleet.worker(f"{group}:{process}")
        if place is None:
            raise RPCError(Faults.BAD_NAME, name)
        return group, place

    def one(self, name: str) -> WorkerView:
        """The process (``RPCError``)."""
        place = self.find(name)[1]
        if place is None:
            raise RPCError(Faults.BAD_NAME, name)
        return place

    def group(self, name: str) -> list[WorkerView]:
        """All of a group (``RPCError``)."""
        places = [place for place in self._fleet.workers() if place.pool == name]
        if not places:
            raise RPCError(Faults.BAD_NAME, name)
        return places

    def all(self) -> list[WorkerView]:
        """Those of all groups."""
        return self._fleet.workers()


async def each(places: Iterable[WorkerView], work: Work) -> list[Any]:
    """Do it with all at once; a status struct for each, in the order in which they were done."""
    results: list[Any] = []

    async def one(place: WorkerView) -> None:
        code, text = Faults.SUCCESS, "OK"
        try:
            await work(place)
        except RPCError as error:
            code, text = error.code, printable(error.text)
        results.append({"name": views.process_name(place), "group": place.pool, "status": code, "description": text})

    await asyncio.gather(*(one(place) for place in places))
    return results
