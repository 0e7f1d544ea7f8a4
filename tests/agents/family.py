"""Agents that start processes of their own, as a process pool, a converter or a browser would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from penstock.workers import agent

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
_pools: list[Any] = []


def _compute(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@agent
def bear(body: dict[str, Any]) -> dict[str, Any]:
    """Start some processes: in this worker's group, computing in a pool of processes, and in a session of its own."""
    pool = ProcessPoolExecutor(2, get_context("fork"))
    _pools.append(pool)
    for _ in range(2):
        pool.submit(_compute, 600.0)
    while len(pool._processes) < 2:
        time.sleep(0.01)
    kept = [subprocess.Popen(SLEEP).pid, *pool._processes]
    free = subprocess.Popen(SLEEP, start_new_session=True).pid
    return {"pid": os.getpid(), "kept": kept, "free": free}


@agent
def terminate(body: None = None) -> list[int | None]:
    """How children end that are told to: a fork by SIGTERM, a program by SIGINT."""
    fork = get_context("fork").Process(target=time.sleep, args=(600,))
    fork.start()
    program = subprocess.Popen(["sleep", "600"])
    fork.terminate()
    program.send_signal(signal.SIGINT)
    fork.join(20)
    return [fork.exitcode, program.wait(20)]


@agent(timeout=0.5)
def hang(body: None = None) -> None:
    """Compute without ever looking at an interruption."""
    sum(range(10**12))


@agent
def orphan(body: int) -> int:
    """Leave so many processes without a parent, which end at once."""
    for _ in range(body):
        if not (child := os.fork()):
            os.fork()
            os._exit(0)
        os.waitpid(child, 0)
    return body
