"""What the tests of supervision run in a worker process instead of the worker's program.

``perform`` gets an order instead of a ``Launch``: a word, and perhaps a number after it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import multiprocess

from penstock.ipc import frames, sockets
from penstock.ipc.messages import PROTOCOL, Ready
from penstock.ipc.outlets import Outlets
from penstock.ipc.prctl import die_with_parent
from penstock.ipc.scoreboard import Scoreboard
from penstock.workers.run import _supervised_by


def _live_as_workers_do() -> None:
    """Die with the forkserver, at once if it is gone already."""
    die_with_parent(os.getppid())
    supervisor = multiprocess.parent_process()
    assert supervisor is not None
    if not _supervised_by(supervisor.pid):
        os._exit(1)


def perform(order: bytes, board: Scoreboard, outlets: Outlets) -> None:
    """Carry out the order."""
    _live_as_workers_do()
    outlets.install()
    word, _, number = order.decode().partition(" ")
    if word == "exit":
        sys.exit(int(number))
    elif word == "fail":
        raise RuntimeError("as ordered")
    elif word == "signal":
        signal.signal(int(number), signal.SIG_DFL) if int(number) != signal.SIGKILL else None
        os.kill(os.getpid(), int(number))
    elif word == "print":
        print(os.getpid(), "says", number)
    elif word == "modules":
        print(int(number in sys.modules), *(name for name in os.environ if name.startswith("PENSTOCK_")))
    elif word == "take":
        board.take(0, int(number), 1.0)
        board.begin(0, 2.0)
        threading.Event().wait()
    elif word == "stay":
        threading.Event().wait()


def speak_another_protocol(parameters: bytes, board: Scoreboard, outlets: Outlets) -> None:
    """A worker of another version, which says that it is ready."""
    _live_as_workers_do()
    launch = frames.decode_launch(parameters)
    context = sockets.context()
    answers = sockets.connect_push(context, launch.answer_address)
    ready = Ready(launch.name, launch.generation, PROTOCOL + 1, os.getpid(), [], [], "")
    answers.send_multipart([frames.encode(ready), b""])
    threading.Event().wait()
