"""Limits of connections: timeouts for header, body and a stalled reader, and the number of connections.

No request has a timer for this. All connections are checked every ``Limits.interval`` seconds: whose
header is late, whose body is late, and whose client reads nothing of its answer. So a limit is kept to within a fifth
of it, or a second, whichever is less.
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
        """Seconds between two checks."""
        return min(1.0, max(0.02, min(self.header_timeout, self.body_timeout, self.stall_timeout) / 5))
