"""What calls want of a worker's interpreter, or of the host's processors; ``model`` says what follows from that.

Requests and batches are booked alike, so both are only known here by what is booked of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

from .window import Cost

QUANTUM: Final = 0.005
"""CPU seconds: calls up to this are short, and all short ones of a worker together may come to it. The interpreter's
switch interval."""

TOLERANCE: Final = 0.1
"""Of a processor: by how much the shares of long calls, which are measured, may be off."""


class Runs(Protocol):
    """An agent."""

    run_cost: Cost


class Booked(Protocol):
    """A call or a batch, whose share and CPU time are set."""

    share: float
    cpu: float
    long: bool


@dataclass(slots=True, eq=False)
class Processors:
    """What calls want of a worker's interpreter, or of the host's processors. ``limit``: shares; infinite: no limit."""

    limit: float = math.inf
    long_limit: float = math.inf
    """What long calls alone may want."""
    quantum: float = QUANTUM
    share: float = 0.0
    long: float = 0.0
    """Of ``share``, what the long calls want."""
    brief: float = 0.0
    """Of ``share``, what the short calls want."""
    short: float = 0.0
    """CPU seconds of the short calls in flight."""
    calls: int = 0

    def has_room(self, agent: Runs) -> bool:
        """Whether one more call of this agent may run."""
        cost = agent.run_cost
        if self.long > 0.0 and cost.is_long and self.long + cost.cpu_share > self.long_limit + TOLERANCE:
            return False
        if cost.cpu <= QUANTUM:
            return self.share < self.limit or self.short + cost.cpu <= self.quantum
        # Short calls go on top; if they counted here, a crowd of them would leave no others in for ever.
        return self.share - self.brief < self.limit

    def take(self, request: Booked) -> None:
        """Book a call, whose share and CPU time are set."""
        self.calls += 1
        self.share += request.share
        if request.cpu <= QUANTUM:
            self.short += request.cpu
            self.brief += request.share
        elif request.long:
            self.long += request.share

    def release(self, request: Booked) -> None:
        """Give back what was booked."""
        self.calls -= 1
        if not self.calls:
            # Sums of floats drift; when nothing runs is the natural time to begin anew.
            self.share = self.brief = self.short = self.long = 0.0
            return
        self.share -= request.share
        if request.cpu <= QUANTUM:
            self.short -= request.cpu
            self.brief -= request.share
        elif request.long:
            self.long -= request.share

    def rebook(self, request: Booked, share: float) -> None:
        """A call of an agent that nothing was known of, and which counts as a short one, turns out to wait."""
        self.share += share - request.share
        self.brief += share - request.share
        self.short -= request.cpu
