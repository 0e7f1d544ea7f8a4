"""Whatever a daemon says, ``penstock top`` shows something, in one line, that no terminal obeys."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.cli.live import view

KEYS = (
    *("workers", "agents", "events", "queue", "throttle", "host", "supervisor", "traffic", "history", "database"),
    *(
        "requests",
        "high_water",
        "low_water",
        "rate",
        "p95",
        "name",
        "state",
        "at",
        "uptime",
        "refused",
        "memory",
        "load",
    ),
    *("pressure", "cpu", "some", "text", "since", "in_flight", "oldest", "version", "enabled", "limit", "mode"),
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\x1b[2J", "[red]", "a\nb"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=20,
)
measured = st.none() | st.floats(0, 1e12) | st.integers(0, 10**12)


@given(anything)
def test_every_line_of_anything_is_one_harmless_line(status: Any) -> None:
    for line in (view.traffic, view.queue, view.throttle, view.host, view.database):
        assert line(status).isprintable()
    assert view.headline(status, "here").isprintable()
    assert all(math.isfinite(value) for value in view.series(status, "rate"))


@given(anything)
def test_every_row_of_anything_can_be_shown_and_sorted_by_every_column(status: Any) -> None:
    for key, columns in (("workers", view.WORKERS), ("agents", view.AGENTS), ("events", view.EVENTS)):
        found = view.rows(status, key)
        for column in columns:
            assert sorted(map(id, view.ordered(found, column))) == sorted(map(id, found))
            assert all(column.show(row).isprintable() for row in found)


@given(st.lists(st.fixed_dictionaries({"rate": measured})))
def test_the_largest_come_first_and_the_unknown_last(rows: list[dict[str, Any]]) -> None:
    column = next(each for each in view.WORKERS if each.title == "RATE/s")
    values = [row["rate"] for row in view.ordered(rows, column)]
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=True)
    assert values == known + [None] * (len(values) - len(known))


@given(st.integers(0, 5000), st.integers(1, 2000), st.integers(1, 2000))
def test_the_queues_bar_has_its_width_and_is_full_only_at_the_mark(waiting: int, low: int, more: int) -> None:
    high = low + more
    drawn = view.bar(waiting, low, high)
    full = drawn.count("█") + drawn.count("▐")
    assert len(drawn) == view.BAR + 2
    assert full == min(view.BAR, math.ceil(waiting * view.BAR / high))
    assert full + drawn.count(" ") + drawn.count("┃") == view.BAR
    assert drawn.count("▐") + drawn.count("┃") == 1


@given(st.floats(0, 1e6))
def test_durations_and_sizes_stay_short(value: float) -> None:
    assert len(view.duration(value)) <= 7
    assert len(view.size(value * 1e6)) <= 9
