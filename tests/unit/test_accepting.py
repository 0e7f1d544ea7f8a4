"""All connections that have come are accepted in one turn of the loop, unless turns are long already."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine
from typing import Any

import uvloop

from penstock.daemon.front.accepting import LONG_TURN, TRICKLE, Acceptor
from penstock.daemon.front.limits import Limits
from penstock.daemon.front.server import Exchange, Server, bind

COUNT = 40


async def unasked(exchange: Exchange) -> None:
    raise AssertionError("nobody asks for anything")


async def long_turn() -> None:
    """Others of this turn of the loop take their time."""
    until = time.monotonic() + 1.5 * LONG_TURN
    while time.monotonic() < until:
        pass
    await asyncio.sleep(0)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario)


def test_many_that_connect_together_do_not_wait_for_a_turn_each() -> None:
    async def scenario() -> None:
        server = Server(unasked, Limits(100, 10.0, 10.0))  # type: ignore[arg-type]  # it is never called
        listener = bind("127.0.0.1:0")
        clients = [socket.create_connection(listener.getsockname()) for _ in range(COUNT)]
        acceptor = Acceptor(server, listener, None)
        turns = 0
        while server.free > 100 - COUNT:
            turns += 1
            assert turns < COUNT / 2, f"{100 - server.free} of {COUNT} after {turns} turns"
            await asyncio.sleep(0)
        acceptor.close()
        listener.close()
        await server.shutdown(1.0)
        for client in clients:
            client.close()

    run(scenario())


def test_only_a_trickle_is_let_in_while_turns_are_long() -> None:
    async def scenario() -> None:
        server = Server(unasked, Limits(100, 10.0, 10.0))  # type: ignore[arg-type]  # it is never called
        listener = bind("127.0.0.1:0")
        acceptor = Acceptor(server, listener, None)
        clients = [socket.create_connection(listener.getsockname())]
        while server.free == 100:
            await long_turn()
        clients += [socket.create_connection(listener.getsockname()) for _ in range(COUNT)]
        for _ in range(3):
            await long_turn()
        assert 1 < 100 - server.free <= 1 + 2 * TRICKLE
        # Once turns are short again, the others come in.
        async with asyncio.timeout(10.0):
            while server.free > 99 - COUNT:
                await asyncio.sleep(0.01)
        acceptor.close()
        listener.close()
        await server.shutdown(1.0)
        for client in clients:
            client.close()

    run(scenario())
