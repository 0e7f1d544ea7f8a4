"""The first code that runs in a worker: it finds the worker's program by its name and starts it.

The supervisor names the program instead of importing it, as a shell names a command: neither program depends on the
other's code, and nothing that the supervisor imports is loaded into workers, or the other way round.
"""

from __future__ import annotations

import importlib
import sys

from .outlets import Outlets
from .scoreboard import Scoreboard

PROGRAM = "penstock.workers.run"
PRELOAD = "penstock.workers.preload"
"""Imported once by the forkserver, so that every worker finds its libraries in memory already."""


def launch(parameters: bytes, board: Scoreboard, outlets: Outlets) -> None:
    """Run the worker's program and exit with its status. ``parameters`` is an encoded ``messages.Launch``."""
    outlets.install()
    sys.exit(importlib.import_module(PROGRAM).main(parameters, board))
