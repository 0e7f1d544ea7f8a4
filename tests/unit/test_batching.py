"""When a batch goes, and how large it is."""

from __future__ import annotations

import math

import pytest

from penstock.daemon.core.batching import Batching


def test_without_a_wait_it_goes_at_once() -> None:
    batching = Batching(8, 0.0)
    batching.arrives(5.0)
    batching.waits(5.0, 35.0, first=True)
    assert batching.goes_at(1, 5.0) == 5.0


def test_a_lone_request_waits_for_nobody() -> None:
    batching = Batching(8, 1.0)
    for now in (5.0, 105.0, 205.0):
        batching.arrives(now)
        batching.waits(now, now + 30.0, first=True)
        assert batching.goes_at(1, now) == now


def busy(now: float = 10.0, most: int = 100) -> Batching:
    """With a wait of a second, where a hundred come in a second."""
    batching = Batching(most, 1.0)
    for at in range(300):
        batching.arrives(now - (300 - at) / 100)
    return batching


def test_where_others_are_to_be_expected_it_waits_for_them() -> None:
    batching = busy()
    batching.waits(10.0, 40.0, first=True)
    assert batching.goes_at(1, 10.0) == 11.0
    assert batching.goes_at(99, 10.2) == 11.0
    assert batching.goes_at(100, 10.2) == 10.2


def test_it_never_waits_for_longer_than_it_may() -> None:
    batching = busy()
    batching.waits(10.0, 40.0, first=True)
    for step in range(100):
        now = 10.0 + step / 100
        batching.arrives(now)
        assert batching.goes_at(step + 1, now) <= 11.0
    assert batching.goes_at(50, 11.0) == 11.0


def test_where_they_cease_to_come_it_goes_before() -> None:
    """A hundred a second makes a hundred expected in a second, and the mean of two seconds forgets that slowly; with
    ten to be expected it takes less than the time that is left.
    """
    batching = Batching(100, 1.0)
    for at in range(10):
        batching.arrives(7.0 + at / 100)
    batching.waits(10.0, 40.0, first=True)
    assert 10.0 <= batching.goes_at(1, 10.0) < 11.0
    assert batching.goes_at(1, 10.5) == 10.5


def test_a_deadline_that_is_near_is_not_waited_for() -> None:
    batching = busy()
    batching.learn(1, 0.3, math.inf)
    batching.waits(10.0, 11.0, first=True)
    assert batching.goes_at(1, 10.0) == pytest.approx(10.4)
    batching.waits(10.1, 10.5, first=False)
    assert batching.goes_at(2, 10.1) == 10.1


def test_what_is_left_counts_by_itself() -> None:
    batching = busy()
    batching.waits(10.0, 10.2, first=True)
    batching.waits(12.0, 40.0, first=True)
    assert (batching.since, batching.soonest) == (12.0, 40.0)


@pytest.mark.parametrize(("start", "each"), [(0.01, 0.001), (0.0, 0.002), (0.05, 0.0)])
def test_what_a_batch_takes_is_learnt(start: float, each: float) -> None:
    batching = Batching(64, 0.0)
    for at in range(200):
        count = 1 + at * 7 % 32
        batching.learn(count, start + each * count, math.inf)
    for count in (1, 16, 32, 64):
        assert batching.seconds(count) == pytest.approx(start + each * count, rel=0.01)


def test_where_all_are_of_one_size_each_member_takes_its_part() -> None:
    batching = Batching(64, 0.0)
    for _ in range(50):
        batching.learn(8, 0.08, math.inf)
    assert batching.seconds(16) == pytest.approx(0.16)


def test_what_grows_quicker_with_fewer_is_noise() -> None:
    batching = Batching(64, 0.0)
    for at in range(100):
        batching.learn(1 + at % 10, 1.0 - at % 10 / 20, math.inf)
    assert batching.seconds(64) == pytest.approx(batching.seconds(1))


def test_it_is_smaller_after_one_that_was_too_slow_and_grows_again() -> None:
    batching = Batching(32, 0.0)
    batching.learn(32, 2.0, 1.0)
    assert batching.limit == 24
    batching.learn(24, 2.0, 1.0)
    assert batching.limit == 18
    batching.learn(17, 0.5, 1.0)
    assert batching.limit == 18  # that was no full one
    batching.learn(18, 0.5, 1.0)
    assert batching.limit == 19
    for _ in range(100):
        batching.learn(batching.limit, 2.0, 1.0)
    assert batching.limit == 1
    for _ in range(100):
        batching.learn(batching.limit, 0.5, 1.0)
    assert batching.limit == 32


def test_one_that_was_slow_and_small_says_nothing_of_the_size() -> None:
    """As a single request whose client gave it too little time."""
    batching = Batching(32, 0.0)
    batching.learn(1, 2.0, 1.0)
    batching.learn(31, 2.0, 1.0)
    assert batching.limit == 32
