"""``penstock profile``: where a worker spends its time, by py-spy record.

The file is written when the recording is complete, and only then. Ctrl-C cancels the recording, in the daemon too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ..config.readers import duration
from .client import Reply, UnreachableError, add_client_options, explain, fail, request

ENDINGS: Final = {"flamegraph": "svg", "speedscope": "speedscope.json", "raw": "txt"}
"""Format: the ending of the file's name."""

OPENS: Final = {
    "flamegraph": "open it in a browser",
    "speedscope": "open it at https://www.speedscope.app or with `speedscope`",
    "raw": "one stack and its number of samples a line, for flamegraph.pl and the like",
}

MARGIN: Final = 60.0
"""Seconds beyond the recording itself that the daemon may take."""


def add(commands: Any) -> None:
    parser = commands.add_parser("profile", help="where a worker spends its time (py-spy record)", description=__doc__)
    add_client_options(parser)
    parser.add_argument("worker", metavar="WORKER", help="such as default:0; or supervisor")
    parser.add_argument(
        "-d",
        "--duration",
        metavar="SECONDS",
        type=_seconds,
        default=5.0,
        help="how long to record, 0.1 to 60 (default: 5)",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write, - for standard output")
    parser.add_argument("--format", choices=[*ENDINGS], default="flamegraph", help="default: flamegraph")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    output = options.output or f"{options.worker.replace(':', '-').replace('/', '-')}.{ENDINGS[options.format]}"
    if output != "-" and (wrong := _unwritable(Path(output))):
        return fail(f"{output}: {wrong}")
    worker = quote(options.worker, safe=":", errors="surrogateescape")
    path = f"/v1/workers/{worker}/profile?seconds={options.duration:f}&format={options.format}"
    if output != "-":
        print(f"recording {options.worker} for {options.duration:g} s", file=sys.stderr)
    try:
        reply = request(options, "GET", path, timeout=options.duration + MARGIN)
    except UnreachableError as error:
        return fail(str(error))
    if reply.status != 200:
        return fail(explain(reply))
    return _write(reply, output, options.format)


def _write(reply: Reply, output: str, form: str) -> int:
    if output == "-":
        sys.stdout.buffer.write(reply.body)
        return 0
    try:
        Path(output).write_bytes(reply.body)
    except OSError as error:
        return fail(f"{output}: {error.strerror}")
    print(f"{output}: {OPENS[form]}")
    return 0


def _unwritable(path: Path) -> str:
    """Why a file cannot be written, known before the time for a recording is spent; empty if it probably can."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            return "it is a directory"
        if path.exists():
            return "" if os.access(path, os.W_OK) else "it cannot be written"
    if not path.parent.is_dir():
        return "there is no such directory"
    return "" if os.access(path.parent, os.W_OK) else "its directory cannot be written"


def _seconds(value: str) -> float:
    """A duration as the configuration takes it."""
    number = value.replace(".", "", 1)
    try:
        found = float(duration(0.1, above=False)(float(value) if number.isdecimal() else value))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} must be {error}") from None
    if found > 60.0:
        raise argparse.ArgumentTypeError(f"{value!r} must be at most 60 seconds")
    return found
