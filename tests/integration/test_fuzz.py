"""The front against whatever comes over a socket. ``make fuzz`` runs it for long, with a seed of its own each time."""

from __future__ import annotations

import os
import time

import pytest

from tests.fix_daemon import Daemon, DaemonFactory
from tests.fuzzer import Fuzzer, run_for

SETTINGS = {
    "pools.default.concurrency": 4,
    "pools.default.balance": "hash",
    "http.header_timeout": 2,
    "http.body_timeout": 2,
    "http.max_connections": 500,
}


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons("odd", settings=SETTINGS)
    made.wait_workers(2)
    return made


def test_odd_requests_do_no_harm(daemon: Daemon) -> None:
    pids = {worker["pid"] for worker in daemon.workers()}
    Fuzzer(daemon).run(1, 0, 3000)
    assert {worker["pid"] for worker in daemon.workers()} == pids


@pytest.mark.skipif("FUZZ_SECONDS" not in os.environ, reason="takes as long as FUZZ_SECONDS says: make fuzz")
def test_odd_requests_do_no_harm_for_long(daemon: Daemon) -> None:
    seed = int(os.environ.get("FUZZ_SEED", str(time.time_ns())))
    pids = {worker["pid"] for worker in daemon.workers()}
    fuzzer = run_for(daemon, float(os.environ["FUZZ_SECONDS"]), seed)
    assert sum(fuzzer.statuses.values())
    assert {worker["pid"] for worker in daemon.workers()} == pids
