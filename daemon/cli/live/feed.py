"""Asks the daemon from threads, so that the screen never waits for it.

The threads are daemons: who leaves does not wait for an answer that may not come.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from ...config.settings import ConfigError
from ..client import Reply, UnreachableError, explain, request

PATIENCE: Final = 10.0
"""Seconds of silence after which a status is given up."""
LONG: Final = 60.0
"""For a stack, which is taken from outside of a process that may be busy."""


@dataclass(frozen=True, slots=True)
class Look:
    """One answer: the status, or why there is none."""

    status: dict[str, Any] | None
    trouble: str = ""


class Feed:
    """Looks at the daemon again and again."""

    def __init__(self, options: argparse.Namespace, tell: Callable[[Look], None]) -> None:
        """``tell`` is called from the feed's thread."""
        self._options = options
        self._tell = tell
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="feed", daemon=True).start()

    def stop(self) -> None:
        """Tell nothing more. Does not wait."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            look = self._look()
            if not self._ended.is_set():
                self._tell(look)
            self._ended.wait(self._options.interval)

    def _look(self) -> Look:
        reply, trouble = _ask(self._options, "GET", "/v1/status", PATIENCE)
        if reply is None:
            return Look(None, trouble)
        try:
            status = reply.json
        except ValueError:
            status = None
        return Look(status) if isinstance(status, dict) else Look(None, "the server there is not Penstock")

    def of_worker(self, method: str, worker: str, verb: str, done: Callable[[str, str], None]) -> None:
        """Ask for something of a worker. ``done`` is called from another thread with the answer's text, and with why
        there is none, of which one is empty.
        """

        def work() -> None:
            path = f"/v1/workers/{quote(worker, safe=':')}/{verb}"
            reply, trouble = _ask(self._options, method, path, LONG)
            done("" if reply is None else reply.body.decode(errors="replace"), trouble)

        threading.Thread(target=work, daemon=True).start()


def _ask(options: argparse.Namespace, method: str, path: str, patience: float) -> tuple[Reply | None, str]:
    try:
        reply = request(options, method, path, timeout=patience)
    except (UnreachableError, ConfigError) as error:
        return None, str(error)
    return (reply, "") if reply.status < 400 else (None, explain(reply))
