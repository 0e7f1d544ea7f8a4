"""Whether a request is welcome, decided before its body is read; and whether there is room for the body's bytes.

The middle layer of ``scheduler``, whose header tells how they fit together. Nothing of a request that is turned away
here is in the backlog or in the wheel; a refusal that is held (``comebacks``) counts in its throttle until ``release``.
"""

from __future__ import annotations

from .admission import beyond_marks
from .books import Books, R
from .comebacks import Hold
from .model import Agent
from .refusals import Comeback, Problem, Refusal


class Screening(Books[R]):
    """Looks at requests that are not in the queue yet."""

    __slots__ = ()

    def screen(
        self,
        agent: Agent,
        name: str,
        priority: int,
        *,
        left: float,
        own_deadline: bool,
        now: float,
        back: Comeback | None = None,
        fresh: bool = True,
    ) -> int | Refusal | Hold:
        """Look at a request before its body is read: its rank if it is welcome; else the refusal, or a hold, after
        which it is to be looked at ``again``.

        ``name``: the client's. ``left``: seconds until its deadline; ``own_deadline``: that is the client's. ``back``:
        what its connection was told with the last refusal; ``fresh``: it is the first request on its connection.
        """
        pool, throttle, backlog = self.pools[agent.pool], self.throttle(agent.pool), self.backlog
        queue = backlog.queue(agent.pool)
        if throttle.is_due(now):
            throttle.tick(pool.capacity(), queue, now)
        rank = throttle.arrive(name, priority, agent, now)
        if back is None and fresh:
            back = throttle.taken_over(name)
        if back is not None:
            throttle.comebacks.see(back)
        wait = None
        if backlog.refusing:
            wait = 0.0
        elif queue.requests and (queue.has(agent) or not pool.has_room(agent)):
            inside = back is None and not fresh
            wait = throttle.screen(
                queue, rank, agent, left=left, own_deadline=own_deadline, held=0.0, inside=inside, now=now
            )
        early = back if back is not None and back.is_early(now) else None
        if wait is None:
            if early is not None:
                throttle.comebacks.free(early)
            return rank
        if early is not None:
            deadline = now + left
            return throttle.comebacks.hold(
                early, agent, priority, deadline=deadline, own_deadline=own_deadline, now=now
            )
        return self._turn_away(agent, name, rank, wait, left, None, now)

    def again(self, hold: Hold, now: float) -> int | Refusal:
        """Look at a request once more whose refusal was held, and is so no longer."""
        self.release(hold)
        agent, back = hold.agent, hold.comeback
        throttle, queue = self.throttle(agent.pool), self.backlog.queue(agent.pool)
        rank = throttle.rank(back.client, hold.priority)
        left, held = hold.deadline - now, now - hold.came_at
        wait: float | None = 0.0
        if not self.backlog.refusing:
            wait = throttle.screen(
                queue, rank, agent, left=left, own_deadline=hold.own_deadline, held=held, inside=False, now=now
            )
        if wait is None:
            throttle.comebacks.free(back)
            return rank
        return self._turn_away(agent, back.client, rank, wait, left, back, now)

    def _turn_away(
        self, agent: Agent, name: str, rank: int, wait: float, left: float, back: Comeback | None, now: float
    ) -> Refusal:
        """The refusal of a request that would have to wait for so many seconds. ``back``: what it was told before."""
        throttle = self.throttle(agent.pool)
        if self.backlog.refusing:
            refusal = beyond_marks(agent, name, 0, self.backlog, throttle, back, now)
            assert refusal is not None
            return refusal
        if wait >= left:
            detail = f"it would have to wait for about {wait:.3g} s, and its deadline is in {left:.3g} s"
            comeback = throttle.too_late(agent, name, rank, back, now)
            return Refusal(Problem.DEADLINE_EXCEEDED, detail, reason="deadline", comeback=comeback)
        return throttle.refuse(rank, name, wait, agent, back, now)

    def release(self, hold: Hold) -> None:
        """A refusal is held no longer: it is its turn, or the client has gone."""
        self.throttle(hold.comeback.pool).comebacks.release(hold)

    def stray(self, comeback: Comeback) -> None:
        """The connection of one who was turned away is closed."""
        self.throttle(comeback.pool).stray(comeback)

    def room(self, agent: Agent, name: str, size: int, now: float) -> Refusal | None:
        """None: a body of ``size`` bytes that begins to arrive would have room now. Nothing is kept for it.

        ``name``: the client's.
        """
        return beyond_marks(agent, name, size, self.backlog, self.throttle(agent.pool), None, now)

    def reserve(self, agent: Agent, name: str, size: int, now: float) -> Refusal | None:
        """None: these bytes of a body have arrived, and count until ``backlog.release``. Else there is no room."""
        return None if self.backlog.reserve(size) else self.room(agent, name, size, now)
