"""Comebacks are spread, refusals of those who are early leave one after the other, and who is outside is counted once."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.daemon.core.comebacks import LATEST, LEFT, LONGEST, PACED, TURNS, Comebacks, Hold
from penstock.daemon.core.model import Agent
from penstock.daemon.core.refusals import Comeback

ROOM = 0.2


AGENT = Agent("a", "p")


def hold(comebacks: Comebacks, comeback: Comeback, now: float = 100.0, left: float = 30.0) -> Hold:
    return comebacks.hold(comeback, AGENT, 3, deadline=now + left, own_deadline=False, now=now)


def tell(comebacks: Comebacks, now: float, work: float = 0.01, first: int = 1, rank: int = 3) -> Comeback:
    return comebacks.tell("p", "c", work, rank, room=ROOM, first=first, now=now)


@given(st.integers(1, 3000), st.floats(0.0005, 0.5), st.integers(1, LATEST), st.floats(0.0, 1e6))
def test_comebacks_are_spread_over_the_coming_seconds(count: int, work: float, first: int, now: float) -> None:
    comebacks, booked = Comebacks(random.Random(1)), Counter[int]()
    for _ in range(count):
        second = tell(comebacks, now, work, first).second
        assert 1 <= second - int(now) <= LATEST
        booked[second - int(now)] += 1
    most = max(1, int(ROOM / work + 1e-6))
    assert all(number <= most for later, number in booked.items() if later < LATEST // 2)
    assert min(booked) >= min(first, LATEST // 2)


@given(st.lists(st.floats(0.0, 0.002), min_size=2, max_size=400), st.floats(0.0, 2.0))
def test_who_is_early_waits_its_turn_and_not_for_long(gaps: list[float], left: float) -> None:
    comebacks, now, before = Comebacks(random.Random(1)), 100.0, 0.0
    for gap in gaps:
        now += gap
        until = hold(comebacks, tell(comebacks, now), now, left).until
        assert now <= until <= now + min(left, LONGEST) + 1e-9
        if until < now + min(left, LONGEST):
            assert until - before >= 1 / PACED - 1e-9, "there is a turn for each"
        before = until


def test_one_that_is_let_in_early_gives_its_place_back() -> None:
    comebacks = Comebacks(random.Random(1))
    told = [tell(comebacks, 100.0, ROOM) for _ in range(3)]
    assert [each.second for each in told] == [101, 102, 103]
    comebacks.free(told[1])
    comebacks.free(told[1])
    assert tell(comebacks, 100.0, ROOM).second == 102
    assert tell(comebacks, 100.0, ROOM).second == 104


class Outside(RuleBasedStateMachine):
    """Against a list of everybody, with the tick until which each counts."""

    def __init__(self) -> None:
        super().__init__()
        self.comebacks = Comebacks(random.Random(1))
        self.turn = 0
        self.away: list[tuple[Comeback, int]] = []
        self.held: list[Hold] = []

    @rule(work=st.floats(0.001, 1.0), rank=st.integers(0, 15))
    def one_is_turned_away(self, work: float, rank: int) -> None:
        told = tell(self.comebacks, 100.0 + self.turn / 10, work, rank=rank)
        self.away.append((told, self.turn + TURNS))

    @rule(turns=st.integers(1, 25))
    def time_goes_by(self, turns: int) -> None:
        self.turn += turns
        self.comebacks.tick(turns)
        # Of a gap as long as this nothing is left, however long it was.
        self.away = [(each, until) for each, until in self.away if until > self.turn]

    @precondition(lambda self: self.away)
    @rule(data=st.data(), held=st.booleans())
    def one_is_back(self, data: st.DataObject, held: bool) -> None:
        each, _ = self.away.pop(data.draw(st.integers(0, len(self.away) - 1)))
        self.comebacks.see(each)
        if held:
            self.held.append(hold(self.comebacks, each))

    @precondition(lambda self: self.away)
    @rule(data=st.data())
    def one_closes_its_connection(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.away) - 1))
        each, until = self.away[at]
        self.comebacks.stray(each)
        self.away[at] = each, min(until, self.turn + LEFT)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), again=st.booleans())
    def a_hold_ends(self, data: st.DataObject, again: bool) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.comebacks.release(held)
        if again:
            self.comebacks.turn_away(held.comeback)
            self.away.append((held.comeback, self.turn + TURNS))

    @invariant()
    def who_is_outside_is_counted_once(self) -> None:
        for rank in (0, 3, 15):
            expected = sum(each.work for each, _ in self.away if each.rank <= rank)
            expected += sum(held.comeback.work for held in self.held if held.comeback.rank <= rank)
            assert self.comebacks.outside(rank) == pytest.approx(expected, abs=1e-6)


TestOutside = Outside.TestCase
