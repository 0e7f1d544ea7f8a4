"""Threads whose current call can be interrupted from outside, without ever hitting the next one.

CPython can set an exception in another thread (``PyThreadState_SetAsyncExc``); it is raised there at some later
bytecode. Two things make that safe to use:

* Under the call's lock it is set only while the call's window is open. Once that is shut nothing sets it any more.
* An exception that was set and perhaps not raised yet is taken, by the thread itself, before it goes on: it sets one of
  its own in that place and waits for it. (The same call with NULL would take it back as well, but leaves the
  interpreter looking for an exception at every jump from then on: 2 to 5 % of all computing.)

A thread inside C code (a long regular expression, a computation without bytecode) is not interrupted until it comes
back; the supervisor's grace and the worker's death are for those.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Protocol

from .context import Interrupted

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = [ctypes.c_ulong, ctypes.py_object]
_set_async_exc.restype = ctypes.c_int


class _Taken(BaseException):
    """Stands where an interruption may have been."""


class Cleanup(Protocol):
    """Something that must be given back."""

    def give_back(self) -> None:
        """Give it back; nothing happens if that was done. It must not raise."""


_running = threading.local()


def running() -> ThreadCall | None:
    """The call that runs on this thread."""
    call: ThreadCall | None = getattr(_running, "call", None)
    return call


class ThreadCall:
    """One function on one thread, with a window in which it can be interrupted.

    The window is opened by ``enter`` and shut by ``leave``, both called on the call's thread: what comes before and
    after it (taking and giving back a connection) must not be torn apart. ``shield`` shuts it for a step in between. At
    most one exception is ever set.
    """

    __slots__ = ("_done", "_due", "_function", "_left", "_lock", "_thread", "_wake", "cleanups", "interrupted", "title")

    def __init__(
        self, function: Callable[[ThreadCall], Any], done: Callable[[Any, BaseException | None], None], title: str
    ) -> None:
        """``function`` gets the call. ``done`` is called on the call's thread with the result or the exception; it must
        not raise. ``title`` is part of the thread's name meanwhile, which profilers and debuggers show.
        """
        self.title = title
        self._function = function
        self._done = done
        self._lock = threading.Lock()
        self._thread = 0
        self._due = False
        self._left = False
        self._wake: Callable[[], None] | None = None
        self.interrupted = False
        self.cleanups: list[Cleanup] = []
        """What the function has and will give back, unless it is interrupted on the way: then that is done for it."""

    def interrupt(self) -> None:
        """Raise ``Interrupted`` in the window: now, or when it opens. Nothing happens once it is shut."""
        with self._lock:
            if self.interrupted or self._left:
                return
            self.interrupted = True
            if self._thread:
                _set_async_exc(self._thread, ctypes.py_object(Interrupted))
            else:
                self._due = True
                if self._wake is not None:
                    self._wake()

    def enter(self) -> None:
        """Open the window (``Interrupted`` if that was asked for while it was shut)."""
        with self._lock:
            due, self._due = self._due, False
            if due:
                raise Interrupted
            self._thread = threading.get_ident()

    @contextmanager
    def shield(self) -> Iterator[None]:
        """A block that an interruption comes before or after, never into. Without effect outside of the window, and on
        other threads than the call's.
        """
        with self._lock:
            open_here = self._thread == threading.get_ident() and not self._left
            if open_here:
                self._thread = 0
        # One that was set before the window was shut is raised by now: the lock's release was a call.
        try:
            yield
        finally:
            if open_here:
                self.enter()

    @contextmanager
    def waiting(self, wake: Callable[[], None]) -> Iterator[None]:
        """A shielded block that waits on something. An interruption, also one that came before, calls ``wake``."""
        with self.shield():
            with self._lock:
                self._wake = wake
                if self._due:
                    wake()
            try:
                yield
            finally:
                with self._lock:
                    self._wake = None

    def leave(self) -> None:
        """Shut the window: an exception that was set and not raised yet is never raised."""
        while True:
            try:
                with self._lock:
                    self._left = True
                if not self.interrupted:
                    return
                _set_async_exc(threading.get_ident(), ctypes.py_object(_Taken))
                while True:
                    pass
            except _Taken:
                return
            except Interrupted:
                continue

    def run(self) -> None:
        """Run on the calling thread."""
        result: Any = None
        failure: BaseException | None = None
        _running.call = self
        try:
            result = self._function(self)
        except BaseException as error:
            failure = error
        self.leave()
        while self.cleanups:
            self.cleanups.pop().give_back()
        _running.call = None
        self._done(result, failure)


class Threads:
    """Up to ``size`` threads, started when first needed, that run calls in the order they come; and one more for each
    that lends its place while it waits.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._calls: SimpleQueue[ThreadCall | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._busy = 0
        self._started = 0
        self._lent = 0

    @contextmanager
    def lending(self) -> Iterator[None]:
        """A block in which the thread only waits, so that another may run in its place."""
        with self._lock:
            self._lent += 1
        try:
            self._grow()
            yield
        finally:
            with self._lock:
                self._lent -= 1

    def start(self, call: ThreadCall) -> None:
        """Run the call as soon as a thread is free (``RuntimeError`` if there is none and none can be made). From any
        thread.
        """
        with self._lock:
            self._busy += 1
        if not self._grow():
            with self._lock:
                self._busy -= 1
            raise RuntimeError("can't start new thread")
        self._calls.put(call)

    def _grow(self) -> bool:
        """Start a thread if a call wants one, and there may be one more. False: there is none at all."""
        with self._lock:
            if self._busy <= self._started or self._started >= self._size + self._lent:
                return True
            self._started += 1
            number = self._started
        try:
            # Daemon threads: a thread that never comes back must not hold up the end of the process.
            threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True).start()
        except RuntimeError:
            # The host lets this process have no more threads: those that there are take the call in turn.
            with self._lock:
                self._started -= 1
                return self._started > 0
        return True

    def _work(self) -> None:
        thread = threading.current_thread()
        idle = thread.name
        while (call := self._calls.get()) is not None:
            thread.name = f"{idle} {call.title}"
            call.run()
            thread.name = idle
            with self._lock:
                self._busy -= 1
                if self._started > self._size + self._lent:
                    self._started -= 1  # whose place it had goes on
                    return

    def close(self) -> None:
        """Let the threads end once they are idle."""
        with self._lock:
            started = self._started
        for _ in range(started):
            self._calls.put(None)
