"""The page that a worker and its supervisor share."""

from __future__ import annotations

import os

from penstock.ipc.scoreboard import Scoreboard, SlotView


def test_both_ends_see_the_same() -> None:
    mine = Scoreboard.create("default:0", 2)
    theirs = Scoreboard(os.dup(mine.fd), 2)
    mine.turn(5.0, 0.25)
    mine.take(1, 41, 6.0)
    mine.backend(1, 777)
    assert (theirs.turned_at, theirs.lag) == (5.0, 0.25)
    assert theirs.busy() == [SlotView(41, False, 6.0, 777)]
    mine.begin(1, 7.0)
    assert theirs.busy() == [SlotView(41, True, 7.0, 777)]
    mine.free(1)
    assert theirs.busy() == []
    mine.close()
    theirs.close()


def test_a_call_that_ended_unbegun_is_not_busy_and_not_begun() -> None:
    board = Scoreboard.create("default:0", 2)
    board.take(0, 41, 1.0)
    board.backend(0, 777)
    board.give_up(0)
    assert board.busy() == []
    assert board.begun([41]) == set()
    board.take(0, 42, 2.0)
    assert board.busy() == [SlotView(42, False, 2.0, 0)]
    board.close()


def test_a_call_that_was_never_seen_has_not_begun_and_one_that_ended_has() -> None:
    board = Scoreboard.create("default:0", 1)
    board.take(0, 41, 1.0)
    board.begin(0, 2.0)
    board.free(0)
    assert board.begun([41, 42]) == {41}
    board.close()


def test_it_may_be_closed_twice() -> None:
    board = Scoreboard.create("default:0", 1)
    board.close()
    board.close()
