"""``research``: an agent that calls others, all at once, and streams what each has found as soon as it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import msgspec

from penstock.workers import CallFailed, Context, agent

from .library import Text


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one of the agents has found, or why it has found nothing."""

    agent: str
    found: Any = None
    problem: dict[str, Any] | None = None


@agent(idempotent=True)
async def research(question: Text, ctx: Context) -> AsyncIterator[Finding]:
    """Ask the other agents a question about Python's standard library: one item for each, the quickest first. What is
    like the best hit of ``search`` is asked for once that is known.
    """
    for finding in asyncio.as_completed([_search(question, ctx), _find("answer", {"question": question}, ctx)]):
        found = await finding
        yield found
        if found.agent == "search" and found.found:
            yield await _find("similar", {"name": found.found[0]["name"]}, ctx)


def _search(question: str, ctx: Context) -> Awaitable[Finding]:
    return _find("search", {"text": question, "limit": 5}, ctx)


async def _find(name: str, body: object, ctx: Context) -> Finding:
    try:
        return Finding(name, await ctx.call(name, body))
    except CallFailed as error:
        return Finding(name, problem=error.problem)
