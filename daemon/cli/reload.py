"""``penstock reload``: rolling restart on new code and configuration."""

from __future__ import annotations

import argparse
from typing import Any

from .client import UnreachableError, add_client_options, explain, fail, request


def add(commands: Any) -> None:
    parser = commands.add_parser("reload", help="rolling restart on new code and configuration", description=__doc__)
    add_client_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        reply = request(options, "POST", "/v1/reload", timeout=600.0)
    except UnreachableError as error:
        return fail(str(error))
    if reply.status != 202:
        return fail(explain(reply))
    print("reloading: the new code and configuration are proven, workers are replaced one after another")
    return 0
