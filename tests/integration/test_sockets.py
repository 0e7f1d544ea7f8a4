"""Inbox and Outbox on real ZeroMQ sockets: in order, nothing twice, and nothing lost where nothing is refused."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
import zmq

from penstock.ipc import sockets
from penstock.ipc.sockets import Inbox, Outbox
from tests.fix_daemon import eventually, until

Socket = zmq.Socket[bytes]
Message = tuple[bytes, bytes]


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as made:
        yield f"ipc://{made}/socket"


@pytest.fixture
def context() -> Iterator[zmq.Context[Socket]]:
    made = sockets.context()
    yield made
    made.destroy(linger=0)


def connected(push: Socket) -> bool:
    return bool(int(push.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)


@pytest.fixture
def pair(context: zmq.Context[Socket], address: str) -> tuple[Socket, Socket]:
    """A PUSH and a PULL that are connected."""
    push, pull = sockets.bind_push(context, address), sockets.connect_pull(context, address)
    eventually(lambda: connected(push), "the sockets are connected")
    return push, pull


@asynccontextmanager
async def followed_by(condition: Callable[[], object]) -> AsyncIterator[None]:
    """Wait for the condition after what is done in the block."""
    yield
    await until(condition, "what was sent has arrived")


def test_an_unsafe_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(sockets.UnsafeDirectory, match="mode 0750, and its sockets need 0700"):
        sockets.check_directory(str(tmp_path))
    tmp_path.chmod(0o700)
    sockets.check_directory(str(tmp_path))


@pytest.mark.parametrize("count", [1, 2, 3, 100, 101, 1000])
@pytest.mark.parametrize("size", [0, 10, sockets.ZERO_COPY])
def test_messages_arrive_in_order(pair: tuple[Socket, Socket], count: int, size: int) -> None:
    count = min(count, 200) if size > 1000 else count
    sent = [(b"header %d" % number, b"%d" % number * (size // 4)) for number in range(count)]
    got: list[Message] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        inbox = Inbox(loop, pair[1], lambda header, body: got.append((header, body)))
        outbox = Outbox(loop, pair[0])
        inbox.open()
        async with followed_by(lambda: len(got) == count):
            for header, body in sent:
                outbox.send(header, body)
        assert outbox.waiting == 0
        inbox.close()
        inbox.close()
        outbox.close()

    uvloop.run(main())
    assert got == sent


def test_what_one_turn_sends_is_one_message(pair: tuple[Socket, Socket]) -> None:
    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop(), pair[0])
        outbox.send(b"head 1", b"body 1")
        outbox.send(b"head 2", b"")
        await asyncio.sleep(0)
        outbox.send(b"head 3", b"body 3")

    uvloop.run(main())
    assert pair[1].poll(5000)
    assert pair[1].recv_multipart() == [b"\x02", b"head 1", b"body 1", b"head 2", b""]
    assert pair[1].poll(5000)
    assert pair[1].recv_multipart() == [b"head 3", b"body 3"]


def test_without_a_peer_they_are_handed_back(context: zmq.Context[Socket], address: str) -> None:
    push = sockets.bind_push(context, address)
    handed: list[int] = []

    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop(), push, handed.append)
        outbox.send(b"head 1")
        outbox.send(b"head 2")
        await asyncio.sleep(0)
        assert handed == [2]
        assert outbox.waiting == 0
        outbox.send(b"head 3")
        await asyncio.sleep(0)
        assert handed == [2, 1]

    uvloop.run(main())
    push.close()


def test_without_refusal_they_wait_for_the_peer(context: zmq.Context[Socket], address: str) -> None:
    push = sockets.bind_push(context, address)
    got: list[Message] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        outbox = Outbox(loop, push)
        for number in range(250):
            outbox.send(b"head %d" % number)
        await asyncio.sleep(3 * Outbox.RETRY)
        assert outbox.waiting == 250
        inbox = Inbox(loop, sockets.connect_pull(context, address), lambda header, body: got.append((header, body)))
        async with followed_by(lambda: len(got) == 250):
            inbox.open()
        inbox.close()
        outbox.close()

    uvloop.run(main())
    assert got == [(b"head %d" % number, b"") for number in range(250)]


def test_a_socket_at_its_mark_loses_nothing(context: zmq.Context[Socket], address: str) -> None:
    push = context.socket(zmq.PUSH)
    push.sndhwm = 2
    push.immediate = 1
    push.bind(address)
    pull = context.socket(zmq.PULL)
    pull.rcvhwm = 2
    pull.connect(address)
    eventually(lambda: connected(push), "the sockets are connected")
    sent = [(b"head %d" % number, bytes(20_000)) for number in range(600)]
    got: list[Message] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        outbox = Outbox(loop, push)
        for number, (header, body) in enumerate(sent):
            outbox.send(header, body)
            if number % 3 == 0:
                await asyncio.sleep(0)
        async with followed_by(lambda: outbox.waiting > 0):
            pass
        inbox = Inbox(loop, pull, lambda header, body: got.append((header, body)))
        async with followed_by(lambda: len(got) == len(sent)):
            inbox.open()
        inbox.close()
        outbox.close()

    uvloop.run(main())
    assert got == sent


def test_a_flood_leaves_the_loop_its_turns(pair: tuple[Socket, Socket]) -> None:
    for number in range(5 * sockets.BATCH):
        assert sockets.send(pair[0], [(b"head %d" % number, b"")])
    got: list[bytes] = []
    turns: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        inbox = Inbox(loop, pair[1], lambda header, body: got.append(header))

        def turn() -> None:
            turns.append(len(got))
            loop.call_soon(turn)

        turn()
        async with followed_by(lambda: len(got) == 5 * sockets.BATCH):
            inbox.open()
        inbox.close()

    uvloop.run(main())
    steps = [after - before for before, after in itertools.pairwise(turns)]
    assert max(steps) <= 2 * sockets.BATCH  # the reader's own wake-up and the one that it asked for


def test_a_message_that_cannot_be_handled_holds_up_none_behind_it(pair: tuple[Socket, Socket]) -> None:
    got: list[bytes] = []
    raised: list[object] = []

    def receive(header: bytes, body: bytes) -> None:
        if header == b"bad one":
            raise ValueError(header)
        got.append(header)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: raised.append(context.get("exception")))
        for header in (b"head 1", b"bad one", b"head 2", b"bad one", b"head 3"):
            assert sockets.send(pair[0], [(header, b"")])
        inbox = Inbox(loop, pair[1], receive)
        async with followed_by(lambda: len(got) == 3):
            inbox.open()
        inbox.close()

    uvloop.run(main())
    assert got == [b"head 1", b"head 2", b"head 3"]
    assert len(raised) == 2


def test_an_inbox_that_is_closed_by_what_it_got_reads_no_more(pair: tuple[Socket, Socket]) -> None:
    for number in range(3):
        assert sockets.send(pair[0], [(b"head %d" % number, b"")])
    got: list[bytes] = []
    raised: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: raised.append(context))

        def receive(header: bytes, body: bytes) -> None:
            got.append(header)
            inbox.close()

        inbox = Inbox(loop, pair[1], receive)
        async with followed_by(lambda: got):
            inbox.open()
        await asyncio.sleep(0.01)

    uvloop.run(main())
    assert (got, raised) == ([b"head 0"], [])


@pytest.mark.parametrize("frame", range(7))
def test_a_peer_that_goes_in_the_middle_of_a_message_spoils_none_of_the_next(
    context: zmq.Context[Socket], address: str, frame: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeroMQ refuses the rest of a message whose peer has gone, and would drop the next message's frames for it."""
    push, pull = sockets.bind_push(context, address), sockets.connect_pull(context, address)
    eventually(lambda: connected(push), "the sockets are connected")
    gone = push.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    real, count = sockets._send, 0

    def send(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        if count == frame:
            pull.close()
            # Long enough for ZeroMQ's thread to hear of it and for the next send to look: nothing else shows it.
            threading.Event().wait(0.03)
        count += 1
        return real(*arguments, **options)

    monkeypatch.setattr(sockets, "_send", send)
    sockets.send(push, [(b"head %d" % number, b"body") for number in range(3)])
    monkeypatch.setattr(sockets, "_send", real)
    assert gone.poll(5000)
    eventually(lambda: not connected(push), "the socket has heard of it")
    push.disable_monitor()
    gone.close()
    successor = sockets.connect_pull(context, address)
    eventually(lambda: connected(push), "the sockets are connected again")
    assert sockets.send(push, [(b"head", b"body")])
    assert successor.poll(5000)
    assert successor.recv_multipart() == [b"head", b"body"]
    for each in (push, pull, successor):
        each.close()
