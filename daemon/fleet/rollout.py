"""One reload: the new code is proven, then every seat is brought to it.

One worker of every pool has to become ready on the new code and configuration before anything changes. They get no
calls until then, and no seat: each has a ``Proof`` as its owner. Those that have proven the new take their seats first,
and then seat after seat is replaced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final, Protocol

from ..config.settings import Config
from ..core.lifecycle import Phase, SeatState
from .backend import Backend, SpawnError, Template
from .incarnation import Incarnation
from .journal import Journal
from .seat import Seat

log = logging.getLogger("penstock.fleet")

RENEWALS: Final = 3
"""Tries to bring a seat to a new configuration whose worker has proven itself once."""


class ReloadFailedError(Exception):
    """The new code or configuration does not work; the old serves on. The text says why."""


class RolloutOwner(Protocol):
    """Whose seats are brought to the new."""

    @property
    def stopping(self) -> bool:
        """Nothing is started any more."""

    def prove(self, pool: str, config: Config, template: Template, proof: Proof) -> Incarnation:
        """Start a worker of this pool that is in no seat (``SpawnError``)."""

    def serving(self) -> Iterable[Incarnation]:
        """Those that have served, and are not gone."""

    def take_seats(self) -> None:
        """Make and start the seats that the configuration has more."""

    def seat_for(self, pool: str, index: int) -> tuple[Seat, bool]:
        """The seat of this place, and whether it was made for that, and is to be started."""

    def in_order(self) -> list[Seat]:
        """All seats."""


class Proof:
    """The owner of a worker that has to prove the new code."""

    awaiting = "the reload waits for "

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.verdict: asyncio.Future[str] = loop.create_future()
        """Empty, or why it failed."""

    def _tell(self, verdict: str) -> None:
        if not self.verdict.done():
            self.verdict.set_result(verdict)

    def came_up(self, incarnation: Incarnation) -> None:
        """It works."""
        self._tell("")

    def serves(self, incarnation: Incarnation) -> None:
        """Not as long as it is here."""

    def asked_to_leave(self, incarnation: Incarnation) -> None:
        """Not while it does not serve."""

    def ended(self, incarnation: Incarnation) -> None:
        """It does not work, unless it did before."""
        self._tell(incarnation.reason or "it ended")


class Rollout:
    """A reload to one configuration, with the code as it is now."""

    def __init__(
        self, config: Config, backend: Backend, owner: RolloutOwner, journal: Journal, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.config = config
        self._backend = backend
        self._owner = owner
        self._journal = journal
        self._loop = loop
        self._proven: list[Incarnation] = []

    async def prove(self) -> Template:
        """Start one worker of each pool, and see all become ready; what the others are to be launched from.

        ``ReloadFailedError`` if one does not come up, or if a module that was served cannot be imported any more; then,
        and when it is cancelled, nothing is left of it.
        """
        template: Template | None = None
        try:
            template = self._backend.template(self.config, anew=True)
            for pool in self.config.pools:
                # Kept one by one, for the case that a later one fails.
                self._proven.append(await self._prove(pool, template))
            if self._owner.stopping:
                raise ReloadFailedError("the daemon is stopping")
            template.settle()
        except BaseException as error:
            # Cancellation too: whoever asked for the reload may be gone.
            for proof in self._proven:
                proof.retire("the reload failed")
            if template is not None:
                template.close()
            if isinstance(error, SpawnError):
                raise ReloadFailedError(str(error)) from error
            raise
        return template

    async def _prove(self, pool: str, template: Template) -> Incarnation:
        """Let a worker become ready without giving it any call."""
        proof = Proof(self._loop)
        incarnation = self._owner.prove(pool, self.config, template, proof)
        try:
            reason = await proof.verdict or self._newly_broken(incarnation)
        except BaseException:
            incarnation.retire("the reload was cancelled")
            raise
        if reason:
            incarnation.retire(reason)
            raise ReloadFailedError(f"a new worker of pool {pool!r} did not come up: {reason}")
        return incarnation

    def _newly_broken(self, new: Incarnation) -> str:
        """The modules that this worker could not import and those that serve could; empty if there are none."""
        serving = list(self._owner.serving())
        known = {broken.module for incarnation in serving for broken in incarnation.broken}
        newly = [broken for broken in new.broken if broken.module not in known] if serving else []
        return "; ".join(f"the module {broken.module} cannot be imported: {broken.error}" for broken in newly)

    async def roll(self) -> None:
        """Bring every seat to the new configuration, one after another."""
        for proof in self._proven:
            self._adopt(proof)
        self._owner.take_seats()
        for seat in self._owner.in_order():
            await self._renew(seat)
        self._conclude()

    def _adopt(self, proof: Incarnation) -> None:
        """The proven worker takes its seat."""
        if proof.phase is not Phase.STARTING:
            return  # it died since; its seat is brought to the new like the others
        seat, new = self._owner.seat_for(proof.identity.pool, proof.identity.index)
        seat.adopt(proof, new=new)

    async def _renew(self, seat: Seat) -> None:
        """Bring a seat to this configuration, unless it is stopped or about to be."""
        for _ in range(RENEWALS):
            if seat.state in (SeatState.FATAL, SeatState.BACKOFF):
                seat.start()
            if seat.current is None or seat.current.config is self.config:
                return
            if seat.state is SeatState.STARTING:
                seat.start_over()
            elif seat.state is SeatState.RUNNING:
                await seat.succeed(self.config)

    def _conclude(self) -> None:
        """Say whether all run the new."""
        running = [seat for seat in self._owner.in_order() if seat.state is SeatState.RUNNING]
        serving = [(seat.name, seat.current) for seat in running if seat.current is not None]
        late = [name for name, incarnation in serving if incarnation.config is not self.config]
        codes = {incarnation.code: name for name, incarnation in serving if incarnation.config is self.config}
        if late:
            log.error("reloaded, except for %s: no replacement became ready; see above", ", ".join(late))
        elif len(codes) > 1:
            versions = ", ".join(f"{name} runs {code}" for code, name in codes.items())
            log.error("reloaded, but the code changed meanwhile, and workers are mixed: %s; reload again", versions)
            self._journal.add("reload", f"the code changed while workers were replaced: {versions}")
        else:
            log.info("reloaded: every worker runs the new code and configuration (code %s)", *codes or ["unknown"])
