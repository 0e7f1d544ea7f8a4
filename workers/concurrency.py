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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from .context import current
from .threads import Job, Threads

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
        raise
    return results


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function on a thread of its own and wait for it.

    If the waiting is cancelled (the deadline, a client that is gone), ``Interrupted`` is raised in the thread, so that
    Python code there ends too. The request's context goes with it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def work(job: Job) -> T:
        job.enter()
        try:
            return context.run(function, *args, **kwargs)
        finally:
            job.leave()

    def settle(result: Any, failure: BaseException | None) -> None:
        if future.done():
            return
        if failure is None:
            future.set_result(result)
        else:
            # A future takes no StopIteration, and an Interrupted that nobody asked for must not pass for a
            # cancellation.
            future.set_exception(failure if isinstance(failure, Exception) else RuntimeError(repr(failure)))

    def done(result: Any, failure: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile; nobody waits
            loop.call_soon_threadsafe(settle, result, failure)

    job = Job(work, done, getattr(function, "__name__", "in_thread"))
    _threads.start(job)
    try:
        return await future
    except asyncio.CancelledError:
        job.interrupt()
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
        self._waiting: list[Callable[[], None]] = []

    @property
    def held(self) -> int:
        """How many are inside."""
        return self._held

    def _enter(self, wake: Callable[[], None]) -> bool:
        with self._lock:
            if self._held < self.limit:
                self._held += 1
                return True
            self._waiting.append(wake)
            return False

    def _abandon(self, wake: Callable[[], None]) -> bool:
        """Stop waiting. False: the place was handed over already."""
        with self._lock:
            if wake in self._waiting:
                self._waiting.remove(wake)
                return True
            return False

    def _leave(self) -> None:
        """Hand the place to the first who waits, or free it."""
        with self._lock:
            wake = self._waiting.pop(0) if self._waiting else None
            if wake is None:
                self._held -= 1
        if wake is not None:
            wake()

    def _refusal(self) -> TimeoutError:
        return TimeoutError(f"no place in bulkhead {self.name!r} (limit {self.limit}) in time")

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(None))

        if self._enter(wake):
            return
        seconds = min(self._wait, remaining())
        try:
            await asyncio.wait_for(asyncio.shield(future), None if math.isinf(seconds) else max(0.0, seconds))
        except BaseException as error:
            if not self._abandon(wake):
                self._leave()
            if isinstance(error, TimeoutError):
                raise self._refusal() from None
            raise

    async def __aexit__(self, *error: object) -> None:
        self._leave()

    def __enter__(self) -> None:
        event = threading.Event()
        wake = event.set
        if self._enter(wake):
            return
        seconds = min(self._wait, remaining())
        try:
            if event.wait(None if math.isinf(seconds) else max(0.0, seconds)):
                return
        except BaseException:
            if not self._abandon(wake):
                self._leave()
            raise
        if not self._abandon(wake):
            self._leave()
        raise self._refusal()

    def __exit__(self, *error: object) -> None:
        self._leave()


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
