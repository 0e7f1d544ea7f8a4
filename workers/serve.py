"""``serve``: run functions as agents without any file, lambdas and closures included.

The functions are pickled with dill into a private file, from which each worker loads them; the daemon is started as the
command that it is. Nothing of the caller's process is shared: what a function needs must be reachable from it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import dill


def command(
    path: str, *, workers: int | None = None, bind: str = "", settings: Mapping[str, Any] | None = None
) -> list[str]:
    """The command line of a daemon whose agents are in the file ``path``, made by ``dump``."""
    line = [sys.executable, "-m", "penstock.daemon", "serve", "--agents", f"dill:{path}"]
    if workers is not None:
        line += ["--workers", str(workers)]
    if bind:
        line += ["--bind", bind]
    for key, value in (settings or {}).items():
        line += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return line


def dump(functions: Mapping[str, Callable[..., Any]], path: str) -> None:
    """Write the functions to a file that only its owner can read."""
    if not functions:
        raise ValueError("there is nothing to serve: pass at least one function, as {name: function}")
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name!r} is {type(function).__name__}, not a function")
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        dill.dump(dict(functions), file, recurse=True)


def serve(
    functions: Mapping[str, Callable[..., Any]],
    *,
    workers: int | None = None,
    bind: str = "",
    settings: Mapping[str, Any] | None = None,
) -> int:
    """Serve each function as the agent of its name until SIGINT or SIGTERM; the daemon's exit status.

    ``bind``: ``HOST:PORT`` (else the configuration's); ``settings``: configuration keys and values, as for ``--set``. A
    function may be sync or async.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-") as directory:
        path = os.path.join(directory, "agents.dill")
        dump(functions, path)
        process = subprocess.Popen(command(path, workers=workers, bind=bind, settings=settings))  # noqa: S603

        def forward(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
