"""Agents whose workers have to be recycled."""

from __future__ import annotations

import time

from penstock.workers import agent

_hoard: list[bytearray] = []


@agent
async def block(seconds: float) -> float:
    """Hold up the worker's loop for so long."""
    time.sleep(seconds)
    return seconds


@agent
def hoard(mebibytes: int) -> int:
    """Keep so much memory for good."""
    _hoard.append(bytearray(b"\1" * (mebibytes << 20)))
    return mebibytes
