"""Credits for connections are exact: a call that is sent finds a permit, however grants and calls overtake each other.

The ledger and the supervisor's view of its workers are the real ones. The model of a worker is what
``penstock.workers.database`` promises: as many permits as it was granted last; told to hold less, it confirms that once
no more calls than that have a connection. Grants keep their order among themselves, and so do confirmations; calls
come whenever they come.
"""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.daemon.core.connections import Change, Ledger
from penstock.daemon.core.model import Agent, Request, Worker

KIND = "async"
ASKS = Agent("asks", "p", database=KIND, connection=True)
DRAWS = Agent("draws", "p", database=KIND)


class Remote:
    """The worker's own process, and what is on its way to and from it."""

    def __init__(self) -> None:
        self.permits = 0
        self.grants: deque[int] = deque()
        self.coming: list[Request] = []
        self.has: list[Request] = []
        self.unconfirmed: int | None = None

    @property
    def asking(self) -> int:
        return sum(call.agent.connection for call in self.has)

    def hear(self) -> None:
        share = self.grants.popleft()
        self.unconfirmed = share if share < self.permits else None
        self.permits = share


class Daemon(RuleBasedStateMachine):
    @initialize(budget=st.integers(0, 6))
    def begin(self, budget: int) -> None:
        self.ledger = Ledger(budget)
        self.workers: dict[tuple[str, int], Worker] = {}
        self.remotes: dict[tuple[str, int], Remote] = {}
        self.generation = 0
        self.calls = 0

    def offer(self, worker: Worker) -> None:
        share = self.ledger.share(worker.name, worker.generation, KIND)
        worker.agents = frozenset({"asks", "draws"} if share else ())

    def ease(self, worker: Worker) -> None:
        for _, share in worker.eased():
            self.remotes[worker.name, worker.generation].grants.append(share)

    def tell(self, changes: list[Change]) -> None:
        for change in changes:
            worker = self.workers[change.worker, change.generation]
            worker.allot(change.kind, change.share)
            self.offer(worker)
            self.ease(worker)

    def pick(self, data: st.DataObject, of: list[tuple[str, int]]) -> tuple[str, int]:
        return data.draw(st.sampled_from(sorted(of)))

    @precondition(lambda self: len(self.workers) < 4)
    @rule(name=st.sampled_from(["p:0", "p:1", "a:0"]))
    def a_worker_comes(self, name: str) -> None:
        self.generation += 1
        key = (name, self.generation)
        worker = self.workers[key] = Worker(*key, "p", 16, 16)
        worker.connections[KIND] = 0
        self.remotes[key] = Remote()
        self.tell(self.ledger.join(*key, [KIND]))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def a_worker_dies(self, data: st.DataObject) -> None:
        key = self.pick(data, list(self.workers))
        del self.workers[key], self.remotes[key]
        self.tell(self.ledger.leave(*key))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), agent=st.sampled_from([ASKS, ASKS, DRAWS]))
    def a_call_is_sent(self, data: st.DataObject, agent: Agent) -> None:
        key = self.pick(data, list(self.workers))
        if self.workers[key].may_take(agent):
            self.calls += 1
            request = Request(agent, 1.0, 31.0)
            self.workers[key].take(request, self.calls, 1.0)
            self.remotes[key].coming.append(request)

    @precondition(lambda self: any(each.coming for each in self.remotes.values()))
    @rule(data=st.data())
    def a_call_arrives(self, data: st.DataObject) -> None:
        key = self.pick(data, [key for key, each in self.remotes.items() if each.coming])
        remote = self.remotes[key]
        remote.has.append(remote.coming.pop(0))

    @precondition(lambda self: any(each.grants for each in self.remotes.values()))
    @rule(data=st.data())
    def a_grant_arrives(self, data: st.DataObject) -> None:
        self.remotes[self.pick(data, [key for key, each in self.remotes.items() if each.grants])].hear()

    @precondition(lambda self: any(each.has for each in self.remotes.values()))
    @rule(data=st.data())
    def a_call_ends(self, data: st.DataObject) -> None:
        key = self.pick(data, [key for key, each in self.remotes.items() if each.has])
        remote, worker = self.remotes[key], self.workers[key]
        request = remote.has.pop(data.draw(st.integers(0, len(remote.has) - 1)))
        worker.release(request)
        self.ease(worker)

    @precondition(lambda self: any(each.unconfirmed is not None for each in self.remotes.values()))
    @rule(data=st.data())
    def a_worker_has_shrunk(self, data: st.DataObject) -> None:
        key = self.pick(data, [key for key, each in self.remotes.items() if each.unconfirmed is not None])
        remote = self.remotes[key]
        share, remote.unconfirmed = remote.unconfirmed, None
        assert share is not None
        self.tell(self.ledger.released(*key, KIND, share))

    @rule()
    def everything_settles(self) -> None:
        steps = 0
        while True:
            steps += 1
            assert steps < 1000, "it never comes to an end"
            for key, remote in list(self.remotes.items()):
                remote.has += remote.coming
                remote.coming.clear()
                while remote.has:
                    self.workers[key].release(remote.has.pop())
                self.ease(self.workers[key])
                while remote.grants:
                    remote.hear()
                share, remote.unconfirmed = remote.unconfirmed, None
                if share is not None:
                    self.tell(self.ledger.released(*key, KIND, share))
            if not any(each.grants or each.unconfirmed is not None for each in self.remotes.values()):
                break
        assert sum(each.permits for each in self.remotes.values()) == (self.ledger.budget if self.remotes else 0)
        assert not any(each.owed for each in self.workers.values())

    @invariant()
    def every_call_finds_a_permit(self) -> None:
        for remote in self.remotes.values():
            # It may have to wait for a larger grant that is on its way, and for nothing else.
            assert remote.asking <= max(remote.permits, *remote.grants, 0)
            on_the_way = sum(call.agent.connection for call in remote.coming)
            last = remote.grants[-1] if remote.grants else remote.permits
            assert remote.asking + on_the_way <= last, "what was granted last is enough for all that was sent"

    @invariant()
    def who_is_handed_the_pool_is_never_left_without(self) -> None:
        for remote in self.remotes.values():
            if remote.has or remote.coming:
                assert (remote.grants[-1] if remote.grants else remote.permits) > 0


TestCredits = Daemon.TestCase
TestCredits.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
