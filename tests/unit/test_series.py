"""The load generator's schedule and its arithmetic."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.connection import RESET
from bench.series import Report, Series, jain, pack, percentile, unpack
from bench.spec import arrivals
from bench.tables import milliseconds, others

# Arithmetic


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, part) for part in (0.5, 0.9, 0.99, 0.999, 1.0)] == [50.0, 90.0, 99.0, 100.0, 100.0]
    assert percentile([7.0], 0.01) == 7.0
    assert math.isnan(percentile([], 0.5))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.floats(0.001, 1.0))
def test_percentile_is_the_smallest_that_enough_do_not_exceed(values: list[float], part: float) -> None:
    found = percentile(values, part)
    needed = part * len(values) - 1e-6
    assert found in values
    assert sum(value <= found for value in values) >= needed
    assert sum(value < found for value in values) < needed + 1 + 1e-6


def test_jain() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert math.isnan(jain([0.0, 0.0]))


# Schedule


def test_even_arrivals_are_evenly_spaced_in_each_step() -> None:
    moments = list(arrivals([(1.0, 4.0), (0.5, 0.0), (1.0, 2.0)], True, random.Random(1)))
    assert moments == [0.0, 0.25, 0.5, 0.75, 1.5, 2.0]


def test_poisson_arrivals_have_the_rate_and_the_spread_of_chance() -> None:
    moments = list(arrivals([(50.0, 100.0), (50.0, 400.0)], False, random.Random(7)))
    first = [at for at in moments if at < 50.0]
    second = [at for at in moments if at >= 50.0]
    assert moments == sorted(moments)
    assert moments[-1] < 100.0
    assert len(first) == pytest.approx(5000, rel=0.06)
    assert len(second) == pytest.approx(20000, rel=0.03)
    gaps = [after - before for before, after in pairwise(first)]
    # An exponential distribution's standard deviation is its mean; that of even spacing would be 0.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    def made(seed: int) -> list[float]:
        return list(arrivals([(2.0, 50.0)], False, random.Random(seed)))

    assert made(3) == made(3)
    assert made(3) != made(4)


# Accounting


def _series() -> Series:
    series = Series(["200", "503 overloaded", RESET], ["127.0.0.1", "127.0.0.2", "127.0.0.3"])
    series.add(0.0, 0.1, 0, 0, 0)
    series.add(0.5, 0.6, 0, 1, 0)
    series.add(1.0, 0.01, 1, 1, 0)
    series.add(2.0, 0.2, 0, 1, 1)
    series.add(2.5, 0.02, 1, 2, 1)
    series.add(3.0, 0.03, 2, 2, 0)
    return series


def test_a_series_tells_what_became_of_requests() -> None:
    series = _series()
    assert series.outcomes() == {"200": 3, "503 overloaded": 2, RESET: 1}
    assert series.latencies() == [0.1, 0.6, 0.2]
    assert series.ages() == [0.01, 0.02]
    assert series.good(0.5) == 2
    assert series.good_by_source(0.5) == {"127.0.0.1": 1, "127.0.0.2": 1, "127.0.0.3": 0}
    assert series.comebacks() == (2, 1)
    assert milliseconds(series, "p50", "max") == [200.0, 600.0]
    assert others(series) == "2 x 503 overloaded, 1 x reset"


def test_windows_count_requests_when_due_and_throughput_when_answered() -> None:
    series = _series()
    assert series.between(0.5, 2.0).outcomes() == {"200": 1, "503 overloaded": 1}
    assert series.of_source("127.0.0.3").outcomes() == {"503 overloaded": 1, RESET: 1}
    assert series.throughput(1.0, 3.0) == 1.0


def test_progress_counts_calls_under_way_in_part() -> None:
    series = Series(["200", RESET], [""])
    for due, took, outcome in ((0.0, 2.0, 0), (1.0, 2.0, 0), (1.5, 0.25, 0), (0.0, 2.0, 1)):
        series.add(due, took, outcome, 0, 0)
    # In the second from 1 to 2: half of the first, half of the second, all of the third, nothing of what was reset.
    assert series.progress(1.0, 2.0) == pytest.approx(2.0)
    assert series.throughput(1.0, 2.0) == 1.0


def test_a_report_survives_its_way_between_processes() -> None:
    report = Report({"a/x": _series(), "b/x": _series()}, 3.0, {"p50": math.nan}, 0.5, 7.0)
    again = unpack(pack(report))
    assert again.all().outcomes() == Counter({"200": 6, "503 overloaded": 4, RESET: 2})
    assert again.only("a/").latencies() == [0.1, 0.6, 0.2]
    assert again.only("b/").good_by_source(1.0) == _series().good_by_source(1.0)
    assert (again.seconds, again.cpu, again.started) == (3.0, 0.5, 7.0)
    assert math.isnan(again.late["p50"])
