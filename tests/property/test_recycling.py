"""Properties of recycling: who is due, and that not all are at once."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.core.recycling import RETRY, SETTLING, SPREAD, Limits, Usage, exceeded


@given(st.integers(1, 10_000_000), st.integers(1, 64))
def test_workers_are_due_within_a_tenth_of_the_limit_and_the_first_at_it(most: int, workers: int) -> None:
    at = [Limits(most, 0).requests(index, workers) for index in range(workers)]
    assert at[0] == most
    assert all(most * (1 - SPREAD) <= each <= most and each >= 1 for each in at)
    if most >= 10 * workers / SPREAD:
        assert len(set(at)) == workers


@given(st.integers(0, 100), st.integers(0, 10**9), st.floats(0, 1e6), st.integers(0, 10**12), st.floats(0, 100))
def test_without_limits_nobody_is_due(index: int, answered: int, age: float, rss: int, tried: float) -> None:
    assert exceeded(Limits(0, 0), 4, Usage(index, answered, age, rss, tried)) == ""


@given(st.integers(1, 1000), st.integers(0, 2000), st.integers(1, 10**9), st.none() | st.integers(0, 2 * 10**9))
def test_who_is_over_a_limit_is_due_and_who_is_not_is_not(most: int, answered: int, size: int, rss: int | None) -> None:
    cause = exceeded(Limits(most, size), 1, Usage(0, answered, SETTLING, rss, math.inf))
    if answered >= most:
        assert cause == "max_requests"
    else:
        assert cause == ("max_rss" if rss is not None and rss > size else "")


def test_a_young_worker_and_one_whose_replacement_was_just_tried_are_left_alone() -> None:
    limits = Limits(10, 10)
    assert exceeded(Limits(0, 10), 1, Usage(0, 0, SETTLING - 0.1, 11, math.inf)) == ""
    assert exceeded(limits, 1, Usage(0, 99, SETTLING, 99, RETRY - 0.1)) == ""
    assert exceeded(limits, 1, Usage(0, 99, SETTLING, 99, RETRY)) == "max_requests"
