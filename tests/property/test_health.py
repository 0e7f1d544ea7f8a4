"""What must hold for every history of a loop, and every series of samples of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.core.health import INTERVAL, LONGEST, STUCK_AFTER, Change, Health, Pulse

pauses = st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60)
"""Seconds between two turns, or two looks."""


def moments(start: float, steps: list[float]) -> list[float]:
    found = [start]
    for step in steps:
        found.append(found[-1] + step)
    return found


@given(pauses, pauses)
def test_a_standstill_is_never_told_longer_than_it_is_and_told_once(turning: list[float], looking: list[float]) -> None:
    turns, pulse = moments(0.0, turning), Pulse(0.0)
    stuck = False
    for now in moments(0.0, looking)[1:]:
        last = max(turn for turn in turns if turn <= now)
        change = pulse.observe(last, now)
        assert -1e-9 <= pulse.standstill <= now - last + 1e-9
        if change is Change.STUCK:
            assert not stuck
            stuck = True
        elif change is Change.TURNS:
            assert stuck
            stuck = False
            assert pulse.longest >= STUCK_AFTER
        assert stuck == (pulse.health is Health.STUCK)


@given(st.lists(st.floats(0.0, STUCK_AFTER - 0.01), min_size=1, max_size=60), pauses)
def test_a_loop_that_turns_often_enough_is_never_stuck(turning: list[float], looking: list[float]) -> None:
    turns, pulse = moments(0.0, turning), Pulse(0.0)
    for now in moments(0.0, looking)[1:]:
        if now > turns[-1]:
            break
        pulse.observe(max(turn for turn in turns if turn <= now), now)
        assert pulse.health is not Health.STUCK


@given(st.floats(0.0, 0.5), st.lists(st.floats(INTERVAL, LONGEST), min_size=4, max_size=4))
def test_a_loop_that_does_not_turn_is_found_within_two_seconds_by_regular_looks(
    last: float, looking: list[float]
) -> None:
    pulse = Pulse(0.0)
    for now in moments(0.0, looking)[1:]:
        pulse.observe(last, now)
        if now - last >= STUCK_AFTER + LONGEST:
            assert pulse.health is Health.STUCK


@given(st.floats(0.0, 0.1), st.floats(0.0, 1e6))
def test_time_that_nobody_watched_does_not_count(age: float, away: float) -> None:
    pulse = Pulse(0.0)
    pulse.observe(INTERVAL - age, INTERVAL)
    pulse.observe(INTERVAL - age, INTERVAL + away)
    assert pulse.health is not Health.STUCK
