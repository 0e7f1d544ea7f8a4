"""The refused clients of one pool: when they are told to retry, and what happens to those who retry earlier.

Retry-After. Every refusal books a place in one of the coming seconds, no more into each than the queue can take at
once, and tells its second. While there is more demand than capacity, nobody is told to retry at once.

Pacing. In a closed loop whoever is refused asks again as soon as it has the refusal: a crowd of a hundred makes of that
twenty thousand refusals a second, which take the processors that the work needs, so that less is done and more is
refused. So a refusal of one who is *early*, back before its time, is held: such refusals leave one by one, ``PACED`` a
second, none of them held for longer than ``LONGEST``, and before one leaves the request is decided once more, and
accepted if it can still be in time. (To let them leave in groups would not make them cheaper, and the first of a group
would find the room that is meant for all.) Who keeps the time is answered at once, as is who is refused for the first
time. The idea is that of the tar pits of mail servers.

Whoever is turned away gets a ``Comeback``, which the shell keeps with the connection and shows with its next request.
Where the connection is closed before that, it is kept with the client's name, and the next new connection of that
client takes it over: those who open one for each request would otherwise be new each time. So with many people behind
one address the new connection of one may be taken for that of another; it costs them nothing but that a refusal, which
they would have got anyway, comes up to a second later.

Counting. *Outside* is the work of those who would be here if they were let in: held now, or turned away within the last
second and not seen since. ``throttle`` allows a longer wait as long as they would fit in. It says how many ask, not how
often, so that a crowd cannot keep itself out by asking fast.

Invariants: ``outside`` is never negative, and is 0 when nobody is held and nobody was turned away for a second; a place
is booked once for each who was turned away, however often it comes back early.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .model import RANKS, Agent
from .refusals import Comeback

if TYPE_CHECKING:
    from random import Random

PACED: Final = 500.0
"""Refusals a second of those who are early: together they take a few hundredths of a processor."""

LONGEST: Final = 0.95
"""Seconds that such a refusal is held at most, so that it has left within a second."""

TURNS: Final = 10
"""Ticks for which one who was turned away counts as outside: a second ..."""

LEFT: Final = 3
"""... and ticks for which it does after it has closed its connection: most likely it has left."""

AT_ONCE: Final = 0.2
"""Pool seconds of comebacks that are booked into one second: what the queue can take at once."""

STEADY: Final = 3
"""Seconds until the first comeback while more is asked for than can be done."""

LATEST: Final = 60
"""Seconds until the last comeback that is ever told."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A refusal that is held, and the request that it is about, which has to be decided again. Times are absolute."""

    until: float
    comeback: Comeback
    agent: Agent
    priority: int
    came_at: float
    deadline: float
    own_deadline: bool
    """The deadline is the client's."""


class Comebacks:
    """One pool's."""

    __slots__ = (
        "_any",
        "_away",
        "_booked",
        "_full_until",
        "_leaves_at",
        "_outside",
        "_rng",
        "_second",
        "_turn",
        "holding",
    )

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._booked: dict[int, float] = {}
        """Pool seconds of comebacks by the second of the clock that was told."""
        self._full_until = 0
        """Seconds of the clock before this one have no place left."""
        self._second = 0
        self._turn = 0
        self._away = [[0.0] * RANKS for _ in range(TURNS)]
        """Pool seconds of those who were turned away and not seen since, by the tick until which they count, modulo the
        number of ticks, and by rank."""
        self._outside = [0.0] * RANKS
        """The sums of that, and of those who are held."""
        self._any = False
        self._leaves_at = -math.inf
        """When the refusal that was held last leaves."""
        self.holding = 0
        """Refusals that are held now."""

    def outside(self, rank: int) -> float:
        """Pool seconds of those who ask and are not let in, in this rank and better ones."""
        return sum(self._outside[: rank + 1]) if self._any else 0.0

    # Telling

    def tell(self, pool: str, client: str, work: float, rank: int, *, room: float, first: int, now: float) -> Comeback:
        """Book the comeback of one who is turned away.

        ``work``: of the request, and ``room``: for comebacks in one second, both in pool seconds; ``first``: seconds
        until the earliest place.
        """
        second = int(now)
        if second != self._second:
            self._second = second
            for past in [each for each in self._booked if each <= second]:
                del self._booked[past]
        at = self._place(second, first, work, room)
        self._booked[at] = self._booked.get(at, 0.0) + work
        comeback = Comeback(pool, client, now + at - second, work, rank, at)
        self.turn_away(comeback)
        return comeback

    def _place(self, second: int, first: int, work: float, room: float) -> int:
        for at in range(max(second + first, self._full_until), second + LATEST + 1):
            booked = self._booked.get(at, 0.0)
            if not booked or booked + work <= room:
                return at
            self._full_until = at + 1
        return second + self._rng.randint(LATEST // 2, LATEST)

    def free(self, comeback: Comeback) -> None:
        """One who came early was let in: its place is free again."""
        if not comeback.second:
            return
        left = self._booked.get(comeback.second, 0.0) - comeback.work
        if left > 0.0:
            self._booked[comeback.second] = left
        else:
            self._booked.pop(comeback.second, None)
        self._full_until = min(self._full_until, comeback.second)
        comeback.second = 0

    # Counting

    def turn_away(self, comeback: Comeback) -> None:
        """One leaves who may be back."""
        self._count(comeback, TURNS)

    def _count(self, comeback: Comeback, turns: int) -> None:
        comeback.turn = self._turn + turns
        self._away[comeback.turn % TURNS][comeback.rank] += comeback.work
        self._outside[comeback.rank] += comeback.work
        self._any = True

    def see(self, comeback: Comeback) -> None:
        """It is back."""
        if comeback.turn > self._turn:
            self._away[comeback.turn % TURNS][comeback.rank] -= comeback.work
            self._outside[comeback.rank] -= comeback.work
            comeback.turn = self._turn

    def stray(self, comeback: Comeback) -> None:
        """Its connection is closed."""
        if comeback.turn > self._turn + LEFT:
            self.see(comeback)
            self._count(comeback, LEFT)

    # Pacing

    def hold(
        self, comeback: Comeback, agent: Agent, priority: int, *, deadline: float, own_deadline: bool, now: float
    ) -> Hold:
        """Let the refusal of one who is early wait for its turn, or for its deadline."""
        self._leaves_at = leaves_at = min(now + LONGEST, max(now, self._leaves_at) + 1.0 / PACED)
        self._outside[comeback.rank] += comeback.work
        self._any = True
        self.holding += 1
        return Hold(min(leaves_at, deadline), comeback, agent, priority, now, deadline, own_deadline)

    def release(self, hold: Hold) -> None:
        """It is held no longer."""
        self.holding -= 1
        self._outside[hold.comeback.rank] -= hold.comeback.work

    # Time

    def tick(self, turns: int) -> None:
        """So many ticks of a tenth of a second are over."""
        if not self._any:
            return
        for _ in range(min(turns, TURNS)):
            self._turn += 1
            over = self._away[self._turn % TURNS]
            for rank, work in enumerate(over):
                if work:
                    self._outside[rank] -= work
                    over[rank] = 0.0
        if not self.holding and not any(map(any, self._away)):
            # Sums of floats drift; when nobody is outside is the natural time to begin anew.
            self._outside = [0.0] * RANKS
            self._any = False
