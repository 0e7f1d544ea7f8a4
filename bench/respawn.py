"""How quickly a killed worker is replaced, as a client sees it, and how much memory an idle worker has for itself.

There is one worker only. It is killed with SIGKILL, and a request follows at once: its answer can come from nobody but the
replacement, so the time until then holds the notice of the death, the start and the first call.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from typing import Any, Final

import psutil

from bench.measuring import Check, Result, closed, command
from bench.targets import Target, penstock

PAUSE: Final = 2.2
"""Seconds between two kills. Restarts at once are limited in number (five in ten seconds); the sixth would wait."""
MOST_MS: Final = 150.0
MOST_MIB: Final = 20.0


def measure(scale: float) -> Result:
    """Both, with the agent modules preloaded (the default)."""
    result = Result("respawn")
    times = [("kill to answer of the replacement, ms", _respawns(max(3, round(10 * scale))))]
    rows: list[list[Any]] = [["", "median", "max"]]
    for what, values in [*times, *_memory().items()]:
        rows.append([what, statistics.median(values), max(values)])
    result.tables["a worker's replacement, and its private memory (USS)"] = rows
    result.checks.append(Check("respawn, ms (median)", rows[1][1], MOST_MS))
    result.checks.append(Check("private memory of an idle worker, MiB", rows[2][2], MOST_MIB))
    return result


def _respawns(times: int) -> list[float]:
    spans: list[float] = []
    with penstock(pools__default__workers=1, supervision__start_seconds=0.0) as target:
        for _ in range(times):
            pid = int(target.workers()[0]["pid"])
            target.call("echo", 1)
            time.sleep(PAUSE)
            os.kill(pid, signal.SIGKILL)
            begun = time.monotonic()
            target.call("echo", 2)
            spans.append((time.monotonic() - begun) * 1e3)
            if int(target.workers()[0]["pid"]) == pid:
                raise RuntimeError("the answer came from the worker that was killed")
    return spans


def _memory() -> dict[str, list[float]]:
    """MiB of each worker: fresh, and after it has answered."""
    with penstock() as target:
        fresh = _private(target)
        closed(target, "echo", "{}", 32, 1.0)
        used = _private(target)
    return {"private MiB, fresh": fresh, "private MiB, after a second of echo": used}


def _private(target: Target) -> list[float]:
    return [psutil.Process(worker["pid"]).memory_full_info().uss / 2**20 for worker in target.workers()]


if __name__ == "__main__":
    sys.exit(command(measure, __doc__))
