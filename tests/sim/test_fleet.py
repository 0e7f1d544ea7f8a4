"""The whole fleet with its engine in virtual time, on workers that do as they are told."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import pytest

from penstock.daemon.core.lifecycle import SEATS, SeatState
from penstock.daemon.core.refusals import Refusal
from penstock.daemon.engine.tickets import Ticket
from penstock.daemon.fleet.rollout import ReloadFailedError
from penstock.ipc.messages import BrokenModule
from tests.fix_backend import Habits, Theatre, configuration, play, until

BOTH = {"p:0": "RUNNING", "p:1": "RUNNING"}


async def running(config: Any = None, dsn: str | None = None) -> Theatre:
    theatre = Theatre(config or configuration(), dsn)
    theatre.start()
    await until(lambda: set(theatre.states().values()) == {"RUNNING"}, "all run")
    return theatre


def outcome(ticket: Any) -> str:
    """``ok``, or the name of the problem."""
    assert ticket.outcome is not None
    return ticket.outcome.problem.value if isinstance(ticket.outcome, Refusal) else "ok"


def ended(ticket: Ticket) -> bool:
    return ticket.outcome is not None


def test_workers_come_up_answer_and_end() -> None:
    async def scenario() -> None:
        theatre = await running()
        assert theatre.governor.first == 1
        tickets = [theatre.submit() for _ in range(50)]
        await until(lambda: all(each is not None and each.outcome is not None for each in tickets), "all are answered")
        assert {outcome(each) for each in tickets} == {"ok"}
        assert sum(view.answered for view in theatre.fleet.workers()) == 50
        await theatre.end()
        assert theatre.states() == {"p:0": "STOPPED", "p:1": "STOPPED"}

    play(scenario)


def test_a_worker_that_never_comes_up_is_given_up_after_its_retries() -> None:
    async def scenario() -> None:
        theatre = Theatre(configuration(supervision__start_retries=3))
        theatre.backend.habits = Habits(dies_at_start=True)
        theatre.start()
        await until(lambda: set(theatre.states().values()) == {"FATAL"}, "they are given up")
        assert len(theatre.backend.made) == 2 * (3 + 1)
        assert theatre.submit() is None
        assert not theatre.fleet.active
        theatre.backend.habits = Habits()
        theatre.fleet.start_worker("p:0")
        await until(lambda: theatre.states() == {"p:0": "RUNNING", "p:1": "FATAL"}, "one runs")
        await theatre.end()

    play(scenario)


def test_a_configuration_that_no_worker_can_serve_with_is_told_once_and_not_tried_again() -> None:
    async def scenario() -> None:
        theatre = Theatre(configuration(pools__p__workers=1))
        theatre.backend.habits = Habits(failure="there is no such pool", permanent=True)
        theatre.start()
        await until(lambda: theatre.states() == {"p:0": "FATAL"}, "it is given up")
        assert theatre.governor.configuration_errors == ["there is no such pool"]
        assert len(theatre.backend.made) == 1
        await theatre.end()

    play(scenario)


def test_a_host_that_is_short_of_something_is_no_failure_of_the_worker() -> None:
    async def scenario() -> None:
        theatre = Theatre(configuration(supervision__start_retries=0))
        theatre.backend.shortage = "no process could be made"
        theatre.start()
        await asyncio.sleep(100.0)
        assert theatre.states() == {"p:0": "BACKOFF", "p:1": "BACKOFF"}
        theatre.backend.shortage = ""
        await until(lambda: theatre.states() == BOTH, "they come up")
        await theatre.end()

    play(scenario)


def test_a_worker_that_hangs_at_its_start_is_killed_in_time() -> None:
    async def scenario() -> None:
        theatre = Theatre(configuration(pools__p__workers=1, supervision__start_timeout=30.0))
        theatre.backend.habits = Habits(comes_up=False)
        theatre.start()
        await asyncio.sleep(29.0)
        first = theatre.puppet("p:0")
        assert not first.is_dead
        await asyncio.sleep(2.0)
        assert first.is_dead
        view = theatre.fleet.worker("p:0")
        assert view is not None
        assert "not ready after 30 s" in view.reason
        await theatre.end()

    play(scenario)


def test_a_replacement_is_ready_before_the_old_one_drains() -> None:
    async def scenario() -> None:
        theatre = await running(configuration(pools__p__workers=1))
        old = theatre.puppet("p:0")
        ticket = theatre.submit()
        assert ticket is not None
        theatre.fleet.restart("p:0")
        while theatre.puppet("p:0") is old:
            assert not old.is_told_to_stop
            assert not theatre.engine.ready, "some worker takes calls all the time"
            await asyncio.sleep(0.01)
        await until(lambda: old.is_closed, "the old one is gone")
        assert outcome(ticket) == "ok"
        assert theatre.journal.restarts == {("p:0", "requested"): 1}
        await theatre.end()

    play(scenario)


def test_a_worker_that_keeps_its_calls_is_cut_off_when_its_time_to_drain_is_over() -> None:
    async def scenario() -> None:
        theatre = await running(configuration(pools__p__workers=1, supervision__stop_timeout=5.0))
        theatre.puppet("p:0").habits = Habits(call_time=None)
        ticket = theatre.submit(timeout=1000.0)
        assert ticket is not None
        theatre.fleet.stop_worker("p:0")
        await asyncio.sleep(4.9)
        assert not ended(ticket)
        await until(lambda: theatre.states() == {"p:0": "STOPPED"}, "it has stopped")
        assert outcome(ticket) == "unavailable"
        await theatre.end()

    play(scenario)


def test_a_worker_that_drains_is_stopped_when_a_stall_takes_its_last_call_away() -> None:
    async def scenario() -> None:
        theatre = await running(configuration(supervision__stop_timeout=50.0))
        one, two = theatre.puppet("p:0"), theatre.puppet("p:1")
        theatre.backend.unreachable = {one, two}
        ticket = theatre.submit()
        assert ticket is not None
        assert ticket.worker is not None
        name = ticket.worker.name
        theatre.backend.unreachable = {theatre.puppet(name)}
        theatre.fleet.stop_worker(name)
        await until(lambda: theatre.states()[name] == "STOPPED", "it has stopped", patience=2.0)
        assert outcome(ticket) == "ok", "the other one has done it"
        await theatre.end()

    play(scenario)


def test_who_does_not_end_is_killed_and_a_stop_is_followed_by_the_start_that_was_asked_for() -> None:
    async def scenario() -> None:
        theatre = await running(configuration(pools__p__workers=1))
        old = theatre.puppet("p:0")
        old.habits = Habits(stops=False)
        theatre.fleet.stop_worker("p:0")
        theatre.fleet.start_when_stopped("p:0")
        await until(lambda: theatre.states() == {"p:0": "RUNNING"}, "it runs again")
        assert old.is_closed
        assert theatre.puppet("p:0").identity.generation == 2
        await theatre.end()

    play(scenario)


def test_a_call_that_does_not_yield_costs_its_worker_its_life() -> None:
    async def scenario() -> None:
        theatre = await running(configuration(pools__p__workers=1, agents__hard_timeout_grace=2.0))
        old = theatre.puppet("p:0")
        old.habits = Habits(call_time=None)
        ticket = theatre.submit(timeout=1.0)
        await until(lambda: theatre.puppet("p:0") is not old and theatre.states() == {"p:0": "RUNNING"}, "another")
        assert outcome(ticket) == "deadline-exceeded"
        assert theatre.journal.restarts == {("p:0", "deadline"): 1}
        await theatre.end()

    play(scenario)


# Reloads


def test_a_reload_brings_all_to_the_new_code_and_forgets_and_makes_seats() -> None:
    async def scenario() -> None:
        theatre = await running(configuration(pools__p__workers=3))
        theatre.backend.habits = Habits(code="two")
        await theatre.reload(configuration(pools__p__workers=2, pools__q__workers=2, pools__q__agents=["q*"]))
        await until(lambda: theatre.states() == {**BOTH, "q:0": "RUNNING", "q:1": "RUNNING"}, "all run")
        assert {view.code for view in theatre.fleet.workers()} == {"two"}
        assert theatre.backend.forgotten == ["p:2"]
        assert [each.settled for each in theatre.backend.templates] == [False, True]
        await theatre.end()

    play(scenario)


@pytest.mark.parametrize(
    "habits",
    [
        Habits(dies_at_start=True),
        Habits(failure="a fault", permanent=True),
        Habits(broken=[BrokenModule("m", "SyntaxError")]),
    ],
    ids=["dies", "fails", "broken"],
)
def test_code_that_does_not_work_changes_nothing(habits: Habits) -> None:
    async def scenario() -> None:
        theatre = await running()
        before = [view.pid for view in theatre.fleet.workers()]
        theatre.backend.habits = habits
        with pytest.raises(ReloadFailedError, match="did not come up"):
            await theatre.reload(configuration())
        assert [view.pid for view in theatre.fleet.workers()] == before
        assert not theatre.fleet.reloading
        await until(lambda: len(theatre.backend.living) == 2, "the proof is gone")
        await theatre.end()

    play(scenario)


def test_a_proof_that_is_broken_off_leaves_nothing() -> None:
    async def scenario() -> None:
        theatre = await running()
        theatre.backend.habits = Habits(comes_up=False)
        reload = asyncio.ensure_future(theatre.fleet.reload(configuration()))
        await asyncio.sleep(5.0)
        reload.cancel()
        await asyncio.wait({reload})
        assert not theatre.fleet.reloading
        await until(lambda: len(theatre.backend.living) == 2, "the proof is gone")
        await theatre.end()

    play(scenario)


def test_a_seat_changes_its_state_by_the_table_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Also one that a reload makes for a worker that has proven itself."""
    caplog.set_level(logging.DEBUG, "penstock.fleet")

    async def scenario() -> None:
        theatre = await running()
        await theatre.reload(configuration(pools__q__workers=1, pools__q__agents=["q*"]))
        theatre.puppet("p:0").die(1)
        theatre.fleet.stop_worker("p:1")
        await theatre.end()

    play(scenario)
    moves = [record.args for record in caplog.records if record.msg == "%s: %s -> %s"]
    allowed = {(state, cell[0]) for state, row in SEATS.items() for cell in row.values() if cell is not None}
    states: dict[Any, str] = {}
    for move in moves:
        assert isinstance(move, tuple)
        name, before, after = move
        assert states.get(name, "STOPPED") == before
        assert (SeatState(str(before)), SeatState(str(after))) in allowed
        states[name] = str(after)
    assert states == {"p:0": "STOPPED", "p:1": "STOPPED", "q:0": "STOPPED"}


def test_a_seat_that_a_reload_takes_away_is_not_started_again_by_who_waits_for_its_stop() -> None:
    async def scenario() -> None:
        theatre = await running()
        await theatre.fleet.reload(configuration(pools__p__workers=1))
        assert theatre.states()["p:1"] == "STOPPING"
        theatre.fleet.start_when_stopped("p:1")
        await asyncio.sleep(5.0)
        assert theatre.states() == {"p:0": "RUNNING"}
        assert len(theatre.backend.living) == 1
        await theatre.end()

    play(scenario)


# Deaths


async def _eventful(fatal: int) -> int:
    """Calls, a restart, a reload and a stop, with the death of a worker before this event; how many events."""
    theatre = Theatre(configuration(pools__p__concurrency=2))
    theatre.backend.fatal_event = fatal
    theatre.start()
    await until(lambda: theatre.submit() is not None, "calls are taken")
    for _ in range(9):
        theatre.submit()
        await asyncio.sleep(0.004)
    theatre.fleet.restart("p:0")
    for _ in range(20):
        theatre.submit()
        theatre.check()
        await asyncio.sleep(0.01)
    try:
        await theatre.reload(configuration(pools__p__concurrency=2))
    except ReloadFailedError:
        assert fatal >= 0
    await until(lambda: all(ended(ticket) for ticket in theatre.tickets), "all are answered")
    assert {outcome(ticket) for ticket in theatre.tickets} == {"ok"}, "an idempotent call survives one death"
    await until(lambda: theatre.states() == BOTH, "all run")
    await theatre.end()
    return theatre.backend.events


def test_whichever_event_a_worker_dies_before_all_calls_are_answered_and_all_come_back() -> None:
    count = 0

    async def undisturbed() -> None:
        nonlocal count
        count = await _eventful(-1)

    play(undisturbed)
    assert count > 60
    for number in range(1, count + 1):

        async def disturbed(number: int = number) -> None:
            await _eventful(number)

        play(disturbed)


def test_what_had_not_begun_is_done_by_another() -> None:
    async def scenario() -> None:
        theatre = await running()
        ticket = theatre.submit()
        assert ticket is not None
        assert ticket.worker is not None
        theatre.puppet(ticket.worker.name).die()
        await until(partial(ended, ticket), "it is answered")
        assert outcome(ticket) == "ok"
        await theatre.end()

    play(scenario)


def test_what_had_begun_is_not_done_again_where_that_may_do_harm() -> None:
    async def scenario() -> None:
        theatre = Theatre(configuration(database__dsn="postgresql://nowhere"), "postgresql://nowhere")
        theatre.backend.kinds = ("async",)
        theatre.start()
        await until(lambda: theatre.states() == BOTH, "all run")
        for agent, expected in (("p-a", "ok"), ("p-async", "worker-died")):
            ticket = theatre.submit(agent)
            assert ticket is not None
            assert ticket.worker is not None
            await asyncio.sleep(0.003)
            theatre.puppet(ticket.worker.name).die()
            await until(partial(ended, ticket), "it is answered")
            assert outcome(ticket) == expected
            await until(lambda: theatre.states() == BOTH, "all run")
        await theatre.end()

    play(scenario)


# Shutdown


def test_a_shutdown_kills_what_does_not_end_in_time() -> None:
    async def scenario() -> None:
        theatre = await running()
        for name in BOTH:
            theatre.puppet(name).habits = Habits(call_time=None)
        ticket = theatre.submit(timeout=1000.0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await theatre.end()
        assert 5.0 <= loop.time() - began < 5.2
        assert outcome(ticket) == "unavailable"

    play(scenario)


# Database connections


def test_connections_stay_within_the_budget_and_those_of_the_dead_count_until_they_are_closed() -> None:
    async def scenario() -> None:
        config = configuration(database__dsn="postgresql://nowhere", database__max_connections=9)
        theatre = Theatre(config, "postgresql://nowhere")
        theatre.backend.kinds = ("async", "sync")
        theatre.start()
        await until(lambda: theatre.states() == BOTH, "all run")
        await asyncio.sleep(1.0)
        assert theatre.fleet.granted == 8
        dead, other = theatre.puppet("p:0"), theatre.puppet("p:1")
        assert dead.grants == other.grants == {"async": 2, "sync": 2}
        dead.used = [4711]
        dead.die()
        await asyncio.sleep(0.5)
        assert theatre.ender.ended == [("penstock p:0/1", [4711])]
        held = sum(sum(each.grants.values()) for each in theatre.backend.made)
        assert held <= 8, "the dead one's may still be open"
        await until(lambda: theatre.puppet("p:0").grants == {"async": 2, "sync": 2}, "its successor has them")
        await theatre.end()

    play(scenario)
