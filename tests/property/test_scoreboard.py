"""The scoreboard, killed between any two of its writes.

The worker's steps are performed on a page whose words are recorded as they are written, one by one. After every single
write the supervisor's view is taken, as if the worker had been killed right there:

* a call whose function was entered is shown as begun, from before the entry on, and for good;
* a call whose function was never entered is never shown as begun, unless the very next step is the entry.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.ipc.scoreboard import HEADER, SLOT, WORD, Scoreboard


class Recorder:
    """A view of the page that notes each word before it is written."""

    def __init__(self, words: memoryview, writes: list[tuple[memoryview, int, Any]]) -> None:
        self._words = words
        self._writes = writes

    def __getitem__(self, at: int) -> Any:
        return self._words[at]

    def __setitem__(self, at: int, value: Any) -> None:
        self._writes.append((self._words, at, value))


class Model:
    """A worker with its slots as ``workers.calls`` uses them, and a supervisor that counts credits."""

    def __init__(self, slots: int) -> None:
        self.page = bytearray((HEADER + SLOT * slots) * WORD)
        self.writes: list[tuple[memoryview, int, Any]] = []
        self.board, self.worker = self.end_of_page(slots), self.end_of_page(slots)
        words, floats = self.worker._words, self.worker._floats
        self.worker._words = Recorder(words, self.writes)  # type: ignore[assignment]
        self.worker._floats = Recorder(floats, self.writes)  # type: ignore[assignment, arg-type]
        self.free = deque(range(slots))
        self.call = 0
        self.running: dict[int, int] = {}
        self.begun: set[int] = set()
        self.answers: deque[int] = deque()
        self.outstanding: set[int] = set()

    def end_of_page(self, slots: int) -> Scoreboard:
        """A scoreboard on this page, which is no shared memory: that would be one descriptor for each example."""
        board = object.__new__(Scoreboard)
        board.slots = slots
        board._words, board._floats = memoryview(self.page).cast("q"), memoryview(self.page).cast("d")
        return board

    def perform(self, entering: int = 0) -> None:
        """Let the recorded writes happen one at a time, and look at the page after each."""
        for words, at, value in self.writes:
            words[at] = value
            shown = self.board.begun(self.outstanding)
            assert self.begun & self.outstanding <= shown
            assert shown <= self.begun | {entering}
        self.writes.clear()

    def take(self) -> None:
        if len(self.outstanding) == self.worker.slots:
            return  # no credit
        self.call += 1
        self.outstanding.add(self.call)
        slot = self.free.popleft()
        self.running[self.call] = slot
        self.worker.take(slot, self.call, float(self.call))
        self.perform()

    def enter(self, call: int) -> None:
        self.worker.backend(self.running[call], 1000 + call)
        self.perform()
        self.worker.begin(self.running[call], 1.0)
        self.perform(entering=call)
        self.begun.add(call)

    def end(self, call: int) -> None:
        slot = self.running.pop(call)
        self.answers.append(call)
        if call in self.begun:
            self.worker.free(slot)
        else:
            self.worker.give_up(slot)
        self.perform()
        self.free.append(slot)

    def hear(self) -> None:
        """The supervisor reads an answer; they come in the order in which they were given."""
        self.outstanding.remove(self.answers.popleft())


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from(["take", "enter", "end", "hear"]), st.integers(0, 9))))
def test_killed_between_any_two_writes_it_tells_the_truth(slots: int, steps: list[tuple[str, int]]) -> None:
    model = Model(slots)
    for step, which in steps:
        waiting = sorted(model.running.keys() - model.begun)
        running = sorted(model.running)
        if step == "take":
            model.take()
        elif step == "enter" and waiting:
            model.enter(waiting[which % len(waiting)])
        elif step == "end" and running:
            model.end(running[which % len(running)])
        elif step == "hear" and model.answers:
            model.hear()
        shown = {slot.call: slot for slot in model.board.busy()}
        assert shown.keys() == model.running.keys()
        assert all(shown[call].begun == (call in model.begun) for call in shown)
        assert all(shown[call].backend in (0, 1000 + call) for call in shown)
