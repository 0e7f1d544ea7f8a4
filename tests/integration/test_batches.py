"""Agents that get batches, over real connections: who goes together, and that each stands for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fix_daemon import PATIENCE, PATIENT, Daemon, DaemonFactory, Reply, eventually
from tests.fix_metrics import Samples

BOTH = pytest.mark.parametrize("agent", ["gathered", "gathered_sync"])
AGAIN = pytest.mark.parametrize("agent", ["again", "again_sync"])


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    """With one slot, so that what is called while that is taken goes together."""
    made = daemons(
        "batched",
        "basic",
        settings={
            "pools.default.workers": 1,
            "pools.default.concurrency": 1,
            "supervision.start_seconds": 0.1,
            "agents.hard_timeout_grace": 1.0,
        },
    )
    made.wait_workers(1)
    return made


@pytest.fixture(autouse=True)
def at_rest(daemon: Daemon) -> Iterator[None]:
    daemon.wait_workers(1)
    yield
    daemon.wait_workers(1)
    eventually(lambda: daemon.in_flight() == 0, "nothing is left running")


Call = tuple[Any, dict[str, str]]


class Gate:
    """Takes the only slot until it is opened."""

    def __init__(self, daemon: Daemon, path: Path) -> None:
        self._daemon = daemon
        self._path = path
        self._held = daemon.begin("hold", str(path), PATIENT)
        eventually(lambda: daemon.in_flight() == 1, "the slot is taken")
        self._waiting = 0

    def begin(self, agent: str, value: Any, **headers: str) -> Future[Reply]:
        """Call an agent; done when the call waits."""
        reply = self._daemon.begin(agent, value, {**PATIENT, **headers})
        self._waiting += 1
        eventually(lambda: waiting(self._daemon) == self._waiting, "the call waits")
        return reply

    def open(self) -> None:
        self._path.touch()
        assert self._held.result(PATIENCE).status == 200


def is_waiting(daemon: Daemon, count: int) -> bool:
    return waiting(daemon) == count


def waiting(daemon: Daemon) -> int:
    return int(daemon.status()["queue"]["requests"])


@pytest.fixture
def gate(daemon: Daemon, tmp_path: Path) -> Iterator[Gate]:
    made = Gate(daemon, tmp_path / "open")
    yield made
    made.open()


Together = Callable[..., list[Reply]]


@pytest.fixture
def together(gate: Gate) -> Together:
    """Has an agent called with each value, all in one batch."""

    def call(agent: str, *values: Any) -> list[Reply]:
        replies = [gate.begin(agent, value) for value in values]
        gate.open()
        return [reply.result(PATIENCE) for reply in replies]

    return call


def order(do: str = "answer", number: float = 0) -> dict[str, Any]:
    return {"do": do, "number": number}


@BOTH
def test_what_waits_goes_together_in_the_order_of_the_queue(together: Together, agent: str) -> None:
    replies = together(agent, *(order(number=number) for number in range(5)))
    assert [reply.status for reply in replies] == [200] * 5
    assert [(reply.json["size"], reply.json["at"], reply.json["number"]) for reply in replies] == [
        (5, at, at) for at in range(5)
    ]


def test_the_urgent_come_first_in_a_batch(gate: Gate) -> None:
    late = gate.begin("gathered", order(), Priority="u=6")
    soon = gate.begin("gathered", order(), Priority="u=1")
    gate.open()
    assert [reply.result(PATIENCE).json["at"] for reply in (late, soon)] == [1, 0]


def test_no_batch_has_more_than_the_agent_allows(together: Together) -> None:
    replies = together("gathered", *(order(number=number) for number in range(11)))
    assert sorted(reply.json["size"] for reply in replies) == [3] * 3 + [8] * 8


@BOTH
def test_one_call_is_a_batch_of_one(daemon: Daemon, agent: str) -> None:
    assert daemon.call(agent, order()).json["size"] == 1


@BOTH
def test_a_bad_body_is_answered_by_itself(together: Together, agent: str) -> None:
    good, bad, worse, other = together(agent, order(), {"do": 3}, b"{", order())
    assert (bad.status, bad.problem) == (422, "invalid-body")
    assert (worse.status, worse.problem) == (400, "malformed-body")
    assert (good.json["size"], other.json["size"]) == (2, 2)


def test_where_all_bodies_are_bad_the_function_is_not_entered(together: Together) -> None:
    assert [reply.status for reply in together("gathered", {"do": 1}, {"do": 2})] == [422, 422]


@BOTH
def test_an_exception_for_a_result_fails_its_request_alone(daemon: Daemon, together: Together, agent: str) -> None:
    good, failed, odd = together(agent, order(), order("exception", 77), order("object"))
    assert (good.status, good.json["size"]) == (200, 3)
    assert [(reply.status, reply.problem) for reply in (failed, odd)] == [(500, "agent-error")] * 2
    assert "number 77 is no good" in daemon.log


def test_a_result_may_be_a_response(together: Together) -> None:
    plain, made = together("gathered", order(), order("response"))
    assert plain.status == 200
    assert (made.status, made.headers["X-Size"], made.body) == (201, "2", b"made")


@BOTH
@pytest.mark.parametrize(
    ("do", "said"), [("short", "got 2 bodies and has returned 1 results"), ("mapping", "has returned dict")]
)
def test_other_results_than_one_for_each_fail_all(
    daemon: Daemon, together: Together, agent: str, do: str, said: str
) -> None:
    replies = together(agent, order(), order(do))
    assert [(reply.status, reply.problem) for reply in replies] == [(500, "agent-error")] * 2
    assert said in daemon.log


@BOTH
def test_a_function_that_raises_fails_all_if_it_must_not_run_again(together: Together, agent: str) -> None:
    assert [reply.problem for reply in together(agent, order(), order("raise"), order())] == ["agent-error"] * 3


@AGAIN
def test_an_idempotent_one_runs_again_by_halves(together: Together, agent: str) -> None:
    replies = together(agent, *(order("raise" if at == 2 else "answer") for at in range(7)))
    assert [reply.status for reply in replies] == [200, 200, 500, 200, 200, 200, 200]
    assert [reply.json.get("size") for reply in replies] == [1, 1, None, 4, 4, 4, 4]


@AGAIN
def test_after_a_death_each_is_tried_by_itself(daemon: Daemon, together: Together, agent: str) -> None:
    """Two deaths find the one that kills, and the others live."""
    replies = together(agent, *(order("die" if at == 1 else "answer") for at in range(4)))
    assert [reply.status for reply in replies] == [200, 422, 200, 200]
    assert replies[1].problem == "poison-request"
    assert [reply.json["size"] for reply in replies if reply.status == 200] == [1, 1, 1]


@BOTH
def test_after_a_death_the_others_are_told(together: Together, agent: str) -> None:
    assert [reply.problem for reply in together(agent, order(), order("die"))] == ["worker-died"] * 2


@BOTH
def test_a_deadline_is_its_requests_own(daemon: Daemon, gate: Gate, agent: str) -> None:
    """The one that is late is told at once, and the worker lives for the other."""
    pid = daemon.workers()[0]["pid"]
    slow = gate.begin(agent, order("sleep", 4))
    late = gate.begin(agent, order(), **{"Request-Timeout": "2"})
    gate.open()
    assert (late.result(PATIENCE).status, late.result().problem) == (504, "deadline-exceeded")
    assert slow.result(PATIENCE).status == 200
    assert daemon.workers()[0]["pid"] == pid


def test_who_goes_away_is_told_to_the_function_and_the_others_go_on(daemon: Daemon, gate: Gate, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    first = gate.begin("until_one_leaves", str(mark))
    leaving = daemon.hold("until_one_leaves", str(mark))
    eventually(lambda: waiting(daemon) == 2, "both wait")
    gate.open()
    eventually(lambda: daemon.in_flight() == 2, "both are at work")
    leaving.close()
    assert first.result(PATIENCE).json is False
    assert mark.read_text() == "[False, True]"


def test_a_batch_for_which_nobody_waits_is_cancelled(daemon: Daemon, gate: Gate, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    leaving = []
    for at in range(2):
        leaving.append(daemon.hold("watched", str(mark)))
        eventually(partial(is_waiting, daemon, at + 1), "it waits")
    gate.open()
    eventually(lambda: daemon.in_flight() == 2, "both are at work")
    for each in leaving:
        each.close()
    eventually(lambda: daemon.in_flight() == 0, "the call was cancelled")
    assert mark.read_text() == "[True, True]"


def test_each_has_its_own_context(daemon: Daemon, gate: Gate) -> None:
    replies = [gate.begin("anything", at, **{"X-Request-Id": f"mine-{at}"}) for at in range(3)]
    gate.open()
    assert [reply.result(PATIENCE).json for reply in replies] == [[at, f"mine-{at}", "127.0.0.1", 3] for at in range(3)]


def test_bodies_as_bytes(together: Together) -> None:
    assert [reply.body for reply in together("shouted", b"a", b"", b"\xffc")] == [b"A", b"", b"\xffC"]


def test_a_lone_request_waits_for_nobody(daemon: Daemon) -> None:
    """Its agent's batches may wait for 20 s."""
    assert daemon.call("patient", order(), PATIENT).json["size"] == 1


def test_a_batch_that_is_full_goes_at_once(daemon: Daemon) -> None:
    """What comes quickly is gathered, and none of it waits for the 20 s that it may."""
    replies = daemon.calls("patient", [order(number=number) for number in range(40)], PATIENT, at_once=8)
    assert {reply.status for reply in replies} == {200}
    assert max(reply.json["size"] for reply in replies) == 4


@pytest.fixture(scope="module")
def database(daemons: DaemonFactory) -> Daemon:
    made = daemons(
        "batched",
        "stored",
        settings={"pools.default.workers": 1, "pools.default.concurrency": 4, "database.dsn": "",
                  "database.max_connections": 3},
    )  # fmt: skip
    made.wait_workers(1)
    return made


def test_a_batch_has_one_connection(database: Daemon) -> None:
    """There is only one for async agents, so that the others wait, and go together."""
    first = database.begin("ask", "SELECT pg_sleep(1)")
    eventually(lambda: database.in_flight() == 1, "the connection is taken")
    replies = [database.begin("numbers", number, PATIENT) for number in range(5)]
    eventually(lambda: is_waiting(database, 5), "they wait")
    found = [reply.result(PATIENCE).json for reply in replies]
    assert first.result(PATIENCE).status == 200
    assert [number for number, _, _ in found] == list(range(5))
    assert {(backend, size) for _, backend, size in found} == {(found[0][1], 5)}


def test_a_half_that_fails_is_rolled_back(database: Daemon) -> None:
    """Of those that run again by halves each has a transaction of its own."""
    assert database.call("ask_sync", "CREATE TABLE kept (value int)").status == 200
    first = database.begin("ask_sync", "SELECT pg_sleep(1)")
    eventually(lambda: database.in_flight() == 1, "the connection is taken")
    replies = [database.begin("stored", number, PATIENT) for number in (1, -1, 0, 1)]
    eventually(lambda: is_waiting(database, 4), "they wait")
    assert [reply.result(PATIENCE).status for reply in replies] == [200, 200, 500, 200]
    assert first.result(PATIENCE).status == 200
    assert sorted(database.call("ask_sync", "SELECT value FROM kept").json) == [[-1], [1], [1]]


def test_max_concurrency_counts_batches(database: Daemon) -> None:
    """One at a time, while there are four slots; what comes meanwhile goes with the next."""
    replies = database.calls("one_by_one", [order()] * 24, PATIENT, at_once=24)
    assert {reply.status for reply in replies} == {200}
    assert max(reply.json["size"] for reply in replies) == 8


def test_batches_are_counted(daemon: Daemon, together: Together) -> None:
    def seen() -> tuple[float, ...]:
        samples = Samples(daemon)
        return (
            samples("penstock_batch_size_count", agent="gathered"),
            samples("penstock_batch_size_sum", agent="gathered"),
            samples("penstock_batch_size_bucket", agent="gathered", le="2.0"),
            samples("penstock_batch_size_bucket", agent="gathered", le="4.0"),
            samples("penstock_batch_wait_seconds_count", agent="gathered"),
        )

    before = seen()
    together("gathered", *[order()] * 3)
    assert [after - was for was, after in zip(before, seen(), strict=True)] == [1, 3, 0, 1, 1]
    assert Samples(daemon)("penstock_batch_wait_seconds_sum", agent="gathered") > 0


def test_what_is_said_of_a_batched_agent(daemon: Daemon) -> None:
    found = daemon.get("/v1/agents/waiting").json
    assert (found["batch"], found["batch_wait"]) == (4, 0.5)
    assert daemon.get("/v1/agents/echo").json["batch"] == 0
    call = daemon.get("/openapi.json").json["paths"]["/v1/agents/waiting"]["post"]
    assert "in batches of up to 4" in call["description"]
    (media,) = call["requestBody"]["content"].values()
    assert media["schema"]["$ref"].endswith("Order")
