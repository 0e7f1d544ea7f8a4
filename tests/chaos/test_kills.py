"""Workers are killed under load, and every request is accounted for by a table that the agents write to."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.fix_daemon import PATIENCE, DaemonFactory, Reply, eventually

REQUESTS = 400
KILLS = 3
"""As many at least, of either."""


def test_every_request_is_answered_once_and_done_at_most_once(fresh: DaemonFactory) -> None:
    daemon = fresh(
        "stored",
        settings={
            "database.dsn": "",
            "pools.default.workers": 3,
            "pools.default.concurrency": 4,
            "supervision.start_seconds": 0.0,
        },
    )
    daemon.wait_workers(3)
    assert daemon.call("ask", "CREATE TABLE ledger (key text)").status == 200
    rng = random.Random(7)
    done = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        """Kill a random worker whenever all of them are there."""
        while not done.wait(0.15):
            workers = daemon.workers()
            if all(worker["state"] == "RUNNING" for worker in workers):
                killed.append(rng.choice(workers)["pid"])
                os.kill(killed[-1], signal.SIGKILL)

    def call(number: int) -> tuple[str, str, Reply]:
        agent = ("count_once", "count_again")[number % 2]
        return agent, f"{agent}-{number}", daemon.call(agent, f"{agent}-{number}", {"Request-Timeout": "20"})

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with ThreadPoolExecutor(16) as threads:
            replies = list(threads.map(call, range(REQUESTS)))
            until = time.monotonic() + PATIENCE
            while len(killed) < KILLS and time.monotonic() < until:
                replies += threads.map(call, range(len(replies), len(replies) + 32))
    finally:
        done.set()
        killer.join()
    daemon.wait_workers(3)
    eventually(lambda: daemon.in_flight() == 0, "nothing is left running")
    rows = Counter(row[0] for row in daemon.call("ask", "SELECT key FROM ledger").json)
    restarts = sum(worker["restarts"] for worker in daemon.workers())
    assert restarts >= KILLS, "the test did kill workers"
    for agent, key, reply in replies:
        # The work and its answer are two things: what was done may have lost its answer, and that is what 502 says.
        allowed = {200, 422, 502, 503} if agent == "count_again" else {200, 502, 503}
        assert reply.status in allowed, (key, reply.status, reply.body)
        if reply.status == 200:
            assert reply.json == key
            assert rows[key] >= 1
        assert rows[key] <= (2 if agent == "count_again" else 1), (key, rows[key])
    outcomes = Counter((agent, reply.status) for agent, _, reply in replies)
    assert outcomes["count_once", 200] + outcomes["count_again", 200] > len(replies) * 0.6, outcomes
