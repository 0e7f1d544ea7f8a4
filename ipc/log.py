"""The log of the daemon and of its workers: one record, one line, as text or as JSON.

Whatever a client or an agent puts into a message cannot begin a line of its own: control characters are escaped in
text, and JSON escapes them anyway. Tracebacks, and stacks of other processes (``extra={"stack": ...}``), keep their
lines in text, indented, since people read them there.

A worker's records do not go to its standard error, where anything that an agent prints arrives as well, but over a
pipe of their own: so the supervisor knows a record from a line that only looks like one. There every line begins with
its priority, ``<6>`` for information, as systemd's journal reads it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

FIELDS: Final = ("request_id", "trace_id", "worker", "agent")
"""Attributes of a record (by ``extra=``) that are shown as such."""

PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Levels as priorities of syslog and of the journal."""

Output = Callable[[bytes], None]
"""Takes whole lines, each with its priority before it."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def escape(text: str) -> str:
    """The text without anything that a terminal or a reader of lines could take for more than text."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def call_fields(request_id: str, traceparent: str, agent: str, worker: str = "") -> dict[str, str]:
    """What a line that concerns a call says of it, for ``extra=``. What is not known stays empty, and is not shown."""
    return {"request_id": request_id, "trace_id": traceparent[3:35], "worker": worker, "agent": agent}


def stamp(at: float) -> str:
    """Unix seconds as ``2026-01-01T12:00:00.000Z``."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at * 1e3) % 1000:03d}Z"


class TextFormatter(logging.Formatter):
    """``2026-01-01T12:00:00.000Z INFO    penstock.fleet: default:0 is ready``."""

    def format(self, record: logging.LogRecord) -> str:
        marks = "".join(f" {name}={escape(str(value))}" for name in FIELDS if (value := getattr(record, name, "")))
        line = f"{stamp(record.created)} {record.levelname:<7} {record.name}:{marks} {escape(record.getMessage())}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += _indented(trace)
        return line + _indented(getattr(record, "stack", ""))


def _indented(lines: str) -> str:
    return "".join(f"\n    {escape(each)}" for each in lines.splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, and the fields that are known."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": stamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({name: value for name in FIELDS if (value := getattr(record, name, ""))})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        if stack := getattr(record, "stack", ""):
            entry["stack"] = stack
        return json.dumps(entry, ensure_ascii=False, default=str)


def formatter(form: str) -> logging.Formatter:
    """The formatter of ``text`` or ``json``."""
    return JsonFormatter() if form == "json" else TextFormatter()


def line(form: str, level: int, logger: str, message: str, worker: str = "") -> bytes:
    """One line as a logger would make it, with its priority, for what does not come by way of a logger."""
    record = logging.LogRecord(logger, level, "", 0, message, None, None)
    if worker:
        record.worker = worker
    return f"<{PRIORITIES[level]}>{formatter(form).format(record)}\n".encode(errors="backslashreplace")


class _Handler(logging.Handler):
    """Gives every record to an output, each of its lines with the record's priority."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        try:
            mark = f"<{PRIORITIES.get(record.levelno, 6)}>"
            lines = "".join(f"{mark}{line}\n" for line in self.format(record).split("\n"))
            self._output(lines.encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)


_channel = -1


def open_channel(descriptor: int) -> None:
    """Send this process's records over a pipe from the next ``configure`` on. The pipe stays open."""
    global _channel
    _channel = descriptor


def _to_channel(lines: bytes) -> None:
    rest = memoryview(lines)
    while rest:
        rest = rest[os.write(_channel, rest) :]


class _Filter(logging.Filter):
    """Adds what is known of the worker and of the call to every record."""

    def __init__(self, worker: str, fields: Callable[[], Mapping[str, str]] | None) -> None:
        super().__init__()
        self._worker = worker
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        if self._worker and not getattr(record, "worker", ""):
            record.worker = self._worker
        for name, value in (self._fields() if self._fields is not None else {}).items():
            if not getattr(record, name, ""):
                setattr(record, name, value)
        return True


def configure(
    level: str,
    form: str,
    worker: str = "",
    fields: Callable[[], Mapping[str, str]] | None = None,
    output: Output | None = None,
) -> None:
    """Log from ``level`` up, as ``text`` or ``json``. Can be called again at a reload.

    ``worker``: the name that every line is to carry; ``fields`` gives more of ``FIELDS`` for the moment of a line.
    ``output`` gets the lines; without one they go over the channel, or to standard error if none was opened.
    """
    if output is None and _channel >= 0:
        output = _to_channel
    handler = logging.StreamHandler(sys.stderr) if output is None else _Handler(output)
    handler.setFormatter(formatter(form))
    handler.addFilter(_Filter(worker, fields))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    # What agents log by loggers of their own is the workers' log too; libraries are heard when something is wrong.
    root.setLevel(max(logging.INFO, logging.getLevelName(level.upper())) if worker else logging.WARNING)
    logging.getLogger("penstock").setLevel(level.upper())
    for noisy in ("psycopg", "psycopg.pool", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
