"""``penstock stack``: what a worker is doing now, by py-spy dump, with the calls that it has."""

from __future__ import annotations

import argparse
import sys
from typing import Any
from urllib.parse import quote

from .client import UnreachableError, add_client_options, explain, fail, request


def add(commands: Any) -> None:
    parser = commands.add_parser("stack", help="what a worker is doing now (py-spy dump)", description=__doc__)
    add_client_options(parser)
    parser.add_argument("worker", metavar="WORKER", help="such as default:0; or supervisor")
    parser.add_argument("--json", action="store_true", help="print the daemon's answer as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    path = f"/v1/workers/{quote(options.worker, safe=':', errors='surrogateescape')}/stack"
    kind = "application/json" if options.json else "text/plain"
    try:
        reply = request(options, "GET", path, headers={"Accept": kind}, timeout=30.0)
    except UnreachableError as error:
        return fail(str(error))
    if reply.status != 200:
        return fail(explain(reply))
    sys.stdout.buffer.write(reply.body + b"\n" * options.json)
    return 0
