"""Who comes back before its time is answered late, taken if there is room by then, and never forgotten."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.daemon.core.comebacks import PACED
from tests.fix_daemon import Daemon, DaemonFactory, Reply, eventually
from tests.fix_metrics import Samples

FULL = {
    "pools.default.workers": 1,
    "pools.default.concurrency": 1,
    "queue.high_water": 1,
    "queue.low_water": 0,
}
"""One runs, one waits, and everybody else is refused."""


class Client:
    """One connection that is kept."""

    def __init__(self, daemon: Daemon) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)

    def ask(self, agent: str = "echo", value: Any = 1) -> None:
        headers = {"Content-Type": "application/json"}
        self.connection.request("POST", f"/v1/agents/{agent}", json.dumps(value), headers)

    def reply(self) -> Reply:
        response = self.connection.getresponse()
        return Reply(response.status, response.headers, response.read(), 0.0)

    def call(self) -> Reply:
        self.ask()
        return self.reply()

    def close(self) -> None:
        self.connection.close()


def throttle(daemon: Daemon) -> Any:
    return daemon.status()["throttle"]


class Filled:
    """A daemon that is full until ``drain`` is called."""

    def __init__(self, daemon: Daemon, gate: Path) -> None:
        self.daemon = daemon
        self.gate = gate
        self.clients: list[Client] = []
        self.busy = [daemon.begin("hold", str(gate)) for _ in range(2)]
        eventually(lambda: daemon.status()["queue"]["refusing"], "it refuses")

    def client(self) -> Client:
        """One that is closed after the test."""
        self.clients.append(Client(self.daemon))
        return self.clients[-1]

    def drain(self) -> None:
        self.gate.touch()
        assert [each.result().status for each in self.busy] == [200, 200]


@pytest.fixture
def filled(fresh: DaemonFactory, tmp_path: Path) -> Iterator[Filled]:
    daemon = fresh("basic", settings=FULL)
    daemon.wait_workers(1)
    made = Filled(daemon, tmp_path / "gate")
    yield made
    made.gate.touch()
    for client in made.clients:
        client.close()


def test_the_first_refusal_is_immediate_and_the_second_is_held(filled: Filled) -> None:
    client, before = filled.client(), throttle(filled.daemon)
    assert before["held"] == before["paced"] == 0
    first = client.call()
    assert (first.status, first.problem) == (503, "overloaded")
    assert int(first.headers["Retry-After"]) >= 1
    assert throttle(filled.daemon)["paced"] == 0
    second = client.call()
    assert (second.status, second.problem) == (503, "overloaded")
    assert 1 <= int(second.headers["Retry-After"]) <= int(first.headers["Retry-After"])
    after = throttle(filled.daemon)
    assert (after["held"], after["paced"]) == (0, 1)
    assert Samples(filled.daemon)("penstock_refusals_paced_total") == 1
    filled.drain()
    assert client.call().status == 200


def test_a_new_connection_for_each_request_is_no_way_around(filled: Filled) -> None:
    for _ in range(3):
        client = filled.client()
        assert client.call().status == 503
        client.close()
    # The daemon learns of the end of a connection a moment after the client.
    eventually(lambda: filled.client().call().status == 503 and throttle(filled.daemon)["paced"], "one was held")


def test_a_client_that_leaves_while_it_is_held_is_let_go(filled: Filled) -> None:
    clients = [filled.client() for _ in range(20)]
    for client in clients:
        assert client.call().status == 503
    for _ in range(3):
        for client in clients:
            client.ask()
        for client in clients[10:]:
            client.reply()
        for client in clients[:10]:
            client.close()
    eventually(lambda: throttle(filled.daemon)["held"] == 0, "nobody is held")
    filled.drain()
    assert filled.client().call().status == 200


def test_a_crowd_that_comes_back_at_once_is_refused_no_faster_than_it_is_paced(filled: Filled) -> None:
    """Forty hammer; what they get in a while is bounded by the pace, not by how fast they ask."""
    stop, counts = threading.Event(), list[int]()

    def hammer() -> None:
        client, count = filled.client(), 0
        while not stop.is_set():
            assert client.call().status == 503
            count += 1
        counts.append(count)

    crowd = [threading.Thread(target=hammer) for _ in range(40)]
    for each in crowd:
        each.start()
    begun = filled.daemon.status()["uptime"]
    eventually(lambda: throttle(filled.daemon)["paced"] >= 200, "they were held often")
    stop.set()
    for each in crowd:
        each.join()
    elapsed = filled.daemon.status()["uptime"] - begun
    # The first refusal of each is free, and so is one each time that the second it was told has come.
    assert sum(counts) <= 40 * (2 + elapsed) + PACED * (elapsed + 1)
    filled.drain()
    assert filled.client().call().status == 200


def test_a_stop_answers_who_is_held(filled: Filled) -> None:
    clients = [filled.client() for _ in range(30)]
    for client in clients:
        assert client.call().status == 503
    for client in clients:
        client.ask()
    filled.daemon.send(signal.SIGTERM)
    for client in clients:
        reply = client.reply()
        assert (reply.status, reply.problem) in ((503, "unavailable"), (503, "overloaded"))
    filled.drain()
    assert filled.daemon.stop() == 0
