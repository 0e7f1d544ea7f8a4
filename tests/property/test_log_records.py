"""Whatever is logged, and however long it is: a record is one record, and says so where it was cut."""

from __future__ import annotations

import json
import logging
import re
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ipc.log import LONGEST, _Handler, formatter

# Short texts of anything, and the same very often: what is long need not be drawn character by character.
texts = st.builds(
    lambda text, times: text * times,
    st.text(st.characters(codec=None), max_size=12)
    | st.sampled_from(["\n", "\x00", "\u2028", "\U0001f40d", "\udc80", "é\n"]),
    st.sampled_from([0, 1, 3, 300, 5_000, 20_000]),
)
CUT = re.compile(r"\[\.\.\. \d+ (more characters were cut off|characters were cut out)\]")


def written(form: str, message: str, name: str, fault: str | None, stack: str, level: int = logging.ERROR) -> bytes:
    """A record as it goes on its way."""
    said: list[bytes] = []
    handler = _Handler(said.append)
    handler.setFormatter(formatter(form))
    error = None if fault is None else ValueError(fault)
    exc_info = None if error is None else (ValueError, error, None)
    record = logging.LogRecord(name, level, "", 0, "%s", (message,), exc_info)
    record.__dict__.update(request_id=name, agent=name, stack=stack)
    handler.handle(record)
    (only,) = said
    return only


@given(texts, texts, st.none() | texts, texts)
def test_a_record_as_text_begins_one_line_and_indents_the_others(
    message: str, name: str, fault: str | None, stack: str
) -> None:
    found = written("text", message, name, fault, stack)
    assert len(found) < LONGEST
    first, *others = found.decode().removesuffix("\n").split("\n")
    assert re.match(r"<3>\d{4}-\d\d-\d\dT\S+Z ERROR   ", first)
    assert all(each.startswith("<3>    ") for each in others)
    # Nothing but our own line breaks, by any reader's idea of one.
    assert found.decode().splitlines() == [first, *others]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", found.decode())


@given(texts, texts, st.none() | texts, texts)
def test_a_record_as_json_is_one_object_on_one_line(message: str, name: str, fault: str | None, stack: str) -> None:
    found = written("json", message, name, fault, stack)
    assert len(found) < LONGEST
    (line,) = found.decode().splitlines()
    entry: dict[str, Any] = json.loads(line.removeprefix("<3>"))
    assert entry["message"] == message or CUT.search(entry["message"])
    assert entry.get("stack", "") == stack or CUT.search(entry["stack"])


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_is_short_is_whole_and_what_is_long_keeps_what_tells_most(form: str) -> None:
    assert CUT.search(written(form, "x" * 5_000, "a", "boom", "").decode()) is None
    found = written(form, "begin" + "x" * 100_000, "a", "y" * 100_000 + "end", "").decode()
    assert "begin" in found
    assert "ValueError: y" in found
    assert "end" in found
    assert len(CUT.findall(found)) == 2
    assert len(found) > 20_000
    assert traceback.format_exception_only(ValueError("end"))[0].strip() in written(form, "", "a", "end", "").decode()


@pytest.mark.parametrize(("level", "priority"), [(5, 7), (25, 6), (35, 4), (40, 3), (60, 2)])
def test_a_level_of_an_agents_own_has_the_priority_of_the_one_below(level: int, priority: int) -> None:
    assert written("text", "x", "a", None, "", level).startswith(b"<%d>" % priority)
