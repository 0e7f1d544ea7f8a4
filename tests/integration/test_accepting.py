"""All connections that have come are accepted in one turn of the loop."""

from __future__ import annotations

import asyncio
import socket

import uvloop

from penstock.daemon.front.accepting import Acceptor
from penstock.daemon.front.exchange import Exchange
from penstock.daemon.front.limits import Limits
from penstock.daemon.front.server import Server
from penstock.daemon.host.listen import bind

COUNT = 40


def test_many_that_connect_together_do_not_wait_for_a_turn_each() -> None:
    async def unasked(exchange: Exchange) -> None:
        raise AssertionError("nobody asks for anything")

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

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
