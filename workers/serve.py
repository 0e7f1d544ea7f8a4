"""``serve``: run functions as agents without any file, lambdas and closures included.

The functions are pickled with dill into a file in memory, from which each worker loads them by way of the caller's
descriptor (in a temporary directory it would be gone some day, and no worker could be started again); the daemon is
started as the command that it is. Nothing of the caller's process is shared: what a function needs must be reachable
from it. What comes from modules is imported in the worker, which looks for them where the caller does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import dill

from . import pickling
from .agent import AgentError
from .binding import BindingError, annotations_of


def command(
    path: str, *, workers: int | None = None, bind: str = "", settings: Mapping[str, Any] | None = None
) -> list[str]:
    """The command line of a daemon whose agents are in the file ``path``, made by ``dump``."""
    line = [sys.executable, "-P", "-m", "penstock.daemon", "serve", "--agents", f"dill:{path}"]
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
    # Annotations in quotes are resolved here, where the names in them mean something.
    prepared = {name: (function, _hints(name, function)) for name, function in functions.items()}
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        dill.dump(sys.path, file)
        file.write(_pickled(prepared))


def _pickled(functions: Mapping[str, Any]) -> bytes:
    try:
        return pickling.pickled(functions)
    except Exception as error:
        # Pickling fails in every way, deep inside; which function it was is for us to say.
        for name, function in functions.items() if len(functions) > 1 else ():
            _pickled({name: function})
        raise TypeError(f"{', '.join(functions)} cannot be sent to the workers: {error}") from error


def undump(path: str) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """The functions and their resolved annotations, as ``dump`` has written them."""
    with open(path, "rb") as file:
        # Our own file, readable by its owner only.
        known = set(sys.path)
        sys.path += [each for each in dill.load(file) if each not in known]  # noqa: S301
        return dict(dill.load(file))  # noqa: S301


def _hints(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    if not callable(function):
        raise TypeError(f"{name!r} is {type(function).__name__}, not a function")
    try:
        return annotations_of(function)
    except BindingError as error:
        raise AgentError(f"agent {name!r}: {error}") from error


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
    with open(os.memfd_create("penstock-agents"), "rb") as memory:
        path = f"/proc/{os.getpid()}/fd/{memory.fileno()}"
        dump(functions, path)
        process = subprocess.Popen(  # noqa: S603
            command(path, workers=workers, bind=bind, settings=settings),
            # It ends with this process, also if that is killed.
            env={**os.environ, "PENSTOCK_CALLER": str(os.getpid())},
            # A terminal's Ctrl-C comes once: by us. Twice would cut the draining short.
            process_group=0 if threading.current_thread() is threading.main_thread() else None,
        )
        try:
            with _forwarding(process):
                return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


@contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals to end go on to the process. (Other threads than the main one get none, and may not ask for any.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
