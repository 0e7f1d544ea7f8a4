"""The log of the daemon and of its workers: one record, one line, on standard error, as text or as JSON.

Whatever a client or an agent puts into a message cannot begin a line of its own: control characters are escaped in
text, and JSON escapes them anyway. Tracebacks keep their lines in text, indented, since people read them there.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

FIELDS: Final = ("request_id", "worker", "agent")
"""Attributes of a record (by ``extra=``) that are shown as such."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def escape(text: str) -> str:
    """The text without anything that a terminal or a reader of lines could take for more than text."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _stamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """``2026-01-01T12:00:00.000Z INFO    penstock.fleet: default:0 is ready``."""

    def format(self, record: logging.LogRecord) -> str:
        marks = "".join(f" {name}={escape(str(value))}" for name in FIELDS if (value := getattr(record, name, "")))
        line = f"{_stamp(record)} {record.levelname:<7} {record.name}:{marks} {escape(record.getMessage())}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {escape(each)}" for each in trace.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, and the fields that are known."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({name: value for name in FIELDS if (value := getattr(record, name, ""))})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class _Filter(logging.Filter):
    """Adds what is known of the worker and of the call to every record."""

    def __init__(self, worker: str, fields: Callable[[], Mapping[str, str]] | None) -> None:
        super().__init__()
        self._worker = worker
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        if self._worker and not hasattr(record, "worker"):
            record.worker = self._worker
        for name, value in (self._fields() if self._fields is not None else {}).items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def configure(level: str, form: str, worker: str = "", fields: Callable[[], Mapping[str, str]] | None = None) -> None:
    """Log to standard error from ``level`` up, as ``text`` or ``json``. Can be called again at a reload.

    ``worker``: the name that every line is to carry; ``fields`` gives more of ``FIELDS`` for the moment of a line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
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
