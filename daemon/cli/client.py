"""How the commands talk to a running daemon: HTTP over TCP, TLS or its Unix socket, by the standard library.

A daemon whose port the system chose, and one on another address than the default where none is configured, is found by
its state directory, in which it writes down where it listens.

With ``$PENSTOCK_TOKEN`` set, each request brings that token. With ``http.admin_bind`` the second listener is asked,
which serves everything. Over TLS a daemon that is found by its configuration has to show that very certificate,
whatever names are in it; one that is named by ``https://`` has to show one that this host trusts.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..config.readers import duration
from ..config.settings import BIND, Config, ConfigError
from ..config.sources import load
from ..host import listeners
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
class Address:
    """Where a daemon is: ``HOST:PORT`` or ``unix:PATH``, and the TLS to speak there."""

    where: str
    tls: ssl.SSLContext | None = None

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """A connection that is not open yet. ``timeout``: seconds of silence."""
        if self.where.startswith("unix:"):
            return UnixConnection(self.where.removeprefix("unix:"), timeout)
        host, _, port = self.where.rpartition(":")
        if self.tls is not None:
            return http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=timeout, context=self.tls)
        return http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout)


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
        type=named,
        help="the daemon: http://HOST:PORT, https://HOST:PORT or unix:/PATH"
        " (default: $PENSTOCK_URL, else what the configuration binds)",
    )


def seconds(value: str, least: float = 0.001) -> float:
    """An option's duration, as the configuration takes it. Less than a millisecond is nothing that can be kept."""
    number = value.replace(".", "", 1)
    try:
        return float(duration(least, above=False)(float(value) if number.isdecimal() else value))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} must be {error}") from None


def address(options: argparse.Namespace) -> Address:
    """Where the daemon listens (``ConfigError``, ``UnreachableError``)."""
    if isinstance(options.url, Address):
        return options.url
    if given := os.environ.get("PENSTOCK_URL"):
        try:
            return named(given)
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"PENSTOCK_URL: {error}") from error
    return _configured(load(options.config, options.set, os.environ))


def named(url: str) -> Address:
    """What a URL names (``ArgumentTypeError``, with what is allowed)."""
    if url.startswith("unix:/"):
        return Address(url)
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("", "http", "https"):
        raise argparse.ArgumentTypeError(f"{url!r}: write it as http://HOST:PORT, https://HOST:PORT or unix:/PATH")
    if parts.scheme == "https":
        return Address(f"{host}:{port or 443}", ssl.create_default_context())
    return Address(f"{host}:{port or 80}")


def _configured(config: Config) -> Address:
    settings = config.http
    bind = _bound(config)
    host, separator, port = bind.rpartition(":")
    if separator and host in ("0.0.0.0", "[::]"):
        bind = f"127.0.0.1:{port}" if host == "0.0.0.0" else f"[::1]:{port}"
    if bind.startswith("unix:") or not settings.tls_certificate:
        return Address(bind)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(settings.tls_certificate)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"http.tls_certificate: {settings.tls_certificate}: {error.strerror or error}") from error
    return Address(bind, context)


def _bound(config: Config) -> str:
    """What the daemon listens on: as configured, or as it says itself where the configuration leaves that open."""
    bind = config.http.admin_bind or config.http.bind
    chosen = not bind.startswith("unix:") and bind.rpartition(":")[2].strip("0") == ""
    if not chosen and bind != BIND:
        return bind
    found = listeners.find(Path(config.supervision.state_dir))
    if found is not None:
        return [*found.admin, *found.http][0]
    if chosen:
        raise UnreachableError(
            f"no daemon runs on the state directory {config.supervision.state_dir}, and without one nobody knows the"
            f" port for {bind}; start one with `penstock serve`, or name it with --url"
        )
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
    found = address(options)
    where = found.where
    connection = found.connection(timeout)
    headers = dict(headers or {})
    if token := os.environ.get("PENSTOCK_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.request(method, path, body, headers)
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
    """Say why on standard error, in one line; the exit status for it."""
    print("penstock: " + " ".join(message.splitlines()), file=sys.stderr)
    return 1
