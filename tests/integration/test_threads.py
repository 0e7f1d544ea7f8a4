"""Calls on real threads: an interruption ends the call that it was meant for, and never another."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest

from penstock.workers.context import Interrupted
from penstock.workers.threads import ThreadCall, Threads
from tests.fix_daemon import eventually

Ended = tuple[Any, BaseException | None]


def run(threads: Threads, function: Callable[[ThreadCall], Any]) -> tuple[ThreadCall, SimpleQueue[Ended]]:
    """Start a call whose end arrives in the queue."""
    ended: SimpleQueue[Ended] = SimpleQueue()
    call = ThreadCall(function, lambda result, failure: ended.put((result, failure)), "test")
    threads.start(call)
    return call, ended


def in_window(work: Callable[[], Any]) -> Callable[[ThreadCall], Any]:
    def function(call: ThreadCall) -> Any:
        call.enter()
        try:
            return work()
        finally:
            call.leave()

    return function


def spin(until: threading.Event, seconds: float = 10.0) -> str:
    ends = time.monotonic() + seconds
    while not until.is_set() and time.monotonic() < ends:
        pass
    return "came to its end"


@pytest.fixture
def threads() -> Any:
    made = Threads(2, "test")
    yield made
    made.close()


def test_a_call_gives_its_result_or_its_exception(threads: Threads) -> None:
    assert run(threads, lambda call: 5)[1].get(timeout=5) == (5, None)
    failure = run(threads, in_window(lambda: 1 // 0))[1].get(timeout=5)[1]
    assert isinstance(failure, ZeroDivisionError)
    failure = run(threads, in_window(lambda: (_ for _ in ()).throw(SystemExit(3))))[1].get(timeout=5)[1]
    assert isinstance(failure, SystemExit)


def test_python_code_is_interrupted(threads: Threads) -> None:
    entered, never = threading.Event(), threading.Event()

    def work() -> str:
        entered.set()
        return spin(never)

    call, ended = run(threads, in_window(work))
    assert entered.wait(5)
    call.interrupt()
    assert isinstance(ended.get(timeout=5)[1], Interrupted)


def test_one_that_was_interrupted_before_its_window_never_enters_it(threads: Threads) -> None:
    go, entered = threading.Event(), threading.Event()
    call, ended = run(threads, lambda call: (go.wait(5), in_window(entered.set)(call)))
    call.interrupt()
    go.set()
    assert isinstance(ended.get(timeout=5)[1], Interrupted)
    assert not entered.is_set()


def test_one_that_has_left_its_window_is_let_alone(threads: Threads) -> None:
    left, go = threading.Event(), threading.Event()

    def function(call: ThreadCall) -> str:
        in_window(lambda: None)(call)
        left.set()
        return spin(go)

    call, ended = run(threads, function)
    assert left.wait(5)
    call.interrupt()
    go.set()
    assert ended.get(timeout=5) == ("came to its end", None)
    assert not call.interrupted


def test_a_call_that_swallows_it_is_interrupted_once(threads: Threads) -> None:
    entered, go = threading.Event(), threading.Event()

    def work() -> str:
        try:
            entered.set()
            spin(threading.Event())
        except Interrupted:
            spin(go)
        return "stubborn"

    call, ended = run(threads, in_window(work))
    assert entered.wait(5)
    for _ in range(5):
        call.interrupt()
    time.sleep(0)
    go.set()
    assert ended.get(timeout=5) == ("stubborn", None)


def test_it_comes_after_a_shielded_block_and_not_into_it(threads: Threads) -> None:
    inside, go, seen = threading.Event(), threading.Event(), []

    def function(call: ThreadCall) -> None:
        call.enter()
        try:
            with call.shield():
                inside.set()
                seen.append(spin(go))
            seen.append("behind")
        finally:
            call.leave()

    call, ended = run(threads, function)
    assert inside.wait(5)
    call.interrupt()
    go.set()
    assert isinstance(ended.get(timeout=5)[1], Interrupted)
    assert seen == ["came to its end"]


def test_a_shielded_block_opens_no_window_that_was_shut(threads: Threads) -> None:
    left, go = threading.Event(), threading.Event()

    def function(call: ThreadCall) -> str:
        with call.shield():
            pass
        in_window(lambda: None)(call)
        with call.shield():
            left.set()
        return spin(go)

    call, ended = run(threads, function)
    assert left.wait(5)
    call.interrupt()
    go.set()
    assert ended.get(timeout=5)[1] is None


def test_no_more_threads_than_allowed_and_no_more_than_needed() -> None:
    threads = Threads(3, "counted")

    def alive() -> int:
        return sum(each.name.startswith("counted") for each in threading.enumerate())

    for _ in range(5):
        run(threads, lambda call: None)[1].get(timeout=5)
        eventually(lambda: threads._busy == 0, "the thread is idle")
    assert alive() == 1
    go = threading.Event()
    ended = [run(threads, lambda call: go.wait(10))[1] for _ in range(9)]
    eventually(lambda: alive() == 3, "three threads")
    go.set()
    assert [each.get(timeout=5) for each in ended] == [(True, None)] * 9
    assert alive() == 3
    threads.close()
    eventually(lambda: alive() == 0, "the threads have ended")


class Steps:
    """Work of many small steps, each a chance for an interruption, with steps that must stay whole in between."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.entered = False
        self.torn = False

    def function(self, call: ThreadCall) -> int:
        call.enter()
        try:
            self.entered = True
            for _ in range(self.number):
                with call.shield():
                    self.torn = True
                    sum(range(5))
                    self.torn = False
                sum(range(5))
            return self.number
        finally:
            call.leave()


def test_an_interruption_hits_its_own_call_or_nothing() -> None:
    """Thousands of short calls follow each other on two threads while each is interrupted at a moment of its own: what
    was not interrupted comes to its end, what was ends with the exception or had ended before, nothing whole is torn,
    and nothing is raised where no call is (it would end the thread).
    """
    threads = Threads(2, "stress")
    rng = random.Random(1)
    count, together = 3000, 6
    outcomes = {"interrupted": 0, "finished": 0}
    for _ in range(count // together):
        works = [Steps(rng.randrange(1, 200)) for _ in range(together)]
        running = [(work, *run(threads, work.function)) for work in works]
        chosen = [(call, rng.random() < 0.7) for _, call, _ in running]
        for call, hit in chosen:
            if hit:
                for _ in range(rng.randrange(0, 120)):
                    pass
                call.interrupt()
        for (work, call, ended), (_, hit) in zip(running, chosen, strict=True):
            result, failure = ended.get(timeout=10)
            assert not work.torn
            if isinstance(failure, Interrupted):
                assert hit
                assert call.interrupted
                outcomes["interrupted"] += 1
            else:
                assert (result, failure) == (work.number, None)
                outcomes["finished"] += 1
    assert min(outcomes.values()) > count // 20, outcomes
    assert sum(each.name.startswith("stress") for each in threading.enumerate()) == 2
    threads.close()


def test_a_thread_that_cannot_be_started_costs_its_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, start, refusing = Threads(2, "test"), threading.Thread.start, True

    def maybe(thread: threading.Thread) -> None:
        if refusing:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", maybe)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        run(threads, lambda call: 1)
    refusing = False
    held = threading.Event()
    first = run(threads, lambda call: held.wait(20.0))[1]
    refusing = True
    # The one that there is takes the next, too.
    second = run(threads, lambda call: 2)[1]
    held.set()
    assert [first.get(timeout=20.0), second.get(timeout=20.0)] == [(True, None), (2, None)]
    threads.close()
