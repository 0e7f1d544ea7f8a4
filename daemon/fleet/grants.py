"""Who may hold how many database connections (``core.connections``), and who has to be told so.

A worker that joins reads its share; all others whose shares change by that are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, Protocol

from penstock.ipc.messages import AgentInfo

from ..core.connections import Change, Ledger
from .backend import Identity

OWN_CONNECTIONS: Final = 1
"""Of all connections, the supervisor's."""


class Holder(Protocol):
    """A worker that may hold connections."""

    @property
    def identity(self) -> Identity: ...

    def allotted(self, kind: str, share: int) -> None:
        """So many of its calls may hold a connection from now on."""


class Grants:
    """The budget, dealt out over the workers that serve."""

    def __init__(self, most: int) -> None:
        """``most``: connections that the daemon and all its workers may have (``database.max_connections``)."""
        self._ledger = Ledger(most - OWN_CONNECTIONS)
        self._holders: dict[tuple[str, int], Holder] = {}

    @property
    def granted(self) -> int:
        """Database connections that workers may open now."""
        return self._ledger.granted

    def share(self, identity: Identity, kind: str) -> int:
        """What this worker may hold."""
        return self._ledger.share(identity.name, identity.generation, kind)

    def join(self, holder: Holder, kinds: Collection[str]) -> list[Change]:
        """A worker comes that uses these kinds; the changes that are to be told once it serves."""
        name, generation = holder.identity.name, holder.identity.generation
        self._holders[name, generation] = holder
        return self._ledger.join(name, generation, sorted(kinds))

    def tell(self, changes: list[Change]) -> None:
        """Tell each its new share."""
        for change in changes:
            holder = self._holders.get((change.worker, change.generation))
            if holder is not None:
                holder.allotted(change.kind, change.share)

    def released(self, identity: Identity, kind: str, connections: int) -> None:
        """A worker says that it holds no more than so many from now on."""
        self.tell(self._ledger.released(identity.name, identity.generation, kind, connections))

    def leave(self, identity: Identity, closed: asyncio.Future[None] | None) -> None:
        """A worker is dead. What it held counts until its connections are ``closed``; None: they are."""
        self._holders.pop((identity.name, identity.generation), None)
        if closed is None:
            self._free(identity)
        else:
            closed.add_done_callback(lambda _: self._free(identity))

    def _free(self, identity: Identity) -> None:
        self.tell(self._ledger.leave(identity.name, identity.generation))

    def available(self, identity: Identity, offered: list[AgentInfo], database: bool) -> frozenset[str]:
        """Of the agents that a worker offers, those that it can be asked for: where there is a database, those with it
        only with a share of connections.
        """
        shares = {kind: bool(self.share(identity, kind)) for kind in ("async", "sync")}
        return frozenset(info.name for info in offered if not database or shares.get(info.database, True))
