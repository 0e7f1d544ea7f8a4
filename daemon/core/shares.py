"""Who of the clients of one pool goes first when not all can be served: max-min fair shares, and turns.

A client may have its max-min fair share of what the pool can do; its requests beyond that rank behind everybody else's.
The share is filled by a client's most urgent requests first, and it counts what is *asked for*, since a client that
hammers would otherwise look small by being refused. Within a rank clients take turns by the work that they bring
(start-time fair queueing: Goyal, Vin and Cheng, 1996).

Work is counted in pool seconds, as ``throttle`` has it. Invariants: a lone client is never over its share; the number
of clients remembered is bounded by ``MOST_CLIENTS``, the work of those beyond counts under one name.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from .model import PRIORITIES
from .refusals import Comeback

SLACK: Final = 1.5
"""Times its share that a client may ask for before it ranks behind others: shares shrink while the pace is low."""

GREEDY: Final = 1.5
"""Times the mean that a client over its share must ask for to be told that it is the client, not the load."""

MEMORY: Final = 1.0
"""Seconds over which what clients ask for is averaged."""

FORGOTTEN: Final = 5.0
"""Seconds after which a client that is silent is forgotten."""

MOST_CLIENTS: Final = 10_000
"""Clients that are told apart; those beyond share one name."""

EVERYBODY_ELSE: Final = "\0"


class Client:
    """What one client asks of one pool."""

    __slots__ = ("asked", "asks", "finish", "heard_at", "over_from", "since", "strays")

    def __init__(self, now: float) -> None:
        self.asks = [0.0] * PRIORITIES
        """Pool seconds of work a second that it asks for, by urgency."""
        self.asked = [0.0] * PRIORITIES
        """What it has asked for since the last tick."""
        self.finish = 0.0
        """The tag at which its last request will be done with."""
        self.over_from = PRIORITIES
        """The first urgency that lies beyond its share."""
        self.strays: deque[Comeback] = deque()
        """What those of its connections were told that were closed after a refusal."""
        self.since = now
        self.heard_at = now

    @property
    def total(self) -> float:
        return sum(self.asks)

    def rank(self, urgency: int) -> int:
        """The place of its requests of this urgency in the order of service: lower ones go first."""
        return urgency + PRIORITIES if urgency >= self.over_from else urgency


class Shares:
    """One pool's."""

    __slots__ = ("_clients", "_last_finish", "_virtual", "asked", "share")

    def __init__(self) -> None:
        self.asked = 0.0
        """Pool seconds of work a second that all clients ask for."""
        self.share = math.inf
        """Pool seconds a second that each client may have; infinite while there is enough for all."""
        self._clients: dict[str, Client] = {}
        self._virtual = 0.0
        self._last_finish = 0.0

    def __len__(self) -> int:
        return len(self._clients)

    def get(self, name: str) -> Client | None:
        """The client of this name, if it is known."""
        return self._clients.get(name) or self._clients.get(EVERYBODY_ELSE)

    def ask(self, name: str, urgency: int, work: float, now: float) -> int:
        """Count in what a client asks for; the rank of the request."""
        client = self._clients.get(name)
        if client is None:
            client = self._meet(name, now)
        client.asked[urgency] += work
        client.heard_at = now
        return client.rank(urgency)

    def _meet(self, name: str, now: float) -> Client:
        if len(self._clients) >= MOST_CLIENTS:
            name = EVERYBODY_ELSE
        return self._clients.setdefault(name, Client(now))

    def is_greedy(self, name: str) -> bool:
        """Whether it is this client that asks for too much, rather than all together."""
        client = self.get(name)
        return client is not None and client.total * len(self._clients) >= GREEDY * self.asked

    # Turns

    def tag(self, name: str, work: float, alone: bool) -> float:
        """The place of a new request of this client within its rank. ``alone``: the client has no other that waits.

        While there is enough for all, such a client does not pay for the work that it brought before: whoever asks for
        one thing at a time goes in the order of arrival, and only those with several at once take turns with others.
        """
        client = self.get(name)
        if client is None:
            return self._virtual
        start = self._virtual
        if client.finish > start and not (alone and self.share == math.inf):
            start = client.finish
        client.finish = finish = start + work
        if finish > self._last_finish:
            self._last_finish = finish
        return start

    def sent(self, tag: float) -> None:
        """A request with this tag has left the queue."""
        self._virtual = max(self._virtual, tag)

    def emptied(self) -> None:
        """Nothing waits any more: whoever had his turn does not pay for it in the next queue."""
        self._virtual = self._last_finish

    # Time

    def tick(self, elapsed: float, pace: float, now: float) -> None:
        """Average what was asked for in the last ``elapsed`` seconds, and deal ``pace`` (pool seconds a second) out."""
        keep = math.exp(-elapsed / MEMORY)
        self.asked = 0.0
        for name, client in list(self._clients.items()):
            if now - client.heard_at > FORGOTTEN:
                del self._clients[name]
                continue
            while client.strays and not client.strays[0].is_early(now):
                client.strays.popleft()
            # One that was met a moment ago is not averaged with a time when it was not there.
            fresh = max(1.0 - keep, min(1.0, elapsed / max(elapsed, now - client.since)))
            for urgency, asked in enumerate(client.asked):
                client.asks[urgency] += (asked / elapsed - client.asks[urgency]) * fresh
                client.asked[urgency] = 0.0
            self.asked += client.total
        self._share_out(pace)

    def _share_out(self, pace: float) -> None:
        """The max-min fair share, and from which urgency on each client is beyond it."""
        clients = sorted(self._clients.values(), key=lambda client: client.total)
        self.share = math.inf
        if self.asked > pace and len(clients) > 1:
            left = pace
            for place, client in enumerate(clients):
                even = left / (len(clients) - place)
                if client.total > even:
                    self.share = even
                    break
                left -= client.total
        for client in clients:
            client.over_from = PRIORITIES
            together = 0.0
            for urgency, asks in enumerate(client.asks):
                together += asks
                if together > SLACK * self.share:
                    client.over_from = urgency
                    break
