"""What a load is made of: kinds of requests, clients that behave alike, and when the requests of an open loop are due."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator

import msgspec


class Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of request in a mix."""

    agent: str
    body: str = "{}"
    weight: float = 1.0
    headers: dict[str, str] = {}
    label: str = ""
    """What the report calls it; empty: the agent's name."""


class Population(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Clients that behave alike. With ``clients`` a closed loop; with ``rate`` or ``steps`` an open one."""

    name: str
    kinds: list[Kind]
    clients: int = 0
    rate: float = 0.0
    """Requests a second of all of them together."""
    steps: list[tuple[float, float]] = []
    """Instead of ``rate``: (seconds, requests a second), one after another."""
    sources: list[str] = []
    """Local addresses that they come from in turn: what the server takes for a client's identity. Empty: any."""
    begin: float = 0.0
    end: float | None = None
    """Seconds from the start of the run; None: its end."""
    even: bool = False
    """Open loop: evenly spaced. Otherwise at random (Poisson)."""
    retries: int = 0
    """How often a refusal with Retry-After is obeyed: the same request again, so many seconds later."""
    patience: float = 10.0
    """Seconds from the moment a request is due after which the client gives up and cuts the connection."""


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole run."""

    host: str
    port: int
    populations: list[Population]
    seconds: float
    seed: int = 1


def arrivals(steps: Iterable[tuple[float, float]], even: bool, rng: random.Random) -> Iterator[float]:
    """The moments of an open loop, in seconds from its start. ``steps``: (seconds, requests a second), in order."""
    begin = 0.0
    for seconds, rate in steps:
        if even:
            yield from (begin + number / rate for number in range(math.ceil(seconds * rate - 1e-9)))
        elif rate > 0:
            # Poisson arrivals know no past, so each step may start anew.
            at = begin + rng.expovariate(rate)
            while at < begin + seconds:
                yield at
                at += rng.expovariate(rate)
        begin += seconds


def request_bytes(kind: Kind, host: str, port: int) -> bytes:
    """The whole request."""
    body = kind.body.encode()
    headers = "".join(f"{name}: {value}\r\n" for name, value in kind.headers.items())
    head = (
        f"POST /v1/agents/{kind.agent} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body
