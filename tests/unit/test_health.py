"""Verdicts on loops, sample by sample."""

from __future__ import annotations

import pytest

from penstock.daemon.core.health import INTERVAL, STUCK_AFTER, Change, Health, Pulse, suspect


def test_a_loop_that_turns_is_healthy() -> None:
    pulse = Pulse(100.0)
    for look in range(1, 20):
        now = 100.0 + look * INTERVAL
        assert pulse.observe(now - 0.1, now) is None
        assert pulse.health is Health.HEALTHY
        assert pulse.standstill == pytest.approx(0.1)


def test_a_standstill_is_told_once_and_so_is_its_end() -> None:
    pulse = Pulse(100.0)
    changes = [pulse.observe(100.05, 100.0 + look * INTERVAL) for look in range(1, 8)]
    assert changes == [None, None, Change.STUCK, None, None, None, None]
    assert pulse.standstill == pytest.approx(3.45)
    assert pulse.observe(103.9, 104.0) is Change.TURNS
    assert pulse.health is Health.HEALTHY
    assert pulse.longest == pytest.approx(3.45)
    assert pulse.observe(104.4, 104.5) is None


def test_late_comes_before_stuck() -> None:
    pulse = Pulse(100.0)
    seen = []
    for look in range(1, 5):
        pulse.observe(100.3, 100.0 + look * INTERVAL)
        seen.append(pulse.health)
    assert seen == [Health.HEALTHY, Health.LATE, Health.LATE, Health.STUCK]


@pytest.mark.parametrize("turns_at", [100.0, 100.2])
def test_a_standstill_of_the_supervisor_or_of_the_host_is_not_the_loops(turns_at: float) -> None:
    pulse = Pulse(100.0)
    pulse.observe(100.0, 100.5)
    assert pulse.observe(turns_at, 160.0) is None, "a minute that nobody has watched"
    assert pulse.observe(160.4, 160.5) is None
    assert pulse.health is Health.HEALTHY


def test_the_call_in_the_loop_is_named_before_older_ones() -> None:
    slots = [(7, True, 10.0), (8, True, 5.0), (9, False, 1.0)]
    assert suspect(7, slots) == 7
    assert suspect(0, slots) == 8, "the oldest that has begun"
    assert suspect(99, slots) == 8, "one that has ended is not named"
    assert suspect(0, slots[2:]) == 9, "if none has begun, the oldest"
    assert suspect(0, []) == 0
    assert STUCK_AFTER > 2 * INTERVAL
