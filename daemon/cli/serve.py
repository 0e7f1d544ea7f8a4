"""``penstock serve``: run the supervisor in the foreground."""

from __future__ import annotations

import argparse
import os
import signal
from typing import TYPE_CHECKING, Any

from penstock.ipc.prctl import die_with_parent

from ..config.settings import Config
from ..config.sources import load
from ..host import guard
from ..host.workplace import given_directory

if TYPE_CHECKING:
    from ..run import Observe


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """The options by which a command finds the configuration."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="configuration file (default: $PENSTOCK_CONFIG, else /etc/penstock/penstock.toml)",
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override a setting, such as http.bind=..."
    )


def add(commands: Any) -> None:
    parser = commands.add_parser("serve", help="run the supervisor in the foreground", description=__doc__)
    add_config_options(parser)
    parser.add_argument(
        "--agents", metavar="MODULE", nargs="+", action="extend", default=[], help="in place of agents.modules"
    )
    parser.add_argument("--workers", metavar="N", type=int, help="workers of each pool")
    parser.add_argument("--bind", metavar="HOST:PORT", help="in place of http.bind")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, observe: Observe | None = None) -> int:
    """Run the daemon. ``observe``: as ``run.run`` has it, for a program that looks at one from inside."""
    if caller := os.environ.pop("PENSTOCK_CALLER", ""):
        # Started by penstock.workers.serve(): when whoever called that is gone, nobody wants it any more.
        die_with_parent(int(caller), signal.SIGTERM)
    named = options.config or os.environ.get("PENSTOCK_CONFIG")
    # The path as it was given: a reload follows its links again, wherever the daemon is then.
    path = os.path.join(given_directory(os.environ), named) if named else None

    def read() -> Config:
        return load(
            path,
            options.set,
            os.environ,
            agents=options.agents,
            workers=options.workers,
            bind=options.bind,
        )

    config = read()
    door = guard.start()  # while this process is small and has one thread
    from ..run import run as run_daemon  # the other commands need none of what this imports

    return run_daemon(config, read, door, observe)
