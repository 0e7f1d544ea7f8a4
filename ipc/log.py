"""The log of the daemon and of its workers: one record, one line, as text or as JSON.

Whatever a client or an agent puts into a message cannot begin a line of its own: control characters are escaped in
text, and JSON escapes them anyway. Tracebacks, and stacks of other processes (``extra={"stack": ...}``), keep their
lines in text, indented, since people read them there.

A record stays below ``LONGEST`` bytes, so that nobody on its way splits it, which would let its text begin a line after
all: what is longer is cut, and says so in its place.

A worker's records do not go to its standard error, where anything that an agent prints arrives as well, but over a
socket of their own that keeps records apart: so the supervisor knows a record from a line that only looks like one,
also where several processes write at once. There every line begins with its priority, ``<6>`` for information, as
systemd's journal reads it.

What Penstock itself says in a worker does not depend on what agents' modules do to ``logging`` (``dictConfig`` disables
every logger that there is, ``basicConfig(force=True)`` takes the handlers away, ``logging.disable`` silences all): its
loggers come from ``get_logger``, and are in a hierarchy of their own that those functions do not reach. Outside of
workers, and in tests of agents, they hand their records on to the ordinary loggers of the same names.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, Final

FIELDS: Final = ("request_id", "trace_id", "worker", "agent")
"""Attributes of a record (by ``extra=``) that are shown as such."""

PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Levels as priorities of syslog and of the journal."""

LEVELS: Final = {level: logging.getLevelName(level) for level in PRIORITIES}
"""Names of levels, whatever else ``logging.addLevelName`` calls them."""

LONGEST: Final = 48 * 1024
"""Bytes that a record stays below: journald splits a line that has more. It is the sum of what follows, and a bit."""

MESSAGE: Final = 16 * 1024
TRACEBACK: Final = 12 * 1024
STACK: Final = 10 * 1024
FIELD: Final = 512
"""Bytes that each part of a record may have as it is written."""

_WIDEST: Final = 8
"""Bytes that one character may become: a line break in a traceback, with the indentation and the priority after it."""

_CUT: Final = 64
"""Bytes that the mark of a cut needs."""

Output = Callable[[bytes], None]
"""Takes one record, whole lines, each with its priority before it."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def escape(text: str) -> str:
    """The text without anything that a terminal or a reader of lines could take for more than text."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def cut(text: str, size: int, cost: Callable[[str], int], both_ends: bool = False) -> str:
    """The text, or as much of it as ``size`` bytes have room for, with a mark that says how much is missing.

    ``cost``: bytes that a text will have as it is written. ``both_ends``: what is missing is in the middle.
    """
    if len(text) * _WIDEST <= size or (len(text) <= size and cost(text) <= size):
        return text
    room = size - _CUT
    if not both_ends:
        kept = _most(lambda count: cost(text[:count]), len(text), room)
        return f"{text[:kept]} [... {len(text) - kept} more characters were cut off]"
    first = _most(lambda count: cost(text[:count]), len(text), room // 4)
    last = _most(lambda count: cost(text[len(text) - count :]), len(text) - first, room - room // 4)
    missing = f"[... {len(text) - first - last} characters were cut out]"
    return f"{text[:first]}\n{missing}\n{text[len(text) - last :]}"


def _most(cost: Callable[[int], int], count: int, room: int) -> int:
    """How many of ``count`` characters cost no more than ``room`` bytes."""
    return bisect_right(range(min(count, room) + 1), room, key=cost) - 1


def _size(written: str) -> int:
    """Bytes of what is written, with the priorities of its further lines."""
    return len(written.encode(errors="backslashreplace")) + 3 * written.count("\n")


def _fields(record: logging.LogRecord, cost: Callable[[str], int]) -> dict[str, str]:
    """Those of ``FIELDS`` that the record has."""
    return {name: cut(str(value), FIELD, cost) for name in FIELDS if (value := getattr(record, name, ""))}


def _level(record: logging.LogRecord) -> str:
    return LEVELS.get(record.levelno) or record.levelname


def call_fields(request_id: str, traceparent: str, agent: str, worker: str = "") -> dict[str, str]:
    """What a line that concerns a call says of it, for ``extra=``. What is not known stays empty, and is not shown."""
    return {"request_id": request_id, "trace_id": traceparent[3:35], "worker": worker, "agent": agent}


def stamp(at: float) -> str:
    """Unix seconds as ``2026-01-01T12:00:00.000Z``."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at * 1e3) % 1000:03d}Z"


class TextFormatter(logging.Formatter):
    """``2026-01-01T12:00:00.000Z INFO    penstock.fleet: default:0 is ready``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={escape(value)}" for name, value in _fields(record, _escaped).items())
        level, name = (escape(cut(text, FIELD, _escaped)) for text in (_level(record), record.name))
        message = escape(cut(record.getMessage(), MESSAGE, _escaped))
        line = f"{stamp(record.created)} {level:<7} {name}:{fields} {message}"
        if record.exc_info:
            line += _indented(cut(self.formatException(record.exc_info), TRACEBACK, _traced, both_ends=True))
        if stack := getattr(record, "stack", ""):
            line += _indented(cut(str(stack), STACK, _traced, both_ends=True))
        return line


def _indented(lines: str) -> str:
    return "".join(f"\n    {escape(each)}" for each in lines.splitlines())


def _escaped(text: str) -> int:
    return _size(escape(text))


def _traced(text: str) -> int:
    return _size(_indented(text))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, and the fields that are known."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": stamp(record.created),
            "level": cut(_level(record).lower(), FIELD, _quoted),
            "logger": cut(record.name, FIELD, _quoted),
            "message": cut(record.getMessage(), MESSAGE, _quoted),
            **_fields(record, _quoted),
        }
        if record.exc_info:
            entry["traceback"] = cut(self.formatException(record.exc_info), TRACEBACK, _quoted, both_ends=True)
        if stack := getattr(record, "stack", ""):
            entry["stack"] = cut(str(stack), STACK, _quoted, both_ends=True)
        return _json(entry)


def _json(value: Any) -> str:
    """JSON with nothing in it that a terminal or a reader of lines could take for more than text."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def _quoted(text: str) -> int:
    return _size(_json(text))


def formatter(form: str) -> logging.Formatter:
    """The formatter of ``text`` or ``json``."""
    return JsonFormatter() if form == "json" else TextFormatter()


def line(form: str, level: int, logger: str, message: str, worker: str = "") -> bytes:
    """One line as a logger would make it, with its priority, for what does not come by way of a logger."""
    record = logging.LogRecord(logger, level, "", 0, message, None, None)
    if worker:
        record.worker = worker
    return f"<{PRIORITIES[level]}>{formatter(form).format(record)}\n".encode(errors="backslashreplace")


def _priority(level: int) -> int:
    """The priority of a level, for one between two of the usual ones that of the lower."""
    return min((found for known, found in PRIORITIES.items() if known <= level), default=7)


class _Handler(logging.Handler):
    """Gives every record to an output, each of its lines with the record's priority."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        try:
            mark = f"<{_priority(record.levelno)}>"
            lines = "".join(f"{mark}{line}\n" for line in self.format(record).split("\n"))
            self._output(lines.encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)


class _Logger(logging.Logger):
    """A logger of Penstock's own. Its records are what they are, whatever ``logging.setLogRecordFactory`` was given."""

    def makeRecord(  # noqa: N802, PLR0913 - as in logging.Logger
        self,
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        record = logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)
        record.__dict__.update(extra or {})
        return record


class _PassOn(logging.Handler):
    """Passes records to other handlers, which have locks of their own."""

    def createLock(self) -> None:  # noqa: N802
        self.lock = None


class _HandOn(_PassOn):
    """Hands records on to the ordinary logger of the same name."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


class _Tell(_PassOn):
    """Gives records to the worker's handler, and to those that agents have put beside it on the root logger."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler

    def emit(self, record: logging.LogRecord) -> None:
        self._handler.handle(record)
        others = logging.getLogger().handlers
        if self._handler in others:
            for other in others:
                if other is not self._handler and record.levelno >= other.level:
                    other.handle(record)


_own: Final = logging.Manager(logging.RootLogger(logging.NOTSET))
"""Of Penstock's own loggers in a worker."""
_own.setLoggerClass(_Logger)
_own.root.manager = _own  # whose loggers forget what they knew of levels when its level is set
_own.root.addHandler(_HandOn())


def get_logger(name: str) -> logging.Logger:
    """A logger of Penstock's own, for what runs in workers, beside the agents' modules."""
    return _own.getLogger(name)


_channel = -1


def open_channel(descriptor: int) -> None:
    """Send this process's records over a socket from the next ``configure`` on, each as one packet. It stays open."""
    global _channel
    _channel = descriptor


def _to_channel(record: bytes) -> None:
    os.write(_channel, record)


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
    in_worker = output is None and _channel >= 0
    if in_worker:
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
    if in_worker:
        _own.root.handlers[:] = [_Tell(handler)]
        _own.root.setLevel(level.upper())
    for noisy in ("psycopg", "psycopg.pool", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
