"""What lines of the log say of the call that they are about, where no call runs."""

from __future__ import annotations

import contextvars
import logging
from typing import Any
from unittest.mock import Mock

import pytest

from penstock.ipc import log
from penstock.ipc.log import call_fields, configure
from penstock.workers.context import Context, current
from penstock.workers.database import Holding
from penstock.workers.run import _call_fields

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Lost:
    """Stands in for a connection whose server is gone."""

    def cancel_safe(self, timeout: float) -> None:
        raise OSError("the server is gone")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    said: list[str] = []
    configure("info", "text", "default:0", _call_fields, lambda line: said.append(line.decode()))
    return said


def test_a_statement_that_could_not_be_cancelled_is_said_of_its_call(lines: list[str]) -> None:
    def call() -> Holding:
        current.set(Context("search", "r-1", "me", {}, 0.0, GIVEN))
        return Holding(Mock())

    held = contextvars.Context().run(call)
    connection: Any = Lost()
    pool: Any = None
    held.add(pool, connection)
    assert held.cancel(lambda: None)
    held.settle()
    (line,) = lines
    about = f"request_id=r-1 trace_id={GIVEN[3:35]} worker=default:0 agent=search"
    assert line.endswith(
        f" WARNING penstock.database: {about} a running statement could not be cancelled: the server is gone\n"
    )


def test_what_is_not_known_of_a_call_is_not_shown(lines: list[str]) -> None:
    logging.getLogger("penstock").warning("hello", extra=call_fields("r-2", "", "echo"))
    assert lines[0].endswith(" WARNING penstock: request_id=r-2 worker=default:0 agent=echo hello\n")


def test_a_level_that_is_set_later_counts_for_loggers_that_were_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    own = log._own.root
    monkeypatch.setattr(own, "handlers", [])
    monkeypatch.setattr(own, "level", logging.NOTSET)
    used = log.get_logger("penstock.used-before")
    assert used.isEnabledFor(logging.DEBUG)
    own.setLevel(logging.INFO)
    assert not used.isEnabledFor(logging.DEBUG)
    assert logging.getLogger("penstock.used-before") is not used
