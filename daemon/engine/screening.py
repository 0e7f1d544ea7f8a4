"""Whether a request is welcome, asked before its body is read, and refusals that are held until it is their turn."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..core.comebacks import Hold
from ..core.model import Agent
from ..core.refusals import Comeback, Problem, Refusal
from ..core.scheduler import Scheduler
from .catalogue import Catalogue
from .holding import Holding
from .ports import Observer


class Screening:
    """Asks the scheduler, and counts whom it turns away."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        scheduler: Scheduler[Any],
        catalogue: Catalogue,
        observer: Observer,
        refused: Counter[tuple[str, int]],
        closed: Callable[[], str],
    ) -> None:
        """``refused``: requests by reason and urgency, counted here; ``closed``: why no request is taken any more, or
        an empty text.
        """
        self._scheduler = scheduler
        self._catalogue = catalogue
        self._observer = observer
        self._refused = refused
        self._closed = closed
        self._holding = Holding(loop)
        self.paced = 0
        """Refusals that were held back, since the start."""

    def screen(
        self,
        agent: Agent,
        client: str,
        priority: int,
        *,
        seconds: float,
        own_deadline: bool,
        now: float,
        back: Comeback | None = None,
        fresh: bool = True,
    ) -> int | Refusal | Hold:
        """Whether a request is welcome, known before its body is read: its rank; else why not, or that it has to
        ``wait`` before it is told.

        ``seconds``: until its deadline; ``own_deadline``: that is the client's. ``back`` and ``fresh``: what is known
        of its connection, as ``Scheduler.screen`` has it.
        """
        verdict = self._scheduler.screen(
            agent, client, priority, left=seconds, own_deadline=own_deadline, now=now, back=back, fresh=fresh
        )
        if isinstance(verdict, Refusal):
            self._count(verdict, agent, priority)
        return verdict

    async def wait(self, hold: Hold) -> int | Refusal:
        """Hold the refusal of a request until it is its turn, and look at the request once more."""
        try:
            await self._holding.wait(hold.until)
        except asyncio.CancelledError:
            self._scheduler.release(hold)
            raise
        agent = hold.agent
        gone = self._closed()
        if not gone and self._catalogue.get(agent.name) is None:
            gone = f"the agent {agent.name!r} was removed by a reload"
        if gone:
            self._scheduler.release(hold)
            return Refusal(Problem.UNAVAILABLE, gone)
        verdict = self._scheduler.again(hold, time.monotonic())
        if isinstance(verdict, Refusal):
            self.paced += 1
            self._count(verdict, agent, hold.priority)
        return verdict

    def _count(self, refusal: Refusal, agent: Agent, priority: int) -> None:
        self._refused[refusal.reason, priority] += 1
        if refusal.problem is Problem.DEADLINE_EXCEEDED:
            self._observer.expired(agent.name, "admission")

    def let_go(self) -> None:
        """Tell everybody whose refusal is held now."""
        self._holding.let_go()
