"""Does to ``logging`` what modules do, when it is imported and when it is told to."""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Callable
from typing import Any

from penstock.workers import Context, agent

CONSOLE: dict[str, Any] = {
    "version": 1,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"level": "ERROR", "handlers": ["console"]},
}


def refuse(*_: Any, **__: Any) -> logging.LogRecord:
    raise RuntimeError("no record is made")


KINDS: dict[str, Callable[[], object]] = {
    "dictConfig": lambda: logging.config.dictConfig(CONSOLE),
    "basicConfig": lambda: logging.basicConfig(level=logging.CRITICAL, force=True),
    "handlers": logging.getLogger().handlers.clear,
    "disable": lambda: logging.disable(logging.CRITICAL),
    "shutdown": logging.shutdown,
    "level names": lambda: logging.addLevelName(logging.ERROR, "\x1b[31mOOPS"),
    "loggers by name": lambda: [
        logging.getLogger(name).__dict__.update(disabled=True)
        for name in [*logging.root.manager.loggerDict, "penstock", "penstock.agent", "penstock.agent.fail"]
    ],
    "records": lambda: logging.setLogRecordFactory(refuse),
}

KINDS["dictConfig"]()


@agent
async def kinds() -> list[str]:
    return list(KINDS)


@agent
async def reconfigure(kind: str) -> None:
    KINDS[kind]()


@agent
async def fail(text: str, ctx: Context) -> None:
    ctx.log.info("about to fail: %s", text)
    raise RuntimeError(text)
