"""When the requests of a batched agent go, how many of them together, and what a batch of them takes.

Requests are gathered in their lane of the queue, so that they are ordered, measured and refused like all others. While
no worker is free a batch grows by itself, and needs no timer. If one is free and fewer wait than could go together,
they wait for more of them, at most until the first has waited for ``wait`` seconds; not for nobody, though: as soon as
the rate of arrivals says that less than one more is to be expected by then, they go. A lone request never waits.

How long a batch takes is learnt as ``a + b * n`` from moving averages, with both at least 0. A batch has as many
members as are done within half of the time that its most urgent member has left. Where that was foreseen wrongly, and a
full batch took longer, the next ones are smaller by a quarter; each full one that was in time lets the next be larger
by one (Clipper, NSDI 2017).

Invariants: a batch has 1 to ``most`` members; ``goes_at`` is never later than ``wait`` after the first arrival.
"""

from __future__ import annotations

import math
from typing import Any, Final, Generic, TypeVar

M = TypeVar("M")
"""What the members are: requests."""

WEIGHT: Final = 0.1
"""Of the newest batch, in what is learnt from it."""

MEMORY: Final = 2.0
"""Times ``wait``: over this the rate of arrivals is averaged."""

SMALLER: Final = 0.75
"""Times the size, after a full batch that took too long."""

PART: Final = 0.5
"""Of the time that a member has left: what the batch may take."""

NEAR: Final = 2.0
"""Times what the batch takes: a member that has less left waits for no others."""


class Batch(Generic[M]):
    """Requests that go together: one slot of one worker, booked there once, and released with the last of them."""

    __slots__ = (
        *("agent", "budget", "call", "cpu", "dispatched_at"),
        *("ended", "late", "left", "long", "members", "share", "work"),
    )

    def __init__(self, agent: Any, members: list[M], budget: float) -> None:
        """``budget``: seconds that it should take at most."""
        self.agent = agent
        self.members = members
        self.left = len(members)
        """Members that have not been released."""
        self.budget = budget
        self.call = 0
        """That of the first member; the others have the next ones."""
        self.ended = False
        """A member has its answer, which the worker gives when the batch has ended."""
        self.late: M | None = None
        """The member for whose sake its worker is looked at, and killed in the end."""
        self.dispatched_at = self.work = self.share = self.cpu = 0.0
        self.long = False
        """As booked on the worker; ``Request`` says what each means."""

    def has_ended(self) -> bool:
        """A member has been released, since the batch has ended; whether it was the last."""
        self.ended = True
        return not self.left

    def sent(self, call: int, now: float) -> None:
        """It goes, with this call for the first member."""
        self.call = call
        self.dispatched_at = now


class Batching:
    """One agent's."""

    __slots__ = ("_n", "_nn", "_nw", "_rate", "_rated_at", "_w", "limit", "most", "since", "soonest", "wait")

    def __init__(self, most: int, wait: float) -> None:
        """``most``: members of a batch. ``wait``: seconds that the first of them may wait for others."""
        self.most = most
        self.wait = wait
        self.limit = most
        """Members that a batch has now, at most."""
        self.since = math.inf
        """When the first of those that are being gathered came."""
        self.soonest = math.inf
        """The earliest deadline of these."""
        self._rate = 0.0
        self._rated_at = -math.inf
        self._n = self._w = self._nn = self._nw = 0.0
        """Averages of the size, of the seconds that it took, of the square of the one and the product of both."""

    def configure(self, most: int, wait: float) -> None:
        """Take the settings of an agent that was reported anew."""
        if most != self.most:
            self.most = self.limit = most
        self.wait = wait

    def waits(self, since: float, deadline: float, *, first: bool) -> None:
        """A request waits. ``first``: no other of this agent does."""
        if first:
            self.since = self.soonest = math.inf
        self.since = min(self.since, since)
        self.soonest = min(self.soonest, deadline)

    def arrives(self, now: float) -> None:
        """A request has come, for the rate."""
        if self.wait:
            memory = MEMORY * self.wait
            self._rate = self._rate * math.exp((self._rated_at - now) / memory) + 1.0 / memory
            self._rated_at = now

    def goes_at(self, count: int, now: float) -> float:
        """When a worker that is free gets what waits, ``count`` requests. Ask again then, or when one more comes."""
        if count >= self.limit or not self.wait:
            return now
        last = min(self.since + self.wait, self.soonest - NEAR * self.seconds(count))
        expected = self._expected(last, now)
        if expected < 1.0:
            return now
        # By then fewer than one is to be expected even if there were as much time left as now.
        return min(last, now + MEMORY * self.wait * math.log(expected) + 1e-6)

    def _expected(self, last: float, now: float) -> float:
        """Requests that come by ``last`` if they come as they did of late."""
        return self._rate * math.exp((self._rated_at - now) / (MEMORY * self.wait)) * (last - now)

    def seconds(self, count: int) -> float:
        """What a batch of so many takes; 0 as long as nothing is known."""
        if not self._n:
            return 0.0
        each = self._w / self._n
        spread = self._nn - self._n * self._n
        if spread > 1e-3 * self._nn:
            each = min(each, max(0.0, (self._nw - self._n * self._w) / spread))
        return max(0.0, self._w + each * (count - self._n))

    def learn(self, count: int, seconds: float, budget: float) -> None:
        """A batch of so many has ended. ``budget``: what it should have taken at most."""
        weight = WEIGHT if self._n else 1.0
        self._n += (count - self._n) * weight
        self._w += (seconds - self._w) * weight
        self._nn += (count * count - self._nn) * weight
        self._nw += (count * seconds - self._nw) * weight
        if count < self.limit:
            return  # its size was not for this to decide, and a deadline that is near says nothing of others
        if seconds > budget:
            self.limit = max(1, int(self.limit * SMALLER))
        else:
            self.limit = min(self.most, self.limit + 1)
