"""Load on an HTTP server as a command, for one agent or for a whole ``Spec`` written as JSON:

    python -m bench.load --url http://127.0.0.1:8080 --agent echo --body '{}' --clients 10 --seconds 5
    python -m bench.load --url http://127.0.0.1:8080 --agent echo --body '{}' --rate 500 --seconds 5
    python -m bench.load --url http://127.0.0.1:8080 --spec mix.json

``generator.py`` says how it is made, ``spec.py`` what it can be asked for, ``series.py`` what it finds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from bench.generator import run
from bench.series import pack
from bench.spec import Kind, Population, Spec
from bench.tables import summary


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--agent", default="echo")
    parser.add_argument("--body", default="{}", help="JSON")
    parser.add_argument("--clients", type=int, default=10, help="a closed loop of so many (default)")
    parser.add_argument("--rate", type=float, help="requests a second: an open loop")
    parser.add_argument("--even", action="store_true", help="open loop: evenly spaced instead of at random")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--source", action="append", default=[], help="a local address to come from; may be repeated")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="may be repeated")
    parser.add_argument("--timeout", type=float, help="Request-Timeout of each request, in seconds")
    parser.add_argument("--retries", type=int, default=0, help="how often Retry-After is obeyed")
    parser.add_argument("--spec", metavar="FILE", help="a whole Spec as JSON, instead of all the above; - is stdin")
    parser.add_argument("--packed", action="store_true", help="write the report for a program, not for people")
    return parser.parse_args()


def _spec(options: argparse.Namespace) -> Spec:
    if options.spec:
        text = sys.stdin.buffer.read() if options.spec == "-" else Path(options.spec).read_bytes()
        return msgspec.json.decode(text, type=Spec)
    host, _, port = options.url.removeprefix("http://").strip("/").rpartition(":")
    pairs = [header.partition(":") for header in options.header]
    headers = {name.strip(): value.strip() for name, _, value in pairs}
    if options.timeout is not None:
        headers["Request-Timeout"] = f"{options.timeout:f}"
    population = Population(
        "load",
        [Kind(options.agent, options.body, headers=headers)],
        clients=0 if options.rate else options.clients,
        rate=options.rate or 0.0,
        even=options.even,
        sources=options.source,
        retries=options.retries,
    )
    return Spec(host, int(port), [population], options.seconds)


def main() -> int:
    """The command."""
    options = _options()
    try:
        report = run(_spec(options))
    except (OSError, ValueError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    if options.packed:
        # Not sys.stdout.buffer: with PYTHONUNBUFFERED that is the bare file, whose writes may be cut short.
        with open(sys.stdout.fileno(), "wb", closefd=False) as output:
            output.write(pack(report))
    else:
        print(summary(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
