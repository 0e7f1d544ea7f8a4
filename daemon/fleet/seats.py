"""All seats with their processes: made as the configuration has them, and forgotten when it has them no more.

It is the ``SeatOwner`` of all seats, the ``Roster`` of all incarnations and the ``RolloutOwner`` of a reload; what is
asked for from outside is the matter of ``fleet``.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from penstock.ipc.messages import DatabaseAccess, Statistics

from ..config.settings import Config, Supervision
from ..core import restart
from ..core.lifecycle import Phase, SeatState
from .backend import Identity, Template
from .incarnation import Incarnation, Owner, Services
from .rollout import Proof
from .seat import ACTIVE, Seat
from .templates import Templates

log = logging.getLogger("penstock.fleet")


class Governor(Protocol):
    """Whom the fleet tells what concerns the daemon as a whole."""

    def first_ready(self) -> None:
        """A worker serves, for the first time since the start."""

    def configuration_failed(self, reason: str) -> None:
        """A worker cannot serve with this configuration, and none ever has."""

    def statistics(self, statistics: Statistics) -> None:
        """The statistics of a worker's database pools."""


class Seats:
    """All seats, and all processes that are not gone."""

    def __init__(self, config: Config, services: Services, governor: Governor, rng: random.Random) -> None:
        self._config = config
        self._services = services
        self._governor = governor
        self._rng = rng
        self._templates = Templates(services.backend)
        self._dsn = ""
        self._own: Mapping[str, Config] = {}
        """What the workers are started with of pools that were added after everything else."""
        self._seats: dict[str, Seat] = {}
        self._alive: dict[Identity, Incarnation] = {}
        self._generations: dict[str, int] = {}
        """The newest of every name that there ever was: none comes twice, whatever reloads take away and bring back."""
        self._reloading = False
        self._ever_ready = False
        self._empty: asyncio.Future[None] = services.loop.create_future()
        self._stopping = False

    # What the fleet has it do

    def start(self, dsn: str | None) -> None:
        """Start every worker. ``dsn``: of their database; None: they have none."""
        self._dsn = dsn or ""
        self.take_seats()

    def follow(self, config: Config, own: Mapping[str, Config], unused: Collection[str]) -> None:
        """Have this configuration from now on. ``own``: by pool, what workers are started with where that is not it;
        ``unused``: the names of templates that are out of date by that.
        """
        self._config, self._own = config, own
        self._templates.drop(unused)

    def adopt(self, config: Config, template: Template) -> None:
        """Have this configuration from now on, and launch everything from this template."""
        self._config, self._own = config, {}
        self._templates.adopt(template)

    def expect_mixed(self, mixed: bool) -> None:
        """A reload begins or has ended: whether workers of two codes are to be expected."""
        self._reloading = mixed

    def begin_to_stop(self) -> None:
        """Start nothing any more."""
        self._stopping = True

    async def emptied(self, timeout: float | None = None) -> None:
        """Done once no process is left, or after so many seconds; only after ``begin_to_stop``."""
        if self._alive:
            await asyncio.wait({self._empty}, timeout=timeout)

    def close(self) -> None:
        """Give up what workers are launched from."""
        self._templates.close()

    # What there is

    @property
    def reloading(self) -> bool:
        """Workers are being replaced by such of another code."""
        return self._reloading

    def named(self, name: str) -> Seat | None:
        """The seat of that name."""
        return self._seats.get(name)

    def in_order(self) -> list[Seat]:
        """All seats, in order."""
        return sorted(self._seats.values(), key=lambda seat: (seat.pool, seat.index))

    def of_pool(self, pool: str) -> list[Seat]:
        """The seats of a pool."""
        return [seat for seat in self._seats.values() if seat.pool == pool]

    def alive(self) -> list[Incarnation]:
        """All processes that are not gone."""
        return list(self._alive.values())

    def unsettled(self, pool: str) -> bool:
        """Whether a worker of this pool is coming or going, or all are about to."""
        coming = any(seat.replacement is not None for seat in self._seats.values() if seat.pool == pool)
        alive = [incarnation for incarnation in self._alive.values() if incarnation.identity.pool == pool]
        going = any(incarnation.phase is not Phase.SERVING for incarnation in alive)
        return coming or going or self._reloading or self.stopping

    def forget(self, seat: Seat) -> None:
        """There is no such seat any more."""
        del self._seats[seat.name]
        self._services.backend.forget(seat.name)

    # The owner of its seats

    @property
    def stopping(self) -> bool:
        """Nothing is started any more."""
        return self._stopping

    @property
    def supervision(self) -> Supervision:
        """The settings that are in force."""
        return self._config.supervision

    def take_seats(self) -> None:
        """Make and start the seats that the configuration has more."""
        for pool, settings in self._config.pools.items():
            for index in range(settings.workers):
                seat, new = self.seat_for(pool, index)
                if new:
                    seat.start()

    def seat_for(self, pool: str, index: int) -> tuple[Seat, bool]:
        """The seat of this place, and whether it was made for that, and is to be started."""
        found = self._seats.get(f"{pool}:{index}")
        if found is not None:
            return found, False
        history = restart.History(self._rng)
        loop, journal = self._services.loop, self._services.journal
        seat = Seat(pool, index, loop=loop, history=history, journal=journal, owner=self)
        self._seats[seat.name] = seat
        return seat, True

    def launch(self, seat: Seat, cause: str = "") -> Incarnation:
        """Start a process for a seat, as the configuration now has it (``SpawnError``)."""
        config = self._own.get(seat.pool, self._config)
        template = self._templates.live(seat.pool if seat.pool in self._own else "", config)
        return self._launch(seat.pool, seat.index, config, template, seat, cause)

    def prove(self, pool: str, config: Config, template: Template, proof: Proof) -> Incarnation:
        """Start a worker of a pool that is in no seat (``SpawnError``)."""
        return self._launch(pool, 0, config, template, proof)

    def _launch(
        self, pool: str, index: int, config: Config, template: Template, owner: Owner, cause: str = ""
    ) -> Incarnation:
        name = f"{pool}:{index}"
        self._generations[name] = generation = self._generations.get(name, 0) + 1
        incarnation = Incarnation(self._services, self, owner, Identity(pool, index, generation), config, cause)
        database = config.database
        access = DatabaseAccess(self._dsn, database.acquire_timeout, database.prepared_statements)
        incarnation.launch(template, access if self._dsn else None)
        self._alive[incarnation.identity] = incarnation
        return incarnation

    def changed_state(self, seat: Seat) -> None:
        """A seat's state has changed: see what that means for its pool, and for the start."""
        self._tell_availability(seat.pool)
        if seat.removed:
            self.forget_if_stopped(seat)
        if seat.state is SeatState.RUNNING and not self._ever_ready:
            self._ever_ready = True
            self._governor.first_ready()

    def _tell_availability(self, pool: str) -> None:
        """Tell the engine whether a pool can come back by itself."""
        states = [seat.state for seat in self._seats.values() if seat.pool == pool]
        unavailable = not any(state in ACTIVE for state in states)
        draining = any(state is SeatState.STOPPING for state in states)
        if not (unavailable and draining):
            mark = self._services.engine.mark_unavailable if unavailable else self._services.engine.mark_available
            mark(pool)

    def forget_if_stopped(self, seat: Seat) -> None:
        """Forget a seat that the configuration has no more, once it has come to rest."""
        if seat.state not in (SeatState.STOPPED, SeatState.FATAL) or self._seats.get(seat.name) is not seat:
            return
        self.forget(seat)
        if seat.pool not in self._config.pools and not any(e.pool == seat.pool for e in self._seats.values()):
            self._services.engine.forget_pool(seat.pool)
        if not self.stopping:
            # A reload may have brought it back while it was still draining.
            self.take_seats()

    # The roster of its incarnations

    def serving(self) -> Iterable[Incarnation]:
        """Those that have served, and are not gone."""
        return [incarnation for incarnation in self._alive.values() if incarnation.worker is not None]

    def serves(self, new: Incarnation) -> None:
        """Files that change without a reload are seen by the workers that come back, and by nobody else: say so."""
        others = (other for other in self._alive.values() if other.phase is Phase.SERVING and other is not new)
        other = next((other for other in others if other.code != new.code), None)
        if other is not None and not self._reloading:
            what = "%s runs other code (%s) than %s (%s): its files changed without a reload"
            log.warning(what, new.title, new.code, other.title, other.code, extra={"worker": new.name})

    def cannot_serve(self, reason: str, permanent: bool) -> None:
        """A worker has failed."""
        if permanent and not self._ever_ready:
            self._governor.configuration_failed(reason)

    def statistics(self, statistics: Statistics) -> None:
        """The statistics of a worker's database pools."""
        self._governor.statistics(statistics)

    def gone(self, incarnation: Incarnation) -> None:
        """Nothing is left of a process."""
        del self._alive[incarnation.identity]
        if self._stopping and not self._alive and not self._empty.done():
            self._empty.set_result(None)
