"""Agents that stream, in every way in which an agent can."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg

from penstock.workers import Context, Response, agent


class Note:
    """Tells a test, by a file, how a generator ended and how far it came."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.made = 0

    def ended(self) -> None:
        Path(self._path).write_text(str(self.made))

    def goes_on(self) -> None:
        Path(f"{self._path}.made").write_text(str(self.made))


@agent
async def count(upto: int) -> AsyncIterator[int]:
    for number in range(upto):
        yield number


@agent
def count_plain(upto: int) -> Iterator[int]:
    yield from range(upto)


@agent(stream=True)
async def count_returned(upto: int) -> AsyncIterator[int]:
    async def numbers() -> AsyncIterator[int]:
        for number in range(upto):
            yield number

    return numbers()


@agent(stream=True)
def count_listed(upto: int) -> Iterator[int]:
    return iter(range(upto))


@agent(idempotent=True)
async def fails(after: int) -> AsyncIterator[int]:
    for number in range(after):
        yield number
    raise RuntimeError("a secret")


@agent
def fails_plain(after: int) -> Iterator[int]:
    yield from range(after)
    raise RuntimeError("a secret")


@agent
async def unfit(after: int) -> AsyncIterator[Any]:
    for number in range(after):
        yield number
    yield object()


@agent
async def huge(size: int) -> AsyncIterator[str]:
    yield "small"
    yield "x" * size


@agent(stream=True)
async def no_stream() -> Any:
    return {"a": 1}


@agent
async def pieces(count: int, status: int = 200) -> Response:
    async def made() -> AsyncIterator[bytes]:
        for number in range(count):
            yield b"%d;" % number

    return Response(made(), status=status, content_type="text/x-pieces", headers={"X-Made": "yes"})


@agent
def pieces_plain(count: int) -> Response:
    return Response(b"%d;" % number for number in range(count))


@agent
async def broken_pieces() -> Response:
    async def made() -> AsyncIterator[bytes]:
        yield b"some"
        raise RuntimeError("a secret")

    return Response(made())


@agent
async def endless(path: str, every: float = 0.0, size: int = 1000) -> AsyncIterator[str]:
    note = Note(path)
    try:
        while True:
            if every:
                await asyncio.sleep(every)
            note.made += 1
            yield "x" * size
    finally:
        note.ended()


@agent
def endless_plain(path: str, every: float = 0.0, size: int = 1000) -> Iterator[str]:
    note = Note(path)
    try:
        while True:
            if every:
                time.sleep(every)
            note.made += 1
            yield "x" * size
    finally:
        note.ended()


@agent(timeout=0.6)
async def too_long(path: str) -> AsyncIterator[str]:
    async for each in endless(path, 0.05):
        yield each


@agent(timeout=0.6)
def too_long_plain(path: str) -> Iterator[str]:
    yield from endless_plain(path, 0.05)


@agent
async def one_by_one(directory: str) -> AsyncIterator[int]:
    """The next item once there is a file with its number."""
    number = 0
    while True:
        while not Path(directory, str(number)).exists():
            await asyncio.sleep(0.005)
        if Path(directory, "end").exists():
            return
        yield number
        number += 1


@agent
async def two_steps() -> AsyncIterator[str]:
    """One item, and another once there is the file that the environment names."""
    yield "first"
    while not Path(os.environ["STREAM_GO"]).exists():
        await asyncio.sleep(0.005)
    yield "second"


@agent(idempotent=True)
async def tell_pid(path: str, items: int) -> AsyncIterator[int]:
    """So many items, then wait until there is a file."""
    for _ in range(items):
        yield os.getpid()
    while not Path(path).exists():
        await asyncio.sleep(0.005)
    yield os.getpid()


@agent
async def called(ctx: Context) -> AsyncIterator[Any]:
    yield ctx.request_id
    yield ctx.client
    yield ctx.remaining() > 0


@agent
async def noted(text: str, db: psycopg.AsyncConnection) -> AsyncIterator[int]:
    """Its transaction lasts as long as the stream."""
    await db.execute("CREATE TABLE IF NOT EXISTS streamed (text text)")
    await db.execute("INSERT INTO streamed VALUES (%s)", (text,))
    for number in range(3):
        yield number


@agent
def noted_plain(text: str, db: psycopg.Connection) -> Iterator[int]:
    db.execute("CREATE TABLE IF NOT EXISTS streamed (text text)")
    db.execute("INSERT INTO streamed VALUES (%s)", (text,))
    yield from range(3)


@agent
async def noted_count(text: str, db: psycopg.AsyncConnection) -> int:
    row = await (await db.execute("SELECT count(*) FROM streamed WHERE text = %s", (text,))).fetchone()
    assert row is not None
    return int(row[0])
