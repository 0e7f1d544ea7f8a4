"""A wrapper of a call's coroutine, which measures each of its steps and settles the call when it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from .running import Result, Running


class Metered(Coroutine[Any, Any, None]):
    """A coroutine that shows on the scoreboard when it runs, adds the CPU time of each of its steps to its call, and
    settles the call when it ends.

    Settling from outside of the coroutine is what makes both right: the last step's time is known by then, and a
    coroutine that was cancelled before its first step has run none of its own code. The task around it always ends
    well, so that the loop never sees an agent's exception.
    """

    __slots__ = ("_call", "_inner", "_settle", "_show")

    def __init__(
        self,
        inner: Coroutine[Any, Any, Result],
        call: Running,
        settle: Callable[[Running, Any, Any], None],
        show: Callable[[int], None],
    ) -> None:
        """``settle`` gets the call and either its result or its exception, ``show`` the call that runs, or 0."""
        self._inner = inner
        self._call = call
        self._settle = settle
        self._show = show

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._inner.throw, *error)

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        begun = time.thread_time()
        self._show(self._call.spec.call)
        try:
            yielded = step(*arguments)
        except StopIteration as end:
            self._stepped(begun)
            self._settle(self._call, end.value, None)
        except BaseException as error:
            self._stepped(begun)
            self._settle(self._call, None, error)
        else:
            self._stepped(begun)
            return yielded
        raise StopIteration

    def _stepped(self, begun: float) -> None:
        self._call.cpu += time.thread_time() - begun
        self._show(0)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, None]:
        yield from self._inner.__await__()
