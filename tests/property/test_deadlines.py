"""The wheel gives exactly what is due, whatever was added, moved and removed before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.core.deadlines import TICK, Wheel
from penstock.daemon.core.model import Agent, Request

AGENT = Agent("a", "p")
times = st.floats(0.0, 1e6)


@given(st.lists(st.tuples(st.integers(0, 9), st.none() | times)), st.lists(times).map(sorted))
def test_what_is_due_comes_in_time_and_once(steps: list[tuple[int, float | None]], looks: list[float]) -> None:
    wheel: Wheel[Request] = Wheel()
    requests = [Request(AGENT, 0.0, 0.0) for _ in range(10)]
    held: dict[Request, float] = {}
    for number, at in steps:
        request = requests[number]
        if at is None:
            wheel.remove(request)
            held.pop(request, None)
        else:
            wheel.add(request, at)
            held[request] = at
    assert len(wheel) == len(held)
    for now in looks:
        found = wheel.due(now)
        assert len(set(found)) == len(found)
        for request in found:
            assert held.pop(request) <= now + 1e-6 * TICK + 1e-9
        assert all(at + TICK >= now - 1e-3 * TICK for at in held.values()), "none is more than a tick late"


@given(st.lists(times, min_size=1))
def test_asked_when_it_said_there_is_something(moments: list[float]) -> None:
    wheel: Wheel[Request] = Wheel()
    for at in moments:
        wheel.add(Request(AGENT, 0.0, 0.0), at)
    count = 0
    while (next_at := wheel.next_at()) is not None:
        found = wheel.due(next_at)
        assert found
        count += len(found)
    assert count == len(moments)
