"""The ledger against workers that take their time: the budget holds at every moment, and all of it is used in the end.

The model of a worker is what ``penstock.workers.database`` promises: it may open what it was last granted; told to hold
less, it goes on holding the old number until it has closed enough, and confirms that, unless an even smaller grant came
in between. Messages keep their order and take as long as they like.
"""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.daemon.core.connections import Change, Ledger


class Pool:
    """The connections of one kind in one worker, with the messages on their way to and from it."""

    def __init__(self) -> None:
        self.may_hold = 0
        self.wanted: int | None = None
        self.grants: deque[int] = deque()
        self.confirmations: deque[int] = deque()

    def hear(self) -> None:
        share = self.grants.popleft()
        if share >= self.may_hold:
            self.may_hold = share
            self.wanted = None
        else:
            self.wanted = share

    def shrink(self) -> None:
        assert self.wanted is not None
        self.may_hold = self.wanted
        self.confirmations.append(self.wanted)
        self.wanted = None


class Daemon(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(0)
        self.pools: dict[tuple[str, int, str], Pool] = {}
        self.generation = 0

    @precondition(lambda self: not self.generation)
    @rule(budget=st.integers(0, 12))
    def begin(self, budget: int) -> None:
        self.ledger = Ledger(budget)
        self.generation = 1

    def tell(self, changes: list[Change]) -> None:
        keys = [(change.worker, change.generation, change.kind) for change in changes]
        assert len(keys) == len(set(keys)), "two changes for one claim"
        for key, change in zip(keys, changes, strict=True):
            self.pools[key].grants.append(change.share)

    @precondition(lambda self: self.generation and len(self.pools) < 12)
    @rule(
        worker=st.sampled_from(["a:0", "a:1", "a:2", "b:0", "b:1"]),
        kinds=st.sampled_from([["async"], ["sync"], ["async", "sync"]]),
    )
    def join(self, worker: str, kinds: list[str]) -> None:
        self.generation += 1
        self.pools.update({(worker, self.generation, kind): Pool() for kind in kinds})
        self.tell(self.ledger.join(worker, self.generation, kinds))

    @precondition(lambda self: self.pools)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        worker, generation, _ = data.draw(st.sampled_from(sorted(self.pools)))
        self.pools = {key: pool for key, pool in self.pools.items() if key[:2] != (worker, generation)}
        self.tell(self.ledger.leave(worker, generation))

    def step(self, key: tuple[str, int, str]) -> None:
        """Let the next thing happen to this pool, if there is one."""
        pool = self.pools[key]
        if pool.confirmations:
            self.tell(self.ledger.released(*key, pool.confirmations.popleft()))
        elif pool.wanted is not None and not pool.grants:
            pool.shrink()
        elif pool.grants:
            pool.hear()

    @precondition(lambda self: self.pools)
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.pools)))
        pool = self.pools[key]
        if pool.wanted is not None and data.draw(st.booleans()):
            pool.shrink()
        else:
            self.step(key)

    def busy(self) -> list[tuple[str, int, str]]:
        return [key for key, pool in self.pools.items() if pool.grants or pool.confirmations or pool.wanted is not None]

    @precondition(lambda self: self.pools)
    @rule()
    def everything_settles(self) -> None:
        steps = 0
        while busy := self.busy():
            self.step(busy[0])
            steps += 1
            assert steps < 1000, "the ledger and the workers never come to an end"
        given = {key: pool.may_hold for key, pool in self.pools.items()}
        assert given == {key: self.ledger.share(*key) for key in given}
        assert sum(given.values()) == self.ledger.budget
        assert max(given.values()) - min(given.values()) <= 1
        groups: dict[tuple[str, str], int] = {}
        for (worker, _, kind), share in given.items():
            group = (worker.partition(":")[0], kind)
            groups[group] = groups.get(group, 0) + share
        if self.ledger.budget >= len(groups):
            assert all(groups.values()), "a kind of a pool has nothing while others have"

    @invariant()
    def the_budget_holds(self) -> None:
        assert sum(pool.may_hold for pool in self.pools.values()) <= self.ledger.held <= self.ledger.budget
        assert self.ledger.granted <= self.ledger.held


TestLedger = Daemon.TestCase
TestLedger.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
