"""A page of shared memory in which a worker writes what it is doing, so that the supervisor need not ask.

One page for each incarnation of a worker, made by the supervisor (an anonymous ``memfd``, so nothing is left behind
on any disk), inherited by the worker through the forkserver. The worker alone writes, the supervisor alone reads.
Three questions are answered by it that no message can answer:

* Is the worker stuck? ``turned_at`` is its loop's last turn; a loop that does not turn cannot send a message either.
  And if it is, ``stepped`` tells which call's coroutine it is in.
* Which calls had *begun* when it died? A killed worker answers no question, but its page remains.
* Which database sessions did it leave behind? Each slot shows the backend's process id.

Layout, in 8-byte words of the host's byte order::

    word 0   turned_at   float, monotonic seconds of the loop's last turn
    word 1   lag         float, seconds by which that turn was late
    word 2   loops       integer, turns so far
    word 3   newest      integer, the highest call id that was taken so far
    word 4   stepped     integer, the call whose coroutine the loop is running at this moment; 0: none
    then for each slot:
    word 0   call        integer, the call id; 0: the slot is free
    word 1   phase       integer, 0 free, 1 taken (waits for a thread or a connection), 2 begun (function entered),
                         3 given up (the call ended before its function was entered; the slot is free)
    word 2   since       float, monotonic seconds of the last change of phase
    word 3   backend     integer, process id of the PostgreSQL backend that serves the call; 0: none

Single aligned words are written whole, so a reader may see a slot between two writes but never half a number. The
worker writes ``call`` before ``phase`` when it takes a slot, ``phase`` before it enters the function, and when the call
has ended it clears ``call`` first: killed between any two writes, it never shows a call that had begun as one that had
not. A call that ended without having begun (its body did not fit, there was no connection) keeps its ``call``, so that
it is not taken for one that had: its answer may be lost with the process, and another worker can do it again. The
worker takes the slot that has been free for longest. Answers arrive in the order in which they are given, so by the
time that the supervisor has sent enough calls for the slot to be taken again, it has the answer.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

HEARTBEAT: Final = 0.1
"""Seconds between two marks that the loop turns."""

WORD: Final = 8
HEADER: Final = 5
SLOT: Final = 4

FREE: Final = 0
TAKEN: Final = 1
BEGUN: Final = 2
GIVEN_UP: Final = 3


@dataclass(frozen=True, slots=True)
class SlotView:
    """One busy slot as the supervisor sees it."""

    call: int
    begun: bool
    since: float
    backend: int


class Scoreboard:
    """A page of shared memory with room for ``slots`` calls. Either side makes one from the same descriptor."""

    __slots__ = ("_floats", "_map", "_words", "fd", "slots")

    def __init__(self, fd: int, slots: int) -> None:
        self.fd = fd
        self.slots = slots
        self._map = mmap.mmap(fd, (HEADER + SLOT * slots) * WORD)
        view = memoryview(self._map)
        self._words = view.cast("q")
        self._floats = view.cast("d")

    @classmethod
    def create(cls, name: str, slots: int) -> Scoreboard:
        """A fresh page, all zero. ``name`` shows up in ``/proc/PID/maps`` only."""
        fd = os.memfd_create(f"penstock {name}", os.MFD_CLOEXEC)
        os.ftruncate(fd, (HEADER + SLOT * slots) * WORD)
        return cls(fd, slots)

    def __reduce__(self) -> tuple[Any, tuple[Any, int]]:
        """Pickled while a process is spawned: the descriptor travels over the forkserver's socket."""
        from multiprocess.reduction import DupFd

        return _rebuild, (DupFd(self.fd), self.slots)

    # The worker's side: called for every request, so no checks and no allocation.

    def turn(self, now: float, lag: float) -> None:
        """The loop has turned, ``lag`` seconds later than it was asked to."""
        self._floats[0] = now
        self._floats[1] = lag
        self._words[2] += 1

    def step(self, call: int) -> None:
        """The loop goes into this call's coroutine; 0: it has come out again."""
        self._words[4] = call

    def take(self, slot: int, call: int, now: float) -> None:
        """A call has arrived in a slot."""
        at = HEADER + SLOT * slot
        self._words[at] = call
        self._floats[at + 2] = now
        self._words[at + 1] = TAKEN
        self._words[3] = call

    def begin(self, slot: int, now: float) -> None:
        """The agent's function is entered next."""
        at = HEADER + SLOT * slot
        self._words[at + 1] = BEGUN
        self._floats[at + 2] = now

    def backend(self, slot: int, pid: int) -> None:
        """The call in this slot uses the database session of this backend; 0: it gave it back."""
        self._words[HEADER + SLOT * slot + 3] = pid

    def free(self, slot: int) -> None:
        """The call in this slot has ended."""
        at = HEADER + SLOT * slot
        self._words[at] = 0
        self._words[at + 1] = FREE
        self._words[at + 3] = 0

    def give_up(self, slot: int) -> None:
        """The call in this slot has ended, and its function was never entered."""
        at = HEADER + SLOT * slot
        self._words[at + 1] = GIVEN_UP
        self._words[at + 3] = 0

    # The supervisor's side.

    @property
    def turned_at(self) -> float:
        """Monotonic seconds of the loop's last turn; 0 before the first."""
        return self._floats[0]

    @property
    def lag(self) -> float:
        """Seconds by which the last turn was late."""
        return self._floats[1]

    @property
    def stepped(self) -> int:
        """The call whose coroutine the loop is running; 0: none."""
        return self._words[4]

    def busy(self) -> list[SlotView]:
        """Every slot with a call in it."""
        found = []
        for slot in range(self.slots):
            at = HEADER + SLOT * slot
            call, phase = self._words[at], self._words[at + 1]
            if call and phase != GIVEN_UP:
                found.append(SlotView(call, phase == BEGUN, self._floats[at + 2], self._words[at + 3]))
        return found

    def begun(self, calls: Iterable[int]) -> set[int]:
        """Those of the calls sent to this worker whose function it had entered, now that it is dead.

        Call ids rise, so one at most as high as the newest that is in no slot any more had ended: its answer was lost
        with the process.
        """
        newest = self._words[3]
        starts = range(HEADER, HEADER + SLOT * self.slots, SLOT)
        shown = {self._words[at]: self._words[at + 1] == BEGUN for at in starts}
        return {call for call in calls if shown.get(call, call <= newest)}

    def close(self) -> None:
        """Unmap the page and close its descriptor. May be called twice."""
        if self.fd >= 0:
            self._words.release()
            self._floats.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1


def _rebuild(handle: Any, slots: int) -> Scoreboard:
    return Scoreboard(handle.detach(), slots)
