"""The journal: the most recent events of the daemon and its workers, and the restarts counted by cause.

It is shown in ``/v1/status`` and on the dashboard; the log has the same events and more, and keeps them for longer.
Bounded: the oldest event goes when a new one comes.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Final

KEPT: Final = 100

KINDS: Final[dict[str, str]] = {
    "died": "death",
    "start": "death",
    "requested": "restart",
    "terminated": "restart",
    "max_requests": "recycle",
    "max_rss": "recycle",
}
"""Why a worker was restarted, and the kind of event that this is. Of what is not here (``reload``, ``deadline``) the
cause has an event of its own, and a restart of each worker would push out everything else.
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    at: float
    """Unix seconds."""
    kind: str
    worker: str
    agent: str
    text: str


class Journal:
    """Events and restarts."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self.restarts: dict[tuple[str, str], int] = {}
        """By worker and reason; only ever more."""

    def add(self, kind: str, text: str, *, worker: str = "", agent: str = "") -> None:
        """Note an event. No two have the same time, so that a reader can ask for what is newer."""
        at = time.time()
        if self._events and at <= self._events[-1].at:
            at = self._events[-1].at + 1e-6
        self._events.append(Event(at, kind, worker, agent, text))

    def restarted(self, worker: str, reason: str, text: str) -> None:
        """A worker's process was replaced, or has to be."""
        self.restarts[worker, reason] = self.restarts.get((worker, reason), 0) + 1
        if reason in KINDS:
            self.add(KINDS[reason], text, worker=worker)

    def since(self, at: float) -> list[dict[str, Any]]:
        """The events after this time in unix seconds, newest last."""
        return [asdict(event) for event in self._events if event.at > at]
