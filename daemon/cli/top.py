"""``penstock top``: workers, queue, throttle, host and agents, live in the terminal."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from typing import Any

from .client import UnreachableError, add_client_options, explain, fail, request, seconds

EXIT_USAGE = 2


def add(commands: Any) -> None:
    parser = commands.add_parser("top", help="the status, live in the terminal", description=__doc__)
    add_client_options(parser)
    parser.add_argument(
        "-i",
        "--interval",
        metavar="SECONDS",
        type=functools.partial(seconds, least=0.1),
        default=1.0,
        help="seconds between two updates (default: 1)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        print("penstock: top needs a terminal; `penstock status` prints the status once", file=sys.stderr)
        return EXIT_USAGE
    # What would be wrong from the start is said where it can be read, and not on a screen that is about to go.
    try:
        reply = request(options, "GET", "/v1/status", timeout=10.0)
        if reply.status != 200:
            return fail(explain(reply))
        if "workers" not in reply.json:
            raise ValueError
    except UnreachableError as error:
        return fail(str(error))
    except (ValueError, TypeError):
        return fail("the server there is not Penstock, or another version of it; name the daemon with --url")
    from .live.app import Top  # the other commands need none of what this imports

    try:
        screen = Top(options)
    except UnreachableError as error:
        return fail(str(error))
    return screen.run() or 0
