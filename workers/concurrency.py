"""Utilities for agents that do several things at once and still keep their deadline.

All of them know the deadline of the request that they run for and never wait beyond it; outside of a request there is
none. They raise ``TimeoutError`` when time is up, as asyncio does.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from .context import current
from .threads import ThreadCall, Threads, running

T = TypeVar("T")
P = ParamSpec("P")

_scope: ContextVar[float] = ContextVar("penstock_deadline", default=math.inf)
_threads = Threads(64, "penstock-in-thread")


def remaining() -> float:
    """Seconds until the nearest deadline: the request's, or that of an enclosing ``deadline``; ``inf`` without one."""
    call = current.get()
    until = min(_scope.get(), math.inf if call is None else call.deadline)
    return until - time.monotonic()


@contextlib.asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """A block that may take so long, and no longer than what encloses it: ``TimeoutError`` beyond.

    ``async with deadline(0.2): ...``. Everything in this module that is used inside keeps to it.
    """
    seconds = min(seconds, remaining())
    token = _scope.set(time.monotonic() + seconds)
    try:
        async with asyncio.timeout(None if math.isinf(seconds) else max(0.0, seconds)):
            yield
    finally:
        _scope.reset(token)


async def gather(limit: int, awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, in their order, with at most ``limit`` of them running at once.

    The first exception cancels the others and is raised; what was not started yet never is.
    """
    if limit < 1:
        raise ValueError(f"limit must be 1 or more, not {limit}")
    waiting = list(awaitables)
    results: list[Any] = [None] * len(waiting)
    numbers = iter(range(len(waiting)))

    async def work() -> None:
        for number in numbers:
            results[number] = await waiting[number]

    tasks = [asyncio.ensure_future(work()) for _ in range(min(limit, len(waiting)))]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in waiting:
            if asyncio.iscoroutine(each):
                each.close()
            elif asyncio.isfuture(each):
                each.cancel()
        raise
    return results


def _raised_in_thread(failure: BaseException) -> RuntimeError:
    error = RuntimeError(f"the function raised {failure!r}")
    error.__cause__ = failure
    return error


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function on a thread of its own and wait for it.

    If the waiting is cancelled (the deadline, a client that is gone), ``Interrupted`` is raised in the thread, so that
    Python code there ends too. The request's context goes with it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def work(call: ThreadCall) -> T:
        call.enter()
        try:
            return context.run(function, *args, **kwargs)
        finally:
            call.leave()

    def settle(result: Any, failure: BaseException | None) -> None:
        if future.done():
            return
        if failure is None:
            future.set_result(result)
        else:
            # A future takes no StopIteration, and an Interrupted that nobody asked for must not pass for a
            # cancellation.
            fits = isinstance(failure, Exception) and not isinstance(failure, StopIteration)
            future.set_exception(failure if fits else _raised_in_thread(failure))

    def done(result: Any, failure: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile; nobody waits
            loop.call_soon_threadsafe(settle, result, failure)

    call = ThreadCall(work, done, getattr(function, "__name__", "in_thread"))
    _threads.start(call)
    try:
        return await future
    except asyncio.CancelledError:
        call.interrupt()
        raise


class Bulkhead:
    """A named limit on the use of one dependency, so that its slowness cannot take every slot of the worker.

    For coroutines ``async with bulkhead:``, for threads ``with bulkhead:``; both count together. Waiting ends at the
    deadline, or after ``wait`` seconds, with ``TimeoutError``. The name is from ships; the pattern from M. Nygard,
    Release It!.
    """

    def __init__(self, name: str, limit: int, wait: float = math.inf) -> None:
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, not {limit}")
        self.name = name
        self.limit = limit
        self._wait = wait
        self._lock = threading.Lock()
        self._held = 0
        self._waiting: deque[_Entrant] = deque()

    @property
    def held(self) -> int:
        """Places that are taken now."""
        return self._held

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    def _enter(self, entrant: _Entrant) -> bool:
        """Take a place. False: it waits for one."""
        with self._lock:
            if self._held < self.limit:
                self._held += 1
                entrant.inside = True
            else:
                self._waiting.append(entrant)
        return entrant.inside

    def _leave(self) -> None:
        """Hand the place to the first who waits, or free it."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._held -= 1
                    return
                entrant = self._waiting.popleft()
                entrant.inside = True
            if entrant.wake():
                return

    def _undo(self, entrant: _Entrant) -> None:
        """Stop waiting, and give the place back if it was handed over already."""
        with self._lock:
            inside, entrant.inside = entrant.inside, False
            if not inside and entrant in self._waiting:
                self._waiting.remove(entrant)
        if inside:
            self._leave()

    def _seconds(self) -> float:
        return max(0.0, min(self._wait, remaining()))

    def _refusal(self) -> TimeoutError:
        return TimeoutError(f"no place in bulkhead {self.name!r} (limit {self.limit}) in time")

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not future.done():
                future.set_result(None)

        def wake() -> bool:
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:
                return False  # that loop is closed, and nobody waits there any more
            return True

        entrant = _Entrant(self, wake)
        try:
            if not self._enter(entrant):
                seconds = self._seconds()
                async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                    await future
        except BaseException as error:
            entrant.give_back()
            if isinstance(error, TimeoutError):
                raise self._refusal() from None
            raise

    async def __aexit__(self, *error: object) -> None:
        self._leave()

    def __enter__(self) -> None:
        call = running()
        if call is None:
            self._enter_in_thread()
            return
        # An interruption must tear neither this nor the exit apart, and may come right before the exit's first line.
        with call.shield():
            call.cleanups.append(self._enter_in_thread())

    def _enter_in_thread(self) -> _Entrant:
        event = threading.Event()

        def wake() -> bool:
            event.set()
            return True

        entrant = _Entrant(self, wake)
        try:
            if not self._enter(entrant):
                seconds = self._seconds()
                if not event.wait(None if math.isinf(seconds) else seconds):
                    raise self._refusal()
        except BaseException:
            entrant.give_back()
            raise
        return entrant

    def __exit__(self, *error: object) -> None:
        call = running()
        if call is None:
            self._leave()
            return
        with call.shield():
            mine = [each for each in call.cleanups if isinstance(each, _Entrant) and each.bulkhead is self]
            call.cleanups.remove(mine[-1])
            mine[-1].give_back()


class _Entrant:
    """Whoever wants a place in a bulkhead, or has it."""

    __slots__ = ("bulkhead", "inside", "wake")

    def __init__(self, bulkhead: Bulkhead, wake: Callable[[], bool]) -> None:
        """``wake`` is called when it is handed a place. False: there is nobody to wake."""
        self.bulkhead = bulkhead
        self.wake = wake
        self.inside = False

    def give_back(self) -> None:
        """Stop waiting, or give the place back."""
        self.bulkhead._undo(self)


def backoff(first: float = 0.05, factor: float = 2.0, longest: float = 1.0) -> Iterator[float]:
    """Seconds between tries: growing, each drawn evenly between half and all of its step, so that clients spread."""
    step = first
    while True:
        yield step * random.uniform(0.5, 1.0)
        step = min(longest, step * factor)


async def retry(
    function: Callable[[], Awaitable[T]],
    *,
    on: type[Exception] | tuple[type[Exception], ...],
    tries: int = 5,
    first: float = 0.05,
    longest: float = 1.0,
) -> T:
    """Await ``function()`` until it succeeds; its last exception after ``tries``, or when the next wait would outlive
    the deadline. Only exceptions of the types ``on`` are tried again.
    """
    if tries < 1:
        raise ValueError(f"tries must be 1 or more, not {tries}")
    waits = backoff(first, longest=longest)
    for number in range(1, tries + 1):
        try:
            return await function()
        except on:
            wait = next(waits)
            if number == tries or wait >= remaining():
                raise
        await asyncio.sleep(wait)
    raise AssertionError("unreachable: the last try returns or raises")
