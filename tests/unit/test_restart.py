"""The restart policy: its pauses, its limits, and when failures are forgotten."""

from __future__ import annotations

from random import Random

import pytest

from penstock.daemon.core.restart import FIRST, INTENSITY, JITTER, LONGEST, PERIOD, History, Policy, Verdict

POLICY = Policy(start_seconds=1.0, start_retries=5)


def test_one_that_had_served_is_started_again_at_once() -> None:
    assert History(Random(1)).died(POLICY, 100.0, 1.0) == Verdict()


@pytest.mark.parametrize("served", [-1.0, 0.0, 0.999])
def test_one_that_died_early_has_failed_to_start(served: float) -> None:
    history = History(Random(1))
    verdict = history.died(POLICY, 100.0, served)
    assert FIRST * (1 - JITTER) <= verdict.pause <= FIRST * (1 + JITTER)
    assert history.failures == 1


def test_pauses_double_up_to_a_limit() -> None:
    history = History(Random(1))
    patient = Policy(start_retries=100)
    pauses = [history.died(patient, 100.0, -1.0).pause for _ in range(40)]
    for step, pause in enumerate(pauses):
        middle = min(LONGEST, FIRST * 2.0**step)
        assert middle * (1 - JITTER) <= pause <= middle * (1 + JITTER)


def test_it_is_given_up_after_the_retries_as_supervisord_counts_them() -> None:
    history = History(Random(1))
    verdicts = [history.died(POLICY, 100.0, -1.0).give_up for _ in range(6)]
    assert verdicts == [False] * 5 + [True]


def test_no_retries_means_one_try() -> None:
    assert History(Random(1)).died(Policy(start_retries=0), 100.0, -1.0).give_up


def test_a_good_start_forgets_the_failures() -> None:
    history = History(Random(1))
    for _ in range(5):
        history.died(POLICY, 100.0, -1.0)
    history.died(POLICY, 200.0, 5.0)
    assert history.failures == 0
    assert not history.died(POLICY, 201.0, -1.0).give_up


def test_too_many_restarts_at_once_have_to_wait() -> None:
    history = History(Random(1))
    pauses = [history.died(POLICY, 100.0 + 0.1 * n, 2.0).pause for n in range(INTENSITY + 2)]
    assert pauses[:INTENSITY] == [0.0] * INTENSITY
    assert 0.0 < pauses[INTENSITY] < pauses[INTENSITY + 1]


def test_after_a_quiet_period_restarts_are_at_once_again() -> None:
    history = History(Random(1))
    for n in range(INTENSITY + 1):
        history.died(POLICY, 100.0 + n, 2.0)
    assert history.died(POLICY, 100.0 + INTENSITY + PERIOD, 2.0).pause == 0.0


def test_forgiving_begins_anew() -> None:
    history = History(Random(1))
    for _ in range(5):
        history.died(POLICY, 100.0, -1.0)
    for _ in range(INTENSITY):
        history.died(POLICY, 100.0, 2.0)
    history.reset()
    assert history.died(POLICY, 100.0, 2.0).pause == 0.0
    assert not history.died(POLICY, 100.0, -1.0).give_up
