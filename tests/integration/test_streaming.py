"""Responses that come piece by piece, over real connections to the daemon's server with a handler of the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from penstock.daemon.front.exchange import Exchange
from penstock.daemon.front.limits import Limits
from penstock.daemon.front.responses import Stream, stream
from penstock.daemon.front.server import Server
from tests.fix_daemon import until

Pieces = Callable[[], AsyncGenerator[bytes, None]]


@dataclass
class Stand:
    """A server whose every answer is a stream of these pieces."""

    port: int = 0
    begun: int = 0
    given: int = 0
    ended: list[str] = field(default_factory=list)
    server: Server | None = None

    async def connect(
        self, request: str, receive_buffer: int = 0, limit: int = 1024
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        plain = socket.socket()
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self.port))
        # A low limit keeps the test's own reader from taking what nobody has asked it for.
        reader, writer = await asyncio.open_connection(sock=plain, limit=limit)
        writer.write(request.encode())
        return reader, writer


@asynccontextmanager
async def serving(pieces: Pieces, **limits: Any) -> AsyncIterator[Stand]:
    stand = Stand()

    async def watched() -> AsyncGenerator[bytes, None]:
        stand.begun += 1
        try:
            async for piece in pieces():
                stand.given += len(piece)
                yield piece
            stand.ended.append("whole")
        except BaseException as error:
            stand.ended.append(type(error).__name__)
            raise

    async def handler(exchange: Exchange) -> Stream:
        return stream(watched(), "text/plain", "test-1", extra="X-Test: yes\r\n")

    server = stand.server = Server(handler, Limits(**limits))
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    stand.port = listener.sockets[0].getsockname()[1]
    try:
        yield stand
    finally:
        listener.close()
        await server.shutdown(1.0)


def run(test: Any) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())


async def three() -> AsyncGenerator[bytes, None]:
    for piece in (b"one", b"", b"two" * 50_000, b"three"):
        yield piece
        await asyncio.sleep(0)


WHOLE = b"one" + b"two" * 50_000 + b"three"
GET = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def forever() -> AsyncGenerator[bytes, None]:
    yield b"begin"
    await asyncio.Event().wait()


async def endless() -> AsyncGenerator[bytes, None]:
    while True:
        yield b"x" * 65536


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10.0)


async def body_of(reader: asyncio.StreamReader) -> bytes:
    """A chunked body, to its last chunk."""
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return body


def test_pieces_go_out_as_chunks_and_the_connection_is_kept() -> None:
    async def test() -> None:
        async with serving(three) as stand:
            reader, writer = await stand.connect(GET)
            for _ in range(2):
                head = await head_of(reader)
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                assert b"\r\nTransfer-Encoding: chunked\r\n" in head
                assert b"\r\nX-Test: yes\r\n" in head
                assert b"Content-Length" not in head
                assert b"Connection" not in head
                assert await body_of(reader) == WHOLE
                writer.write(GET.encode())
            await head_of(reader)
            writer.close()

    run(test)


def test_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    async def test() -> None:
        async with serving(three) as stand:
            reader, writer = await stand.connect("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            head = await head_of(reader)
            assert b"\r\nConnection: close\r\n" in head
            assert b"Transfer-Encoding" not in head
            assert await asyncio.wait_for(reader.read(), 10.0) == WHOLE
            writer.close()

    run(test)


def test_a_client_that_wants_no_further_answer_is_told_and_gets_it_whole() -> None:
    async def test() -> None:
        async with serving(three) as stand:
            reader, writer = await stand.connect("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"\r\nConnection: close\r\n" in await head_of(reader)
            assert await body_of(reader) == WHOLE
            assert await asyncio.wait_for(reader.read(), 10.0) == b""
            writer.close()

    run(test)


def test_head_begins_nothing() -> None:
    async def test() -> None:
        async with serving(three) as stand:
            reader, writer = await stand.connect("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
            assert b"\r\nTransfer-Encoding: chunked\r\n" in await head_of(reader)
            assert (await head_of(reader)).startswith(b"HTTP/1.1 200 ")
            assert await body_of(reader) == WHOLE
            assert stand.begun == 1
            writer.close()

    run(test)


@pytest.mark.parametrize("pieces", [forever, endless], ids=["waits", "writes"])
def test_a_client_that_goes_cancels_the_producer(pieces: Pieces) -> None:
    async def test() -> None:
        async with serving(pieces) as stand:
            reader, writer = await stand.connect(GET)
            await head_of(reader)
            assert not stand.ended
            writer.transport.abort()
            await until(lambda: stand.ended, "the producer has ended")
            assert stand.ended in (["CancelledError"], ["GeneratorExit"])

    run(test)


def test_a_producer_waits_for_a_client_that_does_not_read_and_the_client_is_dropped() -> None:
    async def test() -> None:
        async with serving(endless, stall_timeout=0.6) as stand:
            begun = asyncio.get_running_loop().time()
            reader, writer = await stand.connect(GET, receive_buffer=4096)
            await head_of(reader)
            await until(lambda: stand.ended, "the client is dropped")
            assert asyncio.get_running_loop().time() - begun > 0.5
            # What the kernel takes, and no more than a little beyond.
            assert stand.given < 16 * 2**20
            writer.close()

    run(test)


def test_an_answer_is_unsent_until_the_client_has_taken_all_of_it() -> None:
    """So that a daemon that stops knows for how long to wait."""

    async def large() -> AsyncGenerator[bytes, None]:
        for _ in range(200):
            yield b"x" * 65536

    async def test() -> None:
        async with serving(large) as stand:
            server = stand.server
            assert server is not None
            assert not server.unsent
            reader, writer = await stand.connect(GET, receive_buffer=4096)
            await head_of(reader)
            # What the kernel does not take waits, for as long as nobody reads.
            await until(lambda: stand.given > 2**20, "the answer is being written")
            assert server.unsent
            assert len(await body_of(reader)) == 200 * 65536
            await until(lambda: not server.unsent, "all is sent")
            writer.close()

    run(test)


def test_a_client_that_reads_slowly_is_not_dropped() -> None:
    async def test() -> None:
        async with serving(endless, stall_timeout=0.3) as stand:
            reader, writer = await stand.connect(GET, limit=65536)
            ends = asyncio.get_running_loop().time() + 1.2
            while asyncio.get_running_loop().time() < ends:
                assert await asyncio.wait_for(reader.read(65536), 10.0)
                await asyncio.sleep(0.005)
            assert not stand.ended
            writer.close()

    run(test)


def test_a_producer_that_fails_leaves_the_body_without_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> AsyncGenerator[bytes, None]:
        yield b"begin"
        raise ValueError("a secret")

    async def test() -> None:
        async with serving(failing) as stand:
            reader, writer = await stand.connect(GET)
            await head_of(reader)
            assert await asyncio.wait_for(reader.read(), 10.0) == b"5\r\nbegin\r\n"
            assert stand.ended == ["ValueError"]
            writer.close()

    run(test)
    assert "a stream failed" in caplog.text


def test_a_server_that_ends_cancels_what_does_not_end_by_itself() -> None:
    async def test() -> None:
        async with serving(forever) as stand:
            reader, writer = await stand.connect(GET)
            await head_of(reader)
        assert stand.ended == ["CancelledError"]
        assert await asyncio.wait_for(reader.read(), 10.0) == b"5\r\nbegin\r\n"
        writer.close()

    run(test)
