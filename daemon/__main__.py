"""The command ``penstock``: find the subcommand, run it, end with its exit status."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` puts the working directory first, if it is there. In it anything may have the name of a module.
    try:
        if sys.path[0] == os.getcwd():
            del sys.path[0]
    except FileNotFoundError:
        pass

import argparse
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from .cli import call, check, ctl, profile, reload, serve, stack, status, streams, top
from .cli.client import fail
from .config.settings import ConfigError

EXIT_FAILURE = 1
EXIT_CONFIGURATION = 78
UNWRITABLE = "standard output cannot be written"


class Version(argparse.Action):
    """Print the installed version and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"penstock {importlib.metadata.version('penstock')}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    made = argparse.ArgumentParser(
        prog="penstock", description="A supervisor of Python worker processes that answer HTTP requests."
    )
    made.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    commands = made.add_subparsers(metavar="COMMAND", required=True)
    for command in (serve, check, call, status, top, stack, profile, reload, ctl):
        command.add(commands)
    for each in commands.choices.values():
        # A command is described by its module's docstring, whose literals have reST's marks.
        each.description = (each.description or "").replace("``", "`")
    return made


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says; ends the process with 2 when that is nothing."""
    made = parser()
    options, left = made.parse_known_args(arguments)
    # argparse has no second look for an argument that may be missing: in `call AGENT --timeout 1 BODY`, BODY is left.
    if len(left) == 1 and getattr(options, "body", "") is None and (left[0] == "-" or not left[0].startswith("-")):
        options.body = left.pop()
    if left:
        made.error(f"unrecognized arguments: {' '.join(left)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 fine, 1 a failure that was explained, 2 wrong usage, 78 bad configuration."""
    try:
        try:
            options = parse(arguments)
            status = int(options.run(options))
        finally:
            sys.stdout.flush()
        return fail(f"{UNWRITABLE}: {streams.failure()}") if streams.failure() else status
    except streams.OutputError as error:
        return fail(f"{UNWRITABLE}: {error}")
    except ConfigError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever reads our output has enough. What is left of it must not fail once more at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE


def command() -> None:
    """The console script."""
    streams.prepare()
    sys.exit(main())


if __name__ == "__main__":
    command()
