"""``penstock ctl``: the stock supervisorctl, pointed at this daemon's control socket."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..config.settings import Control
from ..config.sources import load
from ..host.state import SUN_PATH
from .client import fail
from .serve import add_config_options


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "ctl",
        help="supervisorctl for this daemon: status, stop, start, restart, tail, ...",
        description=f"{__doc__} Without arguments it prompts for commands; `penstock ctl help` lists them.",
    )
    add_config_options(parser)
    parser.add_argument("words", metavar="WORD", nargs=argparse.REMAINDER, help="a command of supervisorctl")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """supervisorctl's own exit status."""
    control = load(options.config, options.set, os.environ).control
    from supervisor import supervisorctl

    from .foreground import Foreground

    supervisorctl.fgthread = Foreground
    # An empty file in memory, so that it does not find another daemon's.
    nothing = os.memfd_create("supervisorctl.conf")
    os.write(nothing, b"[supervisorctl]\nprompt = penstock\n")
    try:
        supervisorctl.main(["-c", f"/proc/self/fd/{nothing}", *_options(control), *options.words])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except OSError as error:
        return fail(f"standard input: {error.strerror}")
    finally:
        Foreground.end_all()
        os.close(nothing)
    return 0


def _options(control: Control) -> list[str]:
    """What points it at the socket. It runs in this process, so that a password is on no command line."""
    path = control.socket
    if len(os.fsencode(path)) > SUN_PATH:
        # Longer than the address of a socket can be, but from its own directory it is not.
        os.chdir(os.path.dirname(path))
        path = os.path.basename(path)
    arguments = ["-s", f"unix://{path}"]
    # A digest is no password: then supervisorctl asks for it.
    if control.username and not control.password.startswith("{SHA}"):
        arguments += ["-u", control.username, "-p", control.password]
    return arguments
