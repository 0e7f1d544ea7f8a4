"""Credit of a stream: what may be on its way is bounded, and a reader that takes everything is never left waiting."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.core.flow import WIDEST, Window
from penstock.ipc.messages import WINDOW


@given(
    st.lists(st.tuples(st.integers(1, 300_000), st.floats(0.0, 0.2), st.booleans()), max_size=200),
    st.integers(1, 50_000),
)
def test_what_is_on_its_way_is_bounded_and_credit_never_runs_dry(
    steps: list[tuple[int, float, bool]], item: int
) -> None:
    now = 100.0
    window = Window(WINDOW, now)
    credit, on_its_way = WINDOW, 0
    for most, seconds, may_grow in steps:
        while credit > 0:
            # The worker sends whole items, so that the last one may go beyond.
            credit -= item
            on_its_way += item
        assert on_its_way <= window.size + item <= WIDEST + item
        now += seconds
        taken = min(most, on_its_way)
        on_its_way -= taken
        credit += window.take(taken, now, may_grow=may_grow)
        if not on_its_way:
            assert credit > 0, "all was taken, and the worker may send nothing"


def test_a_window_grows_for_a_quick_reader_only() -> None:
    quick, slow, full = (Window(WINDOW, 0.0) for _ in range(3))
    for turn in range(1, 20):
        quick.take(quick.size, turn * 0.01, may_grow=True)
        slow.take(slow.size, turn * 1.0, may_grow=True)
        full.take(full.size, turn * 0.01, may_grow=False)
    assert quick.size == WIDEST
    assert slow.size == full.size == WINDOW
