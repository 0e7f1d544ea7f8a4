"""``max_requests`` and ``max_rss`` on a real daemon: workers go when they are due, and nobody notices."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.fix_daemon import Daemon, DaemonFactory, eventually
from tests.fix_metrics import Samples


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    settings = {
        "pools.default.workers": 2,
        "pools.default.max_requests": 60,
        "pools.default.agents": '["echo", "wait*"]',
        "pools.large.workers": 2,
        "pools.large.max_rss": "250MiB",
    }
    made = daemons("basic", "heavy", settings=settings)
    made.wait_workers(4)
    return made


def restarts(daemon: Daemon, reason: str) -> dict[str, int]:
    samples = Samples(daemon)
    names = [worker["name"] for worker in daemon.workers()]
    return {name: int(samples("penstock_worker_restarts_total", worker=name, reason=reason)) for name in names}


class Watch:
    """Looks at the workers of a pool again and again: the fewest that ran at any time, the most that were replaced."""

    def __init__(self, daemon: Daemon, pool: str) -> None:
        self._daemon = daemon
        self._pool = pool
        self._done = threading.Event()
        self.fewest = 99
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.is_set():
            workers = [worker for worker in self._daemon.workers() if worker["pool"] == self._pool]
            self.fewest = min(self.fewest, sum(worker["state"] == "RUNNING" for worker in workers))


def test_workers_are_replaced_after_so_many_calls_and_no_call_fails(daemon: Daemon) -> None:
    before = {worker["name"]: worker["pid"] for worker in daemon.workers()}
    statuses: set[int] = set()

    def enough() -> bool:
        statuses.update(reply.status for reply in daemon.calls("echo", list(range(60)), at_once=8))
        found = restarts(daemon, "max_requests")
        return found["default:0"] >= 2 and found["default:1"] >= 2

    with Watch(daemon, "default") as watch:
        eventually(enough, "both were replaced twice")
    assert statuses == {200}
    assert watch.fewest == 2, "a replacement is ready before its predecessor goes"
    after = {worker["name"]: worker["pid"] for worker in daemon.workers()}
    assert before["default:0"] != after["default:0"]
    assert before["large:0"] == after["large:0"]
    assert daemon.log.count("has answered") >= 4
    events: list[dict[str, Any]] = daemon.status()["events"]
    assert {event["worker"] for event in events if event["kind"] == "recycle"} == {"default:0", "default:1"}


def test_a_worker_that_has_grown_too_large_is_replaced_and_no_other(daemon: Daemon) -> None:
    assert all(count == 0 for count in restarts(daemon, "max_rss").values())
    assert daemon.call("hoard", 300).status == 200
    with Watch(daemon, "large") as watch:
        eventually(lambda: sum(restarts(daemon, "max_rss").values()) == 1, "it was replaced")
    assert watch.fewest == 2
    large = next(name for name, count in restarts(daemon, "max_rss").items() if count)
    worker = daemon.worker(large)
    assert (worker["pool"], worker["state"], worker["restarts"]) == ("large", "RUNNING", 1)
    eventually(lambda: (daemon.worker(large)["rss"] or 2**40) < 250 * 2**20, "the new one is measured, and smaller")
    assert "(max_rss)" in daemon.log
