"""How the commands talk to a running daemon: plain HTTP over TCP or its Unix socket, by the standard library."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..config import ConfigError, load
from .serve import add_config_options


class UnreachableError(Exception):
    """No daemon answers. The text says where and what to do."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response."""

    status: int
    content_type: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def add_client_options(parser: argparse.ArgumentParser) -> None:
    """The options by which a command finds the daemon."""
    add_config_options(parser)
    parser.add_argument(
        "--url",
        metavar="URL",
        help="the daemon: http://HOST:PORT or unix:/PATH (default: $PENSTOCK_URL, else http.bind of the configuration)",
    )


def address(options: argparse.Namespace) -> str:
    """Where the daemon listens, as ``HOST:PORT`` or ``unix:PATH`` (``ConfigError``)."""
    given = options.url or os.environ.get("PENSTOCK_URL") or ""
    if given.startswith("unix:"):
        return str(given)
    if given:
        parts = urlsplit(given if "//" in given else f"//{given}")
        if not parts.hostname or parts.scheme not in ("", "http"):
            raise ConfigError(f"--url {given}: write it as http://HOST:PORT or unix:/PATH")
        return f"{parts.hostname}:{parts.port or 80}"
    bind = load(options.config, options.set, os.environ).http.bind
    host, separator, port = bind.rpartition(":")
    if separator and host in ("0.0.0.0", "[::]"):
        return f"127.0.0.1:{port}" if host == "0.0.0.0" else f"[::1]:{port}"
    return bind


def request(
    options: argparse.Namespace,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 60.0,
) -> Reply:
    """One request (``UnreachableError``, ``ConfigError``). ``timeout``: seconds of silence."""
    where = address(options)
    connection: http.client.HTTPConnection
    if where.startswith("unix:"):
        connection = UnixConnection(where.removeprefix("unix:"), timeout)
    else:
        host, _, port = where.rpartition(":")
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Reply(response.status, response.headers.get_content_type(), response.read())
    except TimeoutError as error:
        raise UnreachableError(f"no answer from {where} within {timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise UnreachableError(
            f"no daemon answers at {where} ({reason}); start one with `penstock serve`, or name it with --url"
        ) from error
    finally:
        connection.close()


def explain(reply: Reply) -> str:
    """A problem in one line."""
    try:
        problem = reply.json
        name = str(problem["type"]).rpartition(":")[2]
        return f"{name} ({reply.status}): {problem['detail']} [request {problem['request_id']}]"
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status}: {reply.body[:200].decode(errors='replace')}"


def fail(message: str) -> int:
    """Say why on standard error; the exit status for it."""
    print(f"penstock: {message}", file=sys.stderr)
    return 1
