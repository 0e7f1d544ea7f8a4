"""The agents that need no database: an echo, a wait, a computation, and a stream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import msgspec

from penstock.workers import agent

_WORD: Final = re.compile(r"\s*\S+\s*")


class Slept(msgspec.Struct, frozen=True):
    """What ``sleep`` answers."""

    slept: float


class Primes(msgspec.Struct, frozen=True):
    """What ``primes`` answers; ``largest`` is null where there is no prime."""

    count: int
    largest: int | None


@agent(idempotent=True)
async def echo(body: Any) -> Any:
    """Give the body back."""
    return body


@agent(idempotent=True)
async def sleep(seconds: Annotated[float, msgspec.Meta(ge=0.0, le=3600.0)]) -> Slept:
    """Wait for so many seconds, without keeping anything but a slot busy."""
    await asyncio.sleep(seconds)
    return Slept(seconds)


@agent(idempotent=True)
async def tokens(text: Annotated[str, msgspec.Meta(max_length=100_000)]) -> AsyncIterator[str]:
    """Answer with the text, word by word: each item is one with the space around it, and all together are the text."""
    for found in _WORD.finditer(text):
        yield found[0]
        await asyncio.sleep(0)


@agent(idempotent=True)
def primes(below: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]) -> Primes:
    """Count the primes below a number, and find the largest: work for one core, in Python."""
    if below <= 2:
        return Primes(0, None)
    # One byte for each odd number: 1 stands for 2, which is the prime that this has no place for.
    odd = bytearray([1]) * (below // 2)
    for number in range(3, int(below**0.5) + 1, 2):
        if odd[number // 2]:
            first = number * number // 2
            odd[first::number] = bytes(len(range(first, len(odd), number)))
    last = odd.rindex(1)
    return Primes(odd.count(1), 2 * last + 1 if last else 2)
