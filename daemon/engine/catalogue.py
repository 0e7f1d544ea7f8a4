"""What can be called, and where: every agent that a worker has reported, until a reload takes it away.

A pool of which no worker has reported yet may offer any agent. So a name that is not here is unknown only once all
pools were heard; until then it cannot be said, and the answer is a refusal that says why.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from penstock.ipc.messages import AgentInfo

from ..core.model import Agent
from ..core.refusals import Problem, Refusal


@dataclass(slots=True)
class Listing:
    """An agent in the catalogue: what it is to the core, and how its worker describes it."""

    agent: Agent
    info: AgentInfo


class Catalogue(dict[str, Listing]):
    """The agents by their names. It is read like any mapping; only its methods write it."""

    def __init__(self) -> None:
        super().__init__()
        self.timeout = 30.0
        """Seconds for agents that state none."""
        self._pools: tuple[str, ...] = ()
        self._heard: set[str] = set()
        self._unavailable: set[str] = set()

    def configure(self, pools: Collection[str], timeout: float) -> None:
        """Take the settings of a configuration: the pools that there are to be, and seconds for agents that state
        none.
        """
        self._pools = tuple(pools)
        self.timeout = timeout
        for listing in self.values():
            listing.agent.timeout = timeout if listing.info.timeout is None else listing.info.timeout

    @property
    def has_reports(self) -> bool:
        """Whether a worker of any pool has reported."""
        return bool(self._heard)

    def report(self, pool: str, agents: Collection[AgentInfo]) -> None:
        """A worker of this pool is ready and offers these agents."""
        for info in agents:
            self._list(info)
        self._heard.add(pool)

    def _list(self, info: AgentInfo) -> None:
        listing = self.get(info.name)
        if listing is None or listing.agent.pool != info.pool:
            listing = self[info.name] = Listing(Agent(info.name, info.pool), info)
        listing.info = info
        agent = listing.agent
        agent.sync = info.kind == "sync"
        agent.idempotent = info.idempotent
        agent.timeout = self.timeout if info.timeout is None else info.timeout
        agent.priority = info.priority
        agent.max_concurrency = info.max_concurrency
        agent.database = info.database
        agent.connection = info.connection
        agent.batch(info.batch, info.batch_wait)

    def prune(self, pool: str, offered: Collection[str]) -> list[Agent]:
        """Drop the agents of a pool that are not among these; which they were."""
        gone = [each.agent for each in self.values() if each.agent.pool == pool and each.agent.name not in offered]
        for agent in gone:
            del self[agent.name]
        return gone

    def forget(self, pool: str) -> list[Agent]:
        """There is no such pool any more. Its agents, which are unknown from now on."""
        self._heard.discard(pool)
        self._unavailable.discard(pool)
        return self.prune(pool, ())

    def mark_unavailable(self, pool: str) -> None:
        """No worker of this pool can come back by itself."""
        self._unavailable.add(pool)

    def mark_available(self, pool: str) -> None:
        """A worker of this pool is on its way again."""
        self._unavailable.discard(pool)

    def lookup(self, name: str) -> Listing | Refusal | None:
        """The agent of that name; None if there is none; a refusal while that cannot be known."""
        listing = self.get(name)
        if listing is not None:
            return listing
        unheard = [pool for pool in self._pools if pool not in self._heard]
        if not unheard:
            return None
        unavailable = [pool for pool in unheard if pool in self._unavailable]
        if unavailable:
            return Refusal(Problem.UNAVAILABLE, f"the workers of pool {unavailable[0]!r} could not be started")
        return Refusal(Problem.UNAVAILABLE, f"the workers of pool {unheard[0]!r} are starting")
