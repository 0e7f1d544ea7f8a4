"""What a connection may take its time for, and how many there may be.

No request has a timer for this. Once in a while (``Limits.interval``) all connections are looked at: whose header has
been awaited for too long, whose body, and who takes nothing of its answer. So a limit is kept to within a fifth of it,
or a second, whichever is less.
"""

from __future__ import annotations

from dataclasses import dataclass


class SlowBodyError(TimeoutError):
    """The client takes too long to send its body. The text is for the client."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings: connections at once, seconds for a request's header and for its body, and seconds in which a client
    may take nothing of its answer.
    """

    connections: int = 10_000
    header_timeout: float = 5.0
    body_timeout: float = 30.0
    stall_timeout: float = 30.0

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        return min(1.0, max(0.02, min(self.header_timeout, self.body_timeout, self.stall_timeout) / 5))
