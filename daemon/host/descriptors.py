"""The descriptors of this process: of those that the host allows, clients get what the daemon does not need itself.

What that is was counted: 28 for the loop, the logs, the database and ZeroMQ, 17 for each worker, and in a reload with a
stack capture up to 40 more.
"""

from __future__ import annotations

import resource
from typing import Final

OWN: Final = 32
"""What the daemon has open without workers and clients."""

EACH_WORKER: Final = 18
"""What it has open for a worker."""

CHANGES: Final = 40
"""What it opens besides while workers are replaced and inspected, and for the control socket."""

RESERVE: Final = 256
"""What is kept from clients where there is plenty."""

FEWEST: Final = 8
"""Connections of clients without which it makes no sense to start."""


class DescriptorError(Exception):
    """The host allows too few. One line that says how many are needed."""


def allow_most() -> None:
    """Have as many as the host lets this process have: each client needs one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def limit() -> int:
    """How many this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def for_clients(limit: int, workers: int) -> int:
    """Of so many descriptors, those for connections of clients (``DescriptorError`` if that is next to none)."""
    needed = OWN + EACH_WORKER * workers + CHANGES
    if limit < needed + FEWEST:
        raise DescriptorError(
            f"the limit on open files is {limit}, and with {workers} workers {needed + FEWEST} are needed: "
            "raise it (ulimit -n, LimitNOFILE=), or have fewer workers"
        )
    return limit - max(needed, min(RESERVE, limit // 4))


def shares(possible: int, wanted: int, listeners: int) -> list[int]:
    """Connections of each listener. The second, for administrators, has its part whatever clients of the first do."""
    first = min(wanted, possible - (listeners - 1) * min(wanted, possible // 4))
    return [first, *[min(wanted, possible - first)] * (listeners - 1)]
