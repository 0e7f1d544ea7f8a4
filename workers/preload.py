"""What the forkserver imports once, so that every worker that is forked from it finds it in memory already.

Imports only: a thread, a socket or a ZeroMQ context made here would be broken in every child.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading

import msgspec  # noqa: F401
import psycopg  # noqa: F401
import psycopg_pool  # noqa: F401
import uvloop  # noqa: F401
import zmq  # noqa: F401

from penstock.ipc import groups
from penstock.ipc.prctl import die_with_parent
from penstock.ipc.tracing import preload

from . import run, searching, sources
from .agent import all_or_nothing

_supervisor = os.environ.pop("PENSTOCK_SUPERVISOR", "")
if _supervisor:
    # This is the forkserver: it ends with the supervisor, and its workers end with it.
    die_with_parent(int(_supervisor))
    run.door = int(os.environ.pop("PENSTOCK_GUARD"))
    if run.door != groups.NO_GUARD:
        os.set_inheritable(run.door, False)
    # What an agent module starts at its import, if it is preloaded, is nobody's but this process's.
    groups.lead(run.door)
    # Signals to the whole group (a terminal's, or systemd's at a stop) are the supervisor's to act on: it drains first,
    # or opens its log files anew.
    for _number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(_number, signal.SIG_IGN)

preload(os.environ)
searching.arrange()

_modules = [each for each in os.environ.pop("PENSTOCK_PRELOAD", "").split(",") if each]
sources.install(_modules)
for _name in _modules:
    try:
        with all_or_nothing():
            importlib.import_module(_name)
    except BaseException as error:
        # Each worker meets the same error again and reports it; here it must not end the forkserver.
        logging.getLogger("penstock.workers").debug("%s could not be preloaded: %s", _name, error)

# A fork takes only the thread that forks. Who needs the others is told, by each worker.
run.unforked = [each.name for each in threading.enumerate() if each is not threading.main_thread()]
