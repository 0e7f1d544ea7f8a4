"""Whether a worker's loop turns, and which call to name when it does not.

A worker marks every tenth of a second on its scoreboard that its loop turns. The shell samples all workers every
``INTERVAL`` seconds and tells each one's ``Pulse`` what it saw; a loop that has stood still for ``STUCK_AFTER`` seconds
is stuck. With the sampling interval and the capture of its stack that is known within two seconds.

Only time that was watched counts. Between two samples at most ``LONGEST`` seconds are booked, however late the second
comes: when the supervisor itself or the whole host stood still, its workers' marks are old as well, and that is no
fault of theirs. They get two more samples before anything is logged.

Invariants: a standstill is never told longer than the time since the last turn; a loop that turns at least once in
``STUCK_AFTER`` seconds is never stuck; each standstill is told once, and its end once.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, StrEnum
from typing import Final

INTERVAL: Final = 0.5
"""Seconds between two samples."""

LONGEST: Final = 0.6
"""Seconds that are counted between two samples at most."""

LATE_AFTER: Final = 0.5
"""Seconds without a turn after which a loop is late: five marks are missing."""

STUCK_AFTER: Final = 1.25
"""Seconds without a turn after which a loop is stuck. With a sample every ``INTERVAL`` it is seen after 1.75 at
most."""


class Health(StrEnum):
    """What people see of a worker's loop."""

    HEALTHY = "healthy"
    LATE = "late"
    STUCK = "stuck"


class Change(Enum):
    """What a sample has shown."""

    STUCK = "stuck"
    """The loop does not turn."""
    TURNS = "turns"
    """It was stuck and turns again."""


class Pulse:
    """One incarnation's loop, as it was seen so far."""

    __slots__ = ("_looked_at", "_turned_at", "health", "longest", "standstill")

    def __init__(self, now: float) -> None:
        """Begin to watch a loop that turns."""
        self._looked_at = now
        self._turned_at = now
        self.standstill = 0.0
        """Seconds that the loop has not turned for, as far as they were watched."""
        self.longest = 0.0
        """The standstill before the current one, once its end was told."""
        self.health = Health.HEALTHY

    def observe(self, turned_at: float, now: float) -> Change | None:
        """Take in the loop's last turn as the scoreboard shows it (absolute seconds); what is new, if anything."""
        watched = min(max(0.0, now - self._looked_at), LONGEST)
        before, self._looked_at = self.standstill, now
        if turned_at > self._turned_at:
            self._turned_at = turned_at
            self.standstill = min(max(0.0, now - turned_at), watched)
        else:
            self.standstill += watched
        was, self.health = self.health, _health(self.standstill)
        if self.health is Health.STUCK:
            return None if was is Health.STUCK else Change.STUCK
        if was is Health.STUCK:
            self.longest = before
            return Change.TURNS
        return None


def _health(standstill: float) -> Health:
    if standstill >= STUCK_AFTER:
        return Health.STUCK
    return Health.LATE if standstill >= LATE_AFTER else Health.HEALTHY


def suspect(stepped: int, slots: Iterable[tuple[int, bool, float]]) -> int:
    """The call to name for a loop that stands still; 0 if the worker has none.

    ``stepped`` is the call whose coroutine the loop was running, if it is known. Else it is a task of an agent's own
    making, or a thread that keeps the interpreter to itself: then the call that has run longest is named. ``slots``
    are (call, begun, seconds of its last change of phase).
    """
    shown = [(not begun, since, call) for call, begun, since in slots]
    if any(call == stepped for _, _, call in shown):
        return stepped
    return min(shown, default=(True, 0.0, 0))[2]
