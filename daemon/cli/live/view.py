"""From a status to the words and rows on the screen: total functions, without a terminal.

What a daemon does not say (an older one, or one that has not measured it yet) is a dash. Names and texts from the
daemon may hold anything, so control characters are made visible: a terminal would obey them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ..status import span

NONE: Final = "\N{EN DASH}"
BAR: Final = 24
"""Characters of the queue's bar."""

Row = dict[str, Any]


def part(value: Any, *path: str) -> Any:
    """What lies at a path of keys; None where there is nothing."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def rows(status: Any, key: str) -> list[Row]:
    """A list of objects in a status. Agents may be told by their names alone."""
    section = part(status, key)
    listed = section if isinstance(section, list) else []
    return [each if isinstance(each, dict) else {"name": str(each)} for each in listed]


def text(value: Any) -> str:
    """One line of text that a terminal can be given."""
    if value is None or value == "":
        return NONE
    return plain(" ".join(str(value).split()))


def plain(line: Any) -> str:
    """A line as it is, but for what a terminal would obey."""
    return "".join(each if each.isprintable() else "·" for each in str(line).replace("\t", "    "))


def number(value: Any, unit: str = "", factor: float = 1.0) -> str:
    """Three digits or so, and the unit."""
    if not _is_number(value):
        return NONE
    value *= factor
    digits = 0 if value == 0 or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}{unit}"


def count(value: Any) -> str:
    return f"{value:.0f}" if _is_number(value) else NONE


def percent(value: Any) -> str:
    """Of a fraction."""
    return f"{value * 100:.0f}%" if _is_number(value) else NONE


def duration(value: Any) -> str:
    """Short times in milliseconds, long ones in seconds."""
    if not _is_number(value):
        return NONE
    if value < 1.0:
        return number(value, "ms", 1e3)
    return f"{value:.1f}s" if value < 60 else span(value)


def size(value: Any) -> str:
    """Bytes in a unit that leaves at most four digits."""
    if not _is_number(value):
        return NONE
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    step = 0
    while value >= 1024 and step < len(units) - 1:
        value, step = value / 1024, step + 1
    return f"{value:.1f} {units[step]}" if 0 < value < 10 and step else f"{value:.0f} {units[step]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Lines


def headline(status: Any, where: str) -> str:
    uptime = part(status, "uptime")
    up = f", up {span(uptime)}" if _is_number(uptime) else ""
    return f"penstock {text(part(status, 'version'))} at {where}: {text(part(status, 'state'))}{up}"


def traffic(status: Any) -> str:
    section = part(status, "traffic")
    return (
        f"{number(part(section, 'rate'))}/s  refused {number(part(section, 'refused'))}/s"
        f"  failed {number(part(section, 'failed'))}/s  p50 {duration(part(section, 'p50'))}"
        f"  p95 {duration(part(section, 'p95'))}  p99 {duration(part(section, 'p99'))}"
    )


def queue(status: Any) -> str:
    section = part(status, "queue")
    waiting, high, low = (part(section, key) for key in ("requests", "high_water", "low_water"))
    line = f"{bar(waiting, low, high)} {count(waiting)} wait, marks {count(low)}, {count(high)}"
    line += "  REFUSING" if part(section, "refusing") else ""
    line += f"  oldest {duration(part(section, 'oldest'))}"
    line += f"  {size(part(section, 'bytes'))} of {size(part(section, 'max_bytes'))}"
    streams = part(section, "streams")
    return line + (f"  streams {count(streams)}" if streams else "")


def bar(value: Any, low: Any, high: Any, width: int = BAR) -> str:
    """``[####|   ]``: how full up to the high mark, with the low mark in its place: half of a cell that is full."""
    if not all(_is_number(each) for each in (value, low, high)) or high <= 0:
        return f"[{' ' * width}]"
    full = max(0, min(width, math.ceil(value * width / high)))
    cells = ["█"] * full + [" "] * (width - full)
    mark = min(width - 1, max(0, round(low * width / high)))
    cells[mark] = "▐" if mark < full else "┃"
    return f"[{''.join(cells)}]"


def _pace(throttle: Any) -> str:
    """Of what the slowest pool should get done."""
    paces = part(throttle, "pace")
    known = [each for each in paces.values() if _is_number(each)] if isinstance(paces, dict) else []
    return percent(min(known)) if known else NONE


def throttle(status: Any) -> str:
    section = part(status, "throttle")
    if not section:
        return NONE
    if part(section, "enabled") is False:
        line = "off"
    else:
        line = f"limit {count(part(section, 'limit'))}  delay {duration(part(section, 'delay'))}"
        line += f" of {duration(part(section, 'target'))}  pace {_pace(section)}"
        line += "  OVERLOADED" if part(section, "overloaded") else ""
    refused = part(section, "refused")
    if not isinstance(refused, dict):
        return line
    told = [f"{text(reason)} {count(total)}" for reason, total in refused.items() if total]
    if told and _is_number(part(section, "held")):
        line += f"  held back {count(part(section, 'held'))}"
    return line + (f"  refused: {', '.join(told)}" if told else "")


def host(status: Any) -> str:
    section, own = part(status, "host"), part(status, "supervisor")
    if not section:
        return NONE
    load = part(section, "load")
    loads = " ".join(f"{each:.1f}" if _is_number(each) else NONE for each in load) if isinstance(load, list) else NONE
    line = f"CPU {percent(part(section, 'cpu'))} of {count(part(section, 'cpus'))}"
    line += (
        f"  memory {size(part(section, 'memory', 'used'))} of {size(part(section, 'memory', 'total'))}  load {loads}"
    )
    kinds = [(kind, part(section, "pressure", kind, "some")) for kind in ("cpu", "memory", "io")]
    pressure = ", ".join(f"{kind} {value:.0f}%" for kind, value in kinds if _is_number(value))
    line += f"  pressure {pressure or NONE}"
    return line + f"  supervisor {percent(part(own, 'cpu'))}, {size(part(own, 'rss'))}"


def database(status: Any) -> str:
    section = part(status, "database")
    if part(section, "mode") == "off":
        return "off"
    return (
        f"{text(part(section, 'mode'))}, {count(part(section, 'granted'))} of {count(part(section, 'max_connections'))}"
    )


def series(status: Any, key: str) -> list[float]:
    """A measured history; where nothing was measured (no answers, no latency) it is at the bottom."""
    section = part(status, "history", key)
    return [float(value) if _is_number(value) else 0.0 for value in section] if isinstance(section, list) else []


# Tables


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, what stands in it, and by what it sorts."""

    title: str
    show: Callable[[Row], str]
    key: Callable[[Row], Any]
    falling: bool = True
    """A number: sorted with the largest first, as one looks at measured values."""


def _column(title: str, form: Callable[[Any], str], *path: str) -> Column:
    return Column(title, lambda row: form(part(row, *path)), lambda row: _measured(part(row, *path)))


def _measured(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _words(title: str, key: str) -> Column:
    return Column(title, lambda row: text(row.get(key)), lambda row: str(row.get(key) or ""), falling=False)


def _flight(row: Row) -> str:
    return f"{count(row.get('in_flight'))}/{count(row.get('slots'))}"


def _per_second(value: Any) -> str:
    return number(value)


def _since(value: Any) -> str:
    return span(value) if _is_number(value) else NONE


WORKERS: Final = (
    _words("WORKER", "name"),
    _words("STATE", "state"),
    Column("FLIGHT", _flight, lambda row: _measured(row.get("in_flight"))),
    _column("CPU", percent, "cpu"),
    _column("MEMORY", size, "rss"),
    _column("P95", duration, "p95"),
    _column("RATE/s", _per_second, "rate"),
    _column("RESTARTS", count, "restarts"),
    _column("OLDEST", duration, "oldest"),
    _column("LAG", duration, "loop_lag"),
    _column("SINCE", _since, "since"),
    _words("REASON", "reason"),
)

AGENTS: Final = (
    _words("AGENT", "name"),
    _words("POOL", "pool"),
    _words("KIND", "kind"),
    _column("FLIGHT", count, "in_flight"),
    _column("WAIT", count, "waiting"),
    _column("RATE/s", _per_second, "rate"),
    _column("ERRORS/s", _per_second, "errors"),
    _column("P50", duration, "p50"),
    _column("P95", duration, "p95"),
    _column("P99", duration, "p99"),
    _column("CPU", duration, "cpu"),
    _column("DB", duration, "db"),
)


def _at(value: Any) -> str:
    return time.strftime("%H:%M:%S", time.localtime(value)) if _is_number(value) else NONE


EVENTS: Final = (
    _column("TIME", _at, "at"),
    _words("KIND", "kind"),
    _words("WORKER", "worker"),
    _words("AGENT", "agent"),
    _words("WHAT", "text"),
)


def ordered(rows: list[Row], column: Column) -> list[Row]:
    """Sorted by a column. What is not known comes last, and equals stay in their order."""
    known = [row for row in rows if column.key(row) is not None]
    known.sort(key=column.key, reverse=column.falling)
    return known + [row for row in rows if column.key(row) is None]
