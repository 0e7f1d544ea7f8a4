"""A client that takes nothing of an answer is disconnected, whatever is left of it; a slow one is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from penstock.daemon.front.connection import Connection
from penstock.daemon.front.limits import Limits
from penstock.daemon.front.server import Server

LIMITS = Limits(stall_timeout=30.0)


class Taking(asyncio.Transport):
    """A transport with so many bytes that its client has not taken."""

    left = 0
    aborted = False

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def followed(loop: asyncio.AbstractEventLoop, *seen: tuple[float, int]) -> bool:
    """Whether the connection is cut when it is looked at at these times, with so many bytes left."""

    async def look() -> bool:
        async def never(exchange: object) -> None: ...

        connection = Server(never, LIMITS)()  # type: ignore[arg-type] # nothing is asked
        assert isinstance(connection, Connection)
        transport = Taking()
        connection.transport = transport
        for now, left in seen:
            transport.left = left
            connection.check(LIMITS, now)
        return transport.aborted

    return loop.run_until_complete(look())


def test_a_little_that_is_never_taken_is_enough(loop: asyncio.AbstractEventLoop) -> None:
    assert not followed(loop, (1, 10), (30, 10))
    assert followed(loop, (1, 10), (32, 10))


def test_who_takes_some_has_more_time(loop: asyncio.AbstractEventLoop) -> None:
    assert not followed(loop, (1, 10_000), (25, 9_000), (50, 8_000))


def test_who_has_taken_all_begins_anew(loop: asyncio.AbstractEventLoop) -> None:
    assert not followed(loop, (1, 10), (20, 0), (40, 10))
