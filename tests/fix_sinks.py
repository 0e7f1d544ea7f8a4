"""A sink for tests that submit tickets themselves."""

from __future__ import annotations

import asyncio

from penstock.daemon.engine.tickets import Ticket


class Awaited:
    """Keeps the tickets that have ended, in their order, and lets whoever waits for one go on."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self._more = asyncio.Event()

    def ended(self, ticket: Ticket) -> None:
        assert ticket not in self.tickets, "a ticket ends once"
        self.tickets.append(ticket)
        self._more.set()

    async def wait(self, ticket: Ticket) -> None:
        """Wait until this ticket has ended."""
        while ticket not in self.tickets:
            self._more.clear()
            await self._more.wait()
