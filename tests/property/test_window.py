"""Properties of the latency counts: what they say of values is true of the values themselves."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.core.window import BOUNDS, SPAN, Histogram, Window, bucket, merged, quantile, tally
from penstock.daemon.telemetry.metrics import BUCKETS

seconds = st.floats(0.0, 2000.0, allow_nan=False)


def test_the_bounds_rise_by_an_eighth_and_contain_those_that_prometheus_gets() -> None:
    assert all(1.0 < high / low < 1.15 for low, high in itertools.pairwise(BOUNDS))
    assert set(BUCKETS) <= set(BOUNDS)


@given(st.lists(seconds, min_size=1), st.floats(0.0, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_value_that_it_stands_for(values: list[float], part: float) -> None:
    found = quantile(Counter(map(bucket, values)), part)
    exact = sorted(values)[max(0, math.ceil(part * len(values) - 1e-9) - 1)]
    assert found is not None
    at = bucket(exact)
    assert (BOUNDS[at - 1] if at else 0.0) <= found <= BOUNDS[min(at, len(BOUNDS) - 1)]


def test_nothing_has_no_quantile() -> None:
    assert quantile({}, 0.5) is None


@given(st.lists(seconds))
def test_a_histogram_counts_what_is_at_most_a_bound(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    exact = [sum(value <= bound for value in values) for bound in BUCKETS]
    assert histogram.cumulative(BUCKETS) == [*exact, len(values)]
    assert histogram.seconds == sum(values)


@given(st.lists(st.tuples(st.integers(0, 3), seconds)), st.integers(1, SPAN))
def test_a_window_has_the_complete_turns_and_no_others(steps: list[tuple[int, float]], span: int) -> None:
    window, turn, seen = Window(), 0, list[tuple[int, float]]()
    for later, value in steps:
        turn += later
        seen.append((turn, value))
        window.observe(bucket(value), turn)
    expected = Counter(bucket(value) for at, value in seen if turn - span <= at < turn)
    assert window.counts(turn, span) == expected


@given(st.lists(seconds))
def test_a_tally_is_the_count_of_the_buckets(values: list[float]) -> None:
    expected = Counter(map(bucket, values))
    assert tally(values) == expected


@given(st.sampled_from(BOUNDS))
def test_a_bound_belongs_to_the_bucket_that_it_ends(bound: float) -> None:
    assert tally([bound, math.nextafter(bound, math.inf)]) == {bucket(bound): 1, bucket(bound) + 1: 1}


@given(st.lists(st.lists(seconds)))
def test_many_added_at_once_count_as_if_one_by_one(parts: list[list[float]]) -> None:
    one_by_one, at_once = Histogram(), Histogram()
    single, many = Window(), Window()
    for turn, values in enumerate(parts):
        for value in values:
            single.observe(one_by_one.observe(value), turn)
        counts = tally(values)
        at_once.add(counts, sum(values))
        many.add(counts, turn)
    assert at_once.counts == one_by_one.counts
    assert math.isclose(at_once.seconds, one_by_one.seconds)
    assert many.counts(len(parts)) == single.counts(len(parts))


@given(st.lists(st.dictionaries(st.integers(0, 9), st.integers(1, 9))))
def test_merged_counts_are_sums(parts: list[dict[int, int]]) -> None:
    assert merged(parts) == sum((Counter(part) for part in parts), Counter())


@given(seconds)
def test_a_bucket_holds_what_is_at_most_its_bound(value: float) -> None:
    at = bucket(value)
    assert at == bisect_left(BOUNDS, value)
    assert at == len(BOUNDS) or value <= BOUNDS[at]
    assert at == 0 or value > BOUNDS[at - 1]
