"""The workers: what is asked of them all, and of single ones.

Each layer decides one thing and knows those below only: ``incarnation`` one process, ``seat`` who sits in a seat,
``seats`` which seats there are, ``rollout`` one reload, ``grants`` the database connections. Below all is the seam
(``backend``): nothing here knows where workers run. Everything is driven by callbacks of the loop; nothing sleeps or
polls. Others see frozen ``views``.

Replacing a worker never leaves a hole: the new process is started beside the old, joins when it is ready, and only
then the old one drains.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping

from ..config.settings import Config
from ..core.lifecycle import Phase, SeatState
from .backend import Inspectable
from .incarnation import Services
from .recycling import Recycler
from .rollout import ReloadFailedError, Rollout
from .seat import ACTIVE, Seat
from .seats import Governor, Seats
from .views import CallView, WorkerView, calls_of, view_of

log = logging.getLogger("penstock.fleet")


class Fleet:
    """All seats of all pools."""

    def __init__(self, config: Config, services: Services, governor: Governor, rng: random.Random) -> None:
        self._services = services
        self._rolling: asyncio.Task[None] | None = None
        self._seats = Seats(config, services, governor, rng)

    # What the daemon asks for

    def start(self, dsn: str | None) -> None:
        """Start every worker. ``dsn``: of their database; None: they have none."""
        self._services.watcher.start(self._seats.alive)
        self._seats.start(dsn)

    def close_pool(self, pool: str) -> None:
        """All workers of a pool are about to be stopped: no new request for it, and what waits is done before."""
        self._services.engine.close_pool(pool)

    def add_pool(self, pool: str, config: Config, own: Mapping[str, Config]) -> None:
        """Follow this configuration from now on, and start the workers of a pool that it has more, with the code as it
        is now. ``own``: by pool, what workers are started with where that is not it.
        """
        self._follow(pool, config, own)
        self._seats.take_seats()

    def remove_pool(self, pool: str, config: Config, own: Mapping[str, Config]) -> None:
        """Follow this configuration from now on, and forget the seats of a pool, which must be stopped. ``own``: as
        with ``add_pool``.
        """
        self._follow(pool, config, own)
        for seat in self._seats.of_pool(pool):
            self._seats.forget(seat)

    def _follow(self, pool: str, config: Config, own: Mapping[str, Config]) -> None:
        self._seats.follow(config, own, {pool} if own.keys() < config.pools.keys() else {pool, ""})

    # What is asked of single seats. All raise ``KeyError`` where there is none of that name.

    def restart(self, name: str) -> bool:
        """Replace a worker gracefully. False: there is no such seat."""
        seat = self._seats.named(name)
        if seat is not None:
            seat.restart()
        return seat is not None

    def _seat(self, name: str) -> Seat:
        seat = self._seats.named(name)
        if seat is None:
            raise KeyError(name)
        return seat

    def start_worker(self, name: str) -> None:
        """Start a seat that does not run; begins its count of failures anew."""
        self._seat(name).start()

    def start_when_stopped(self, name: str) -> None:
        """Start a seat as soon as its stop has come to its end."""
        self._seat(name).start_when_stopped()

    def stop_worker(self, name: str) -> None:
        """Drain and stop a seat; it stays stopped until it is started."""
        self._stop(self._seat(name))

    def _stop(self, seat: Seat) -> None:
        others = [other for other in self._seats.of_pool(seat.pool) if other is not seat]
        if not any(other.state in ACTIVE for other in others):
            self._services.engine.close_pool(seat.pool)
        seat.stop()

    def signal_worker(self, name: str, number: int) -> bool:
        """Send a signal to a seat's process. False: it has none."""
        current = self._seat(name).current
        if current is not None:
            current.handle.signal(number)
        return current is not None

    def changed(self, name: str) -> asyncio.Future[None]:
        """Done with the seat's next change of state."""
        return self._seat(name).changed()

    def recycler(self, rss: Callable[[int], int | None]) -> Recycler:
        """Who replaces workers that are over a limit. ``rss``: a process's resident bytes by its pid, if known."""
        return Recycler(self._seats, rss)

    # What others see

    @property
    def granted(self) -> int:
        """Database connections that workers may open now."""
        return self._services.grants.granted

    def workers(self) -> list[WorkerView]:
        """Every seat, in order."""
        now = time.monotonic()
        return [view_of(seat, now) for seat in self._seats.in_order()]

    def pids(self) -> list[int]:
        """The processes in the seats, on this host."""
        handles = [seat.current.handle for seat in self._seats.in_order() if seat.current is not None]
        return [handle.pid for handle in handles if not handle.node]

    def worker(self, name: str) -> WorkerView | None:
        """The seat of that name."""
        seat = self._seats.named(name)
        return None if seat is None else view_of(seat, time.monotonic())

    def calls(self, name: str) -> list[CallView]:
        """The calls of a worker, the oldest first."""
        seat = self._seats.named(name)
        current = None if seat is None else seat.current
        return [] if current is None else calls_of(current.worker, current.handle.vitals())

    def inspectable(self, name: str) -> Inspectable | None:
        """A worker's process, if there is one that can be inspected."""
        seat = self._seats.named(name)
        handle = None if seat is None or seat.current is None else seat.current.handle
        return handle if isinstance(handle, Inspectable) else None

    def is_stopped(self, pool: str) -> bool:
        """Whether no worker of a pool runs or is about to."""
        return all(seat.state in (SeatState.STOPPED, SeatState.FATAL) for seat in self._seats.of_pool(pool))

    @property
    def active(self) -> bool:
        """Some worker runs, or will by itself."""
        return any(seat.state in ACTIVE for seat in self._seats.in_order())

    async def given_up(self) -> None:
        """Done once no worker can come any more."""
        while active := [seat for seat in self._seats.in_order() if seat.state in ACTIVE]:
            await active[0].changed()

    # Reload

    @property
    def reloading(self) -> bool:
        """A reload goes on, and pools can be neither added nor removed."""
        return self._seats.reloading

    async def reload(self, config: Config) -> None:
        """Replace all workers by ones with this configuration and the code as it is now.

        Returns once one worker of each pool has proven the new and the rest are being replaced one after another.
        ``ReloadFailedError`` if one does not come up, or if a module that was served cannot be imported any more: then
        nothing was changed.
        """
        if self._seats.reloading:
            raise ReloadFailedError("a reload is in progress already")
        self._seats.expect_mixed(True)
        rollout = Rollout(config, self._services.backend, self._seats, self._services.journal, self._services.loop)
        try:
            template = await rollout.prove()
        except BaseException:
            self._seats.expect_mixed(False)
            raise
        self._seats.adopt(config, template)
        self._remove_seats(config)
        self._rolling = self._services.loop.create_task(rollout.roll())
        self._rolling.add_done_callback(self._rolled)

    def _remove_seats(self, config: Config) -> None:
        """Stop the seats that the configuration has no more."""
        for seat in self._seats.in_order():
            settings = config.pools.get(seat.pool)
            if settings is None or seat.index >= settings.workers:
                seat.remove()
                self._stop(seat)
                self._seats.forget_if_stopped(seat)

    async def rolled(self) -> None:
        """Done when no reload replaces workers any more."""
        if self._rolling is not None:
            await asyncio.wait({self._rolling})

    def _rolled(self, rolling: asyncio.Task[None]) -> None:
        self._seats.expect_mixed(False)
        if not rolling.cancelled() and (error := rolling.exception()) is not None:
            log.error("replacing the workers in a reload failed", exc_info=error)

    # Shutdown

    async def shutdown(self, timeout: float) -> None:
        """Drain and stop everything; what is left after ``timeout`` seconds is killed."""
        self._seats.begin_to_stop()
        if self._rolling is not None:
            self._rolling.cancel()
        for seat in self._seats.in_order():
            self._stop(seat)
        for incarnation in self._seats.alive():
            incarnation.retire()
        await self._seats.emptied(timeout)
        for incarnation in self._seats.alive():
            if incarnation.phase not in (Phase.KILLED, Phase.GONE):
                what = "%s is killed: the time to stop is over"
                log.warning(what, incarnation.title, extra={"worker": incarnation.name})
            incarnation.kill()
        await self._seats.emptied()
        self._services.watcher.close()
        self._seats.close()
