"""``python -m penstock.workers.listing``: list the agents that a worker would have.

Reads an encoded ``Launch`` from standard input and writes the ``Ready`` or ``Failed`` that a worker would send to
standard output. The modules are imported, no hook is run. What they print goes to standard error.
"""

from __future__ import annotations

import os
import sys

from penstock.ipc.frames import decode_launch, encode
from penstock.ipc.log import configure
from penstock.ipc.messages import PROTOCOL, Failed, Ready

from .agent import registry
from .description import describe
from .run import StartError, load, place
from .sources import fingerprint


def main() -> int:
    """Answer on standard output."""
    launch = decode_launch(sys.stdin.buffer.read())
    output = os.dup(1)
    os.dup2(2, 1)
    configure(launch.log_level, launch.log_format, launch.name)
    message: Ready | Failed
    try:
        broken = load(launch.modules)
        placed = place(registry.values(), launch.pools)
        agents = [describe(registry[name], pool) for name, pool in placed.items() if pool == launch.pool]
        message = Ready(
            worker=launch.name,
            generation=launch.generation,
            protocol=PROTOCOL,
            pid=os.getpid(),
            agents=agents,
            broken=broken,
            code=fingerprint(),
        )
    except StartError as error:
        message = Failed(launch.name, launch.generation, error.reason, error.configuration)
    with open(output, "wb") as file:
        file.write(encode(message))
    return 0


if __name__ == "__main__":
    sys.exit(main())
