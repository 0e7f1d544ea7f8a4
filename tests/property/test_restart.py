"""Any history of deaths: the policy never spins, never waits too long, and gives up exactly when it says."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.core.restart import INTENSITY, JITTER, LONGEST, PERIOD, History, Policy

DEATHS = st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(-1.0, 5.0)), max_size=60)
"""Seconds since the death before, and of service."""

POLICIES = st.builds(Policy, st.floats(0.0, 3.0), st.integers(0, 8))


def times(deaths: list[tuple[float, float]]) -> list[tuple[float, float]]:
    now = 1000.0
    found = []
    for gap, served in deaths:
        now += gap
        found.append((now, served))
    return found


@given(DEATHS, POLICIES, st.integers())
def test_it_gives_up_exactly_after_more_failures_in_a_row_than_retries(
    deaths: list[tuple[float, float]], policy: Policy, seed: int
) -> None:
    history = History(Random(seed))
    in_a_row = 0
    for now, served in times(deaths):
        in_a_row = 0 if served >= policy.start_seconds else in_a_row + 1
        assert history.died(policy, now, served).give_up == (in_a_row > policy.start_retries)


@given(DEATHS, POLICIES, st.integers())
def test_no_period_sees_more_restarts_at_once_than_the_intensity(
    deaths: list[tuple[float, float]], policy: Policy, seed: int
) -> None:
    history = History(Random(seed))
    at_once: list[float] = []
    for now, served in times(deaths):
        verdict = history.died(policy, now, served)
        assert 0.0 <= verdict.pause <= LONGEST * (1.0 + JITTER)
        if not verdict.give_up and verdict.pause == 0.0:
            assert served >= policy.start_seconds
            at_once = [each for each in at_once if each > now - PERIOD] + [now]
            assert len(at_once) <= INTENSITY


@given(DEATHS, POLICIES, st.integers())
def test_the_same_seed_gives_the_same_verdicts(deaths: list[tuple[float, float]], policy: Policy, seed: int) -> None:
    one, other = History(Random(seed)), History(Random(seed))
    for now, served in times(deaths):
        assert one.died(policy, now, served) == other.died(policy, now, served)
