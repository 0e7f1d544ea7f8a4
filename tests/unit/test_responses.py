"""Heads as they go onto the wire: one field of each name, whoever gives it; and problems of any text."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import pytest

from penstock.daemon.front.problems import problem
from penstock.daemon.front.responses import raw, stream
from penstock.daemon.front.texts import to_json

OURS = ("Date", "X-Request-Id", "Server-Timing", "Retry-After", "Cache-Control")
EXTRA = "Server-Timing: queue;dur=1\r\nRetry-After: 1\r\nCache-Control: no-store\r\n"


async def pieces() -> AsyncGenerator[bytes, None]:
    yield b""


@pytest.mark.parametrize("name", [*OURS, *map(str.lower, OURS)])
def test_a_header_that_an_agent_gives_takes_the_place_of_ours(name: str) -> None:
    given = [(name, "theirs"), ("X-Other", "a"), ("X-Other", "b")]
    heads = [
        raw(200, b"x", "text/plain", "id", extra=EXTRA, headers=given).head,
        stream(pieces(), "text/plain", "id", extra=EXTRA, headers=given).head,
    ]
    for head in heads:
        lines = head.split("\r\n")
        assert lines[0].startswith("HTTP/1.1 200")
        assert lines[-1] == ""
        names = [line.partition(":")[0].lower() for line in lines[1:-1]]
        assert f"{name}: theirs" in lines
        assert [names.count(each.lower()) for each in OURS] == [1] * len(OURS)
        assert names.count("x-other") == 2


def test_without_headers_of_an_agents_all_of_ours_are_there() -> None:
    head = raw(200, b"x", "text/plain", "id", extra=EXTRA).head
    assert all(f"\r\n{name}: " in head for name in (*OURS, "Content-Length", "Content-Type"))


def test_problems_and_views_hold_any_text() -> None:
    status, body = problem("unknown-agent", "caf\udce9", "id", agent="\ud800", worker="ü")
    found = json.loads(body)
    assert (status, found["detail"], found["agent"], found["worker"]) == (404, "caf\\udce9", "\\ud800", "ü")
    assert json.loads(to_json({"\udcff": ["a", ("\udcfe", 1, None)]})) == {"\\udcff": ["a", ["\\udcfe", 1, None]]}
    assert to_json({"a": "ü"}) == '{"a":"ü"}'.encode()
