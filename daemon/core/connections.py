"""Who may hold how many database connections, so that all together never hold more than the budget.

Every worker that serves has a claim for each kind of pool that its agents use (``async``, ``sync``). The budget is
dealt out evenly over the claims. Dealing anew happens whenever a worker comes or goes; a share that shrinks is told
at once, but what it frees is only given away when its worker has said that it is free (``released``) or is dead: so
the sum of what may be held, counting every claim with the most that it may still hold, stays within the budget at
every moment.

With fewer connections than claims some workers get none of a kind, and must not be sent calls that need it. Then
every kind of every pool has its turn before one of them gets another, so that no agents are left without any worker;
and within a kind those go first that have the most already, so that a worker that comes takes nothing away that it
does not need: a replacement waits for what its predecessor leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Claim:
    """What one worker's pool of one kind may have."""

    worker: str
    generation: int
    kind: str
    share: int = 0
    """What it was told."""
    held: int = 0
    """The most that it may hold until it confirms a smaller share."""


@dataclass(frozen=True, slots=True)
class Change:
    """Tell this worker its new share."""

    worker: str
    generation: int
    kind: str
    share: int


class Ledger:
    """All claims on one budget."""

    __slots__ = ("_claims", "budget")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._claims: dict[tuple[str, int, str], Claim] = {}

    @property
    def held(self) -> int:
        """The most that all claims together may hold now."""
        return sum(claim.held for claim in self._claims.values())

    @property
    def granted(self) -> int:
        """What all claims together were told."""
        return sum(claim.share for claim in self._claims.values())

    def share(self, worker: str, generation: int, kind: str) -> int:
        """What this claim was told; 0 if there is no such claim."""
        claim = self._claims.get((worker, generation, kind))
        return 0 if claim is None else claim.share

    def join(self, worker: str, generation: int, kinds: Iterable[str]) -> list[Change]:
        """A worker has come that uses these kinds."""
        for kind in kinds:
            self._claims[worker, generation, kind] = Claim(worker, generation, kind)
        return self._deal()

    def leave(self, worker: str, generation: int) -> list[Change]:
        """A worker is dead; what it held is free."""
        for key in [key for key in self._claims if key[:2] == (worker, generation)]:
            del self._claims[key]
        return self._deal()

    def released(self, worker: str, generation: int, kind: str, connections: int) -> list[Change]:
        """A worker says that it holds no more than so many from now on."""
        claim = self._claims.get((worker, generation, kind))
        if claim is None:
            return []
        # A confirmation of an older, smaller share must not undercut one that was granted since.
        claim.held = max(claim.share, min(claim.held, connections))
        return self._deal()

    def _in_turn(self) -> list[Claim]:
        """All claims in the order in which a connection that is left over goes to one of them."""
        seen: dict[tuple[str, str], int] = {}
        turns: list[tuple[int, str, str, Claim]] = []
        for claim in sorted(self._claims.values(), key=lambda each: (-each.share, each.worker, each.generation)):
            pool = claim.worker.rpartition(":")[0]
            seen[pool, claim.kind] = turn = seen.get((pool, claim.kind), 0) + 1
            turns.append((turn, pool, claim.kind, claim))
        turns.sort(key=lambda each: each[:3])
        return [claim for *_, claim in turns]

    def _deal(self) -> list[Change]:
        """Move every share towards an even one, as far as what is free allows."""
        claims = self._in_turn()
        if not claims:
            return []
        even, left = divmod(self.budget, len(claims))
        changes: list[Change] = []
        wanted = [even + (place < left) for place in range(len(claims))]
        for claim, target in zip(claims, wanted, strict=True):
            if target < claim.share:
                claim.share = target
                changes.append(Change(claim.worker, claim.generation, claim.kind, target))
        free = self.budget - self.held
        for claim, target in zip(claims, wanted, strict=True):
            most = min(target, claim.share + free)
            # Who owes a confirmation is given no more before it, so that every one that is owed comes.
            if most > claim.share == claim.held:
                free -= most - claim.share
                claim.share = claim.held = most
                changes.append(Change(claim.worker, claim.generation, claim.kind, most))
        return changes
