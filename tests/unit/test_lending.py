"""A thread that waits for another agent lends its place, and can be interrupted while it waits."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

import pytest

from penstock.workers.context import Context, Interrupted
from penstock.workers.threads import ThreadCall, Threads, running

PATIENCE = 30.0


class Stand:
    """One thread, and what calls on it end with."""

    def __init__(self) -> None:
        self.threads = Threads(1, "test")
        self.ends: SimpleQueue[Any] = SimpleQueue()

    def start(self, function: Any) -> ThreadCall:
        def within(call: ThreadCall) -> Any:
            call.enter()
            return function()

        call = ThreadCall(within, lambda result, failure: self.ends.put(failure or result), "test")
        self.threads.start(call)
        return call

    def end(self) -> Any:
        return self.ends.get(timeout=PATIENCE)


def sets(event: threading.Event) -> str:
    event.set()
    return "second"


def test_another_call_runs_in_the_place_of_one_that_waits() -> None:
    stand, woken, lent = Stand(), threading.Event(), threading.Event()

    def waits() -> str:
        with stand.threads.lending():
            lent.set()
            return "first" if woken.wait(PATIENCE) else "nobody came"

    stand.start(waits)
    assert lent.wait(PATIENCE)
    stand.start(lambda: sets(woken))
    assert {stand.end(), stand.end()} == {"first", "second"}


def test_a_call_that_was_there_before_runs_in_its_place_too() -> None:
    stand, queued, woken = Stand(), threading.Event(), threading.Event()

    def waits() -> str:
        assert queued.wait(PATIENCE)
        with stand.threads.lending():
            return "first" if woken.wait(PATIENCE) else "nobody came"

    stand.start(waits)
    stand.start(lambda: sets(woken))
    queued.set()
    assert {stand.end(), stand.end()} == {"first", "second"}


@pytest.mark.parametrize("before", [True, False], ids=["before it waits", "while it waits"])
def test_an_interruption_wakes_it(before: bool) -> None:
    stand, waiting, go = Stand(), threading.Event(), threading.Event()

    def waits() -> str:
        call, woken = running(), threading.Event()
        assert call is not None
        with call.shield():
            waiting.set()
            assert go.wait(PATIENCE)
            with call.waiting(woken.set):
                go.clear()
                assert woken.wait(PATIENCE), "nobody woke it"
        return "not interrupted"

    call = stand.start(waits)
    assert waiting.wait(PATIENCE)
    if before:
        call.interrupt()
    go.set()
    if not before:
        while go.is_set():
            waiting.wait(0.001)
        call.interrupt()
    assert isinstance(stand.end(), Interrupted)


def test_a_context_outside_of_a_call_asks_nobody() -> None:
    context = Context("a", "r", "c", {}, 1.0)
    with pytest.raises(RuntimeError, match="only while the call runs"):
        context.call_sync("b")
