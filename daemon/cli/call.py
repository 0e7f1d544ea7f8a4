"""``penstock call``: send one request to an agent, print the result."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from pathlib import Path
from typing import Any, Never
from urllib.parse import quote

from .client import Reply, UnreachableError, add_client_options, explain, fail, open_request, seconds


def add(commands: Any) -> None:
    parser = commands.add_parser("call", help="send one request, print the result", description=__doc__)
    add_client_options(parser)
    parser.add_argument("agent", metavar="AGENT")
    parser.add_argument("body", metavar="BODY", nargs="?", help="JSON, @FILE, or - for standard input (default: none)")
    parser.add_argument("--timeout", metavar="SECONDS", type=seconds, help="the request's deadline (Request-Timeout)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        body = _body(options.body)
    except OSError as error:
        return fail(f"{options.body[1:] or 'standard input'}: {error.strerror}")
    except ValueError as error:
        print(f"penstock: the body is not JSON: {error}", file=sys.stderr)
        return 2
    headers: dict[str, str] = {}
    if options.timeout is not None:
        headers["Request-Timeout"] = f"{options.timeout:f}"
    try:
        path = f"/v1/agents/{quote(options.agent, safe='', errors='surrogateescape')}"
        with open_request(options, "POST", path, body, headers, (options.timeout or 3600.0) + 5.0) as response:
            kind = response.headers.get_content_type()
            if response.status < 400 and response.chunked:
                try:
                    return _print_stream(response, kind)
                except http.client.IncompleteRead:
                    return fail("the stream ended before it was complete")
            reply = Reply(response.status, kind, response.read())
    except UnreachableError as error:
        return fail(str(error))
    if reply.status >= 400:
        return fail(explain(reply))
    return _print(reply)


def _print(reply: Reply) -> int:
    is_json = reply.content_type == "application/json"
    if is_json and sys.stdout.isatty():
        print(json.dumps(reply.json, indent=2, ensure_ascii=False))
    else:
        sys.stdout.buffer.write(reply.body + b"\n" * is_json)
    return 0


def _print_stream(response: http.client.HTTPResponse, kind: str) -> int:
    """What comes, as it comes. A stream of items that failed ends with its problem, which is an error here."""
    out = sys.stdout.buffer
    if kind != "application/x-ndjson":
        while piece := response.read1(1 << 16):
            out.write(piece)
            out.flush()
        return 0
    last = b""
    while line := response.readline():
        if last:
            out.write(last)
        # What may be the problem is kept until it is known whether something follows.
        last = line if line.startswith(b'{"type":"urn:penstock:problem:') else b""
        if not last:
            out.write(line)
        out.flush()
    return fail(explain(Reply(response.status, kind, last))) if last else 0


def _body(given: str | None) -> bytes:
    """The bytes to send. JSON on the command line is checked here (``ValueError``); files go as they are."""
    if given is None:
        return b""
    if given == "-":
        return sys.stdin.buffer.read()
    if given.startswith("@"):
        return Path(given[1:]).read_bytes()
    try:
        json.loads(given, parse_constant=_refuse)
    except RecursionError:
        pass  # deeper than can be checked here: for the daemon to judge
    return given.encode()


def _refuse(constant: str) -> Never:
    raise ValueError(f"{constant} is not a JSON value")
