"""``research``: an agent that calls others, all at once, and streams what each has found as soon as it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
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
    """Ask the other agents a question about Python's standard library: one item for each, the quickest first."""
    asked = {"search": {"text": question, "limit": 5}, "answer": {"question": question}}
    for finding in asyncio.as_completed([_find(name, body, ctx) for name, body in asked.items()]):
        yield await finding


async def _find(name: str, body: object, ctx: Context) -> Finding:
    try:
        return Finding(name, await ctx.call(name, body))
    except CallFailed as error:
        return Finding(name, problem=error.problem)
