"""``penstock status``: print the workers, the queue and the database once."""

from __future__ import annotations

import argparse
import json
from typing import Any, Final

from ..host.listeners import Listeners, describe
from .client import UnreachableError, add_client_options, explain, fail, request

HEADING: Final[tuple[str, ...]] = (
    *("WORKER", "STATE", "PID", "IN FLIGHT", "LOAD ms", "CPU %", "MEMORY"),
    *("P95 ms", "ANSWERED", "RESTARTS", "SINCE", ""),
)


def add(commands: Any) -> None:
    parser = commands.add_parser("status", help="print the status once: workers, queue, database", description=__doc__)
    add_client_options(parser)
    parser.add_argument("--json", action="store_true", help="print the daemon's answer as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        reply = request(options, "GET", "/v1/status", timeout=10.0)
    except UnreachableError as error:
        return fail(str(error))
    if reply.status != 200:
        return fail(explain(reply))
    try:
        text = json.dumps(reply.json, indent=2) if options.json else show(reply.json)
    except (ValueError, KeyError, TypeError):
        return fail("the server there is not Penstock, or another version of it; name the daemon with --url")
    print(text)
    return 0


def show(status: dict[str, Any]) -> str:
    """The status as a page of text."""
    queue, database = status["queue"], status["database"]
    lines = [
        f"penstock {status['version']}: {status['state']}, up {span(status['uptime'])}",
        f"queue     {queue['requests']} of {queue['high_water']} requests,"
        f" {queue['bytes']} of {queue['max_bytes']} bytes"
        + (f", {queue['streams']} streams being sent" if queue.get("streams") else "")
        + (", refusing" if queue["refusing"] else ""),
        f"throttle  {_throttle(status['throttle'])}",
        f"database  {database['mode']}"
        + (
            ""
            if database["mode"] == "off"
            else f", {database['granted']} of {database['max_connections']} connections granted"
        ),
        *([f"listens   {', '.join(describe(Listeners(**status['listening'])))}"] if "listening" in status else []),
        f"agents    {', '.join(agent['name'] for agent in status['agents']) or 'none yet'}",
        "",
    ]
    rows = [HEADING]
    rows += [_row(each) for each in status["workers"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _throttle(throttle: dict[str, Any]) -> str:
    refused = sum(throttle["refused"].values())
    state = "off" if not throttle["enabled"] else "overloaded" if throttle["overloaded"] else "open"
    held = f", {throttle['paced']} of them held back, {throttle['held']} now"
    return f"{state}, {refused} refused so far" + (held if throttle["paced"] or throttle["held"] else "")


def _row(worker: dict[str, Any]) -> tuple[str, ...]:
    return (
        worker["name"],
        worker["state"],
        str(worker["pid"] or "-"),
        f"{worker['in_flight']}/{worker['slots']}",
        f"{worker['load'] * 1e3:.1f}",
        _times(worker["cpu"], 100.0, "d"),
        _times(worker["rss"], 2**-20, "d", " MiB"),
        _times(worker["p95"], 1e3, "f"),
        str(worker["answered"]),
        str(worker["restarts"]),
        span(worker["since"]),
        f"its loop is {worker['health']}" if worker.get("health") in ("late", "stuck") else worker["reason"],
    )


def _times(value: float | None, factor: float, form: str, unit: str = "") -> str:
    """A measured value in another unit, whole (``d``) or with one decimal; ``-`` where nothing was measured."""
    return "-" if value is None else f"{value * factor:.{int(form == 'f')}f}{unit}"


def span(seconds: float) -> str:
    """A duration for people: ``42s``, ``5m07s``, ``3h12m``, ``2d04h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
