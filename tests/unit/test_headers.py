"""What clients say in headers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.front.headers import BadHeader, is_json, priority, request_id, timeout


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 30.0),
        ({"Request-Timeout": "2"}, 2.0),
        ({"Request-Timeout": "0.25"}, 0.25),
        ({"Request-Timeout": "3600"}, 30.0),
        ({"Request-Timeout": "9" * 400}, 30.0),
        ({"X-Request-Timeout-Seconds": "1.5"}, 1.5),
        ({"grpc-timeout": "100m"}, 0.1),
        ({"grpc-timeout": "2S"}, 2.0),
        ({"grpc-timeout": "1H"}, 30.0),
        ({"grpc-timeout": "500000u"}, 0.5),
        ({"Request-Timeout": "3", "grpc-timeout": "1S", "X-Request-Timeout-Seconds": "2"}, 1.0),
    ],
)
def test_smallest_timeout_wins_and_is_cut_to_the_limit(headers: dict[str, str], seconds: float) -> None:
    assert timeout(headers, 30.0)[0] == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0", "0.0", "-1", "+1", "1e3", ".5", "5.", "", "1s", "inf", "nan", "1,5", "٣"])
@pytest.mark.parametrize("name", ["Request-Timeout", "X-Request-Timeout-Seconds"])
def test_other_forms_of_seconds_are_refused(name: str, text: str) -> None:
    with pytest.raises(BadHeader, match=name):
        timeout({name: text}, 30.0)


@pytest.mark.parametrize("text", ["0S", "5", "S", "123456789S", "1s", "1.5S", "-1S", "١S"])
def test_other_forms_of_grpc_timeout_are_refused(text: str) -> None:
    with pytest.raises(BadHeader, match="grpc-timeout"):
        timeout({"grpc-timeout": text}, 30.0)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert 0.0 < timeout({"Request-Timeout": text}, 30.0)[0] <= 30.0
    except BadHeader:
        pass
    assert 0 <= priority({"Priority": text}, 3) <= 7


@pytest.mark.parametrize(
    ("text", "urgency"),
    [
        ("u=0", 0),
        ("u=7, i", 7),
        ("i, u=1", 1),
        ("u=1;x=2", 1),
        ("u=8", 3),
        ("u=-1", 3),
        ("U=1", 3),
        ("", 3),
        ("u=1,u=5", 5),
    ],
)
def test_urgency_as_in_rfc_9218(text: str, urgency: int) -> None:
    assert priority({"Priority": text}, 3) == urgency


@pytest.mark.parametrize("given_id", ["a", "A-1_b.c:d", "x" * 128])
def test_a_well_formed_request_id_is_kept(given_id: str) -> None:
    assert request_id({"X-Request-Id": given_id}) == given_id


@pytest.mark.parametrize("given_id", ["", "x" * 129, "a b", "a\tb", "ä", "a/b", "a\nb"])
def test_any_other_request_id_is_replaced_by_a_fresh_one(given_id: str) -> None:
    first, second = (request_id({"X-Request-Id": given_id}) for _ in range(2))
    assert first != second
    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", first)


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/problem+json",
        "text/json",
        "application/vnd.x.y+json;v=1",
    ],
)
def test_json_types(kind: str) -> None:
    assert is_json(kind)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "application/jsonx", "", "application/x-www-form-urlencoded", "json"]
)
def test_other_types(kind: str) -> None:
    assert not is_json(kind)
