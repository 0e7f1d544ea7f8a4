"""The command ``penstock``: find the subcommand, run it, end with its exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .cli import call, check, reload, serve, status
from .config import ConfigError

EXIT_FAILURE = 1
EXIT_CONFIGURATION = 78


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    made = argparse.ArgumentParser(
        prog="penstock", description="A supervisor of Python worker processes that answer HTTP requests."
    )
    commands = made.add_subparsers(metavar="COMMAND", required=True)
    for command in (serve, check, call, status, reload):
        command.add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 fine, 1 a failure that was explained, 2 wrong usage, 78 bad configuration."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ConfigError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever reads our output has enough; there is nobody to tell.
        sys.stderr.close()
        return EXIT_FAILURE


def command() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    command()
