"""``penstock check``: check the configuration, the imports and the database, and print what would be served."""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import Any

from ..config.sources import file, load
from .serve import add_config_options


def add(commands: Any) -> None:
    parser = commands.add_parser("check", help="check configuration, imports and the database", description=__doc__)
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    config = load(options.config, options.set, os.environ)
    # The other commands need none of what these import.
    from ..config.owner import owner
    from ..front import tls, tokens
    from .inspection import inspect

    owner("http.socket_owner", config.http.socket_owner)
    owner("control.owner", config.control.owner)
    known = tokens.load(config.http.tokens_file)
    tls.context(config.http.tls_certificate, config.http.tls_key)
    inspection = asyncio.run(inspect(config))
    print(f"settings    {file(options.config, os.environ) or 'built in, no file'}")
    print(f"listens on  {config.http.bind}" + (", with TLS" if config.http.tls_certificate else ""))
    if config.http.admin_bind:
        print(f"admin on    {config.http.admin_bind}")
    print(f"control     {config.control.socket}")
    print(f"tokens      {'none asked for' if known is None else len(known)}")
    print(f"state in    {config.supervision.state_dir}")
    print(f"database    {inspection.database}")
    for name, pool in config.pools.items():
        print(f"pool        {name}: {pool.workers} workers, {pool.concurrency} calls each, {pool.balance}")
        for agent in inspection.agents:
            if agent.pool == name:
                kind = f"{agent.kind}, {(agent.database and 'database') or 'no database'}"
                print(f"  agent     {agent.name} ({kind}) from {agent.module}")
    for broken in inspection.broken:
        print(f"broken      {broken.module}: {broken.error}")
    if inspection.failed:
        print(f"failed      {inspection.failed}")
    return inspection.status
