"""W3C Trace Context as the recommendation has it, with the cases of its own test suite."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from penstock.daemon.front.tracecontext import LENGTH, NONE, trace_context, traceparent, tracestate

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-01"


def read(*fields: tuple[str, str]) -> tuple[str, str]:
    return trace_context(CIMultiDictProxy(CIMultiDict(fields)))


def test_both_are_passed_on_as_they_came() -> None:
    assert read(("TraceParent", GIVEN), ("TraceState", "a=1,b@c=2")) == (GIVEN, "a=1,b@c=2")
    assert read(("traceparent", GIVEN)) == (GIVEN, "")


def test_nothing_is_made_up() -> None:
    assert read() == NONE
    assert read(("tracestate", "a=1")) == NONE


def test_an_unreadable_traceparent_takes_the_tracestate_along() -> None:
    assert read(("traceparent", GIVEN.upper()), ("tracestate", "a=1")) == NONE


def test_two_traceparents_are_none() -> None:
    assert read(("traceparent", GIVEN), ("traceparent", GIVEN)) == NONE


def test_an_unreadable_tracestate_goes_alone() -> None:
    assert read(("traceparent", GIVEN), ("tracestate", "no entry")) == (GIVEN, "")


def test_fields_of_a_tracestate_are_put_together_in_order() -> None:
    assert read(("traceparent", GIVEN), ("tracestate", "a=1, b=2"), ("tracestate", "c=3")) == (GIVEN, "a=1,b=2,c=3")


@pytest.mark.parametrize(
    "text",
    [
        "",
        TRACE,
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-011",
        f"00-{TRACE}-{PARENT}-01-",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}a-{PARENT}-01",
        f"00-{TRACE}-{PARENT[1:]}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT.upper()}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-0x",
        f"00_{TRACE}_{PARENT}_01",
        f"0-{TRACE}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01what",
        f"cc-{TRACE}-{PARENT}-01.what",
        f"00-{TRACE.replace('4', '٤')}-{PARENT}-01",
    ],
)
def test_other_forms_are_unreadable(text: str) -> None:
    assert traceparent(text) == ""


@pytest.mark.parametrize("more", ["", "-", "-what-comes-later"])
def test_a_later_version_is_continued_in_ours(more: str) -> None:
    assert traceparent(f"cc-{TRACE}-{PARENT}-01{more}") == GIVEN


@pytest.mark.parametrize(("flags", "kept"), [("00", "00"), ("01", "01"), ("03", "03"), ("ff", "03"), ("fc", "00")])
def test_flags_that_nobody_has_defined_are_not_passed_on(flags: str, kept: str) -> None:
    assert traceparent(f"00-{TRACE}-{PARENT}-{flags}") == f"00-{TRACE}-{PARENT}-{kept}"


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a=",
        "=1",
        "a =1",
        "A=1",
        "1a=1",
        "a=1=2",
        "a=ä",
        "a@=1",
        "@b=1",
        "a@1b=1",
        f"{'a' * 257}=1",
        f"{'a' * 242}@b=1",
        f"a@{'b' * 15}=1",
        f"a={'v' * 257}",
        "a=1,a=2",
        ",".join(f"k{number}=1" for number in range(33)),
    ],
)
def test_other_forms_of_a_tracestate_are_unreadable(text: str) -> None:
    assert tracestate(text) == ""


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a=1", "a=1"),
        ("a=1,,b=2", "a=1,b=2"),
        (" a=1 \t,\tb=2 ", "a=1,b=2"),
        ("a=1 2", "a=1 2"),
        ("1a@b=1", "1a@b=1"),
        ("a-_*/0=" + "".join(map(chr, [*range(0x21, 0x2C), *range(0x2D, 0x3D), *range(0x3E, 0x7F)])), ""),
        (f"{'a' * 256}=1", f"{'a' * 256}=1"),
        ("", ""),
        (",".join(f"k{number}=1" for number in range(32)), ""),
    ],
)
def test_entries_keep_their_order_and_form(text: str, kept: str) -> None:
    assert tracestate(text) == (kept or text)


def test_what_is_too_long_loses_long_entries_first_and_then_the_last() -> None:
    long, short = "l=" + "v" * 130, [f"k{number}=" + "v" * 97 for number in range(6)]
    assert tracestate(",".join([long, *short[:4]])) == ",".join(short[:4])
    assert tracestate(",".join(short)) == ",".join(short[:5])


@given(st.text(max_size=80) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?", fullmatch=True))
def test_what_is_passed_on_is_readable_as_the_same(text: str) -> None:
    passed = traceparent(text)
    assert passed == "" or (traceparent(passed) == passed and passed[:53] == "00" + text[2:53])


@given(st.lists(st.from_regex(r"[a-z]{1,3}(@[a-z]{1,2})?=[!-+]{1,150}", fullmatch=True), max_size=40))
def test_a_tracestate_stays_one_within_its_limits(members: list[str]) -> None:
    passed = tracestate(",".join(members))
    assert len(passed) <= LENGTH
    assert tracestate(passed) == passed
    kept = iter(members)
    assert all(member in kept for member in passed.split(",") if member), "a selection, in order"
