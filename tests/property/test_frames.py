"""Frames: any bytes are a message or a ``DecodeError``, and every message comes through as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from penstock.ipc import frames
from penstock.ipc.messages import (
    AgentInfo,
    Answer,
    BrokenModule,
    Call,
    Cancel,
    DatabaseAccess,
    Failed,
    Grant,
    Launch,
    Leaving,
    Ready,
    Released,
    Stop,
)
from penstock.ipc.texts import encodable

DECODERS: tuple[Callable[[bytes], Any], ...] = (
    frames.decode_to_work,
    frames.decode_to_worker,
    frames.decode_from_worker,
    frames.decode_launch,
)

text = st.text(max_size=20)
number = st.integers(0, 2**63 - 1)
seconds = st.floats(0, 1e9)
schema = st.dictionaries(text, st.one_of(text, st.lists(text), st.dictionaries(text, number)), max_size=3)
infos = st.builds(
    AgentInfo, *([text] * 5), st.booleans(), st.none() | seconds, number, number, st.booleans(), st.booleans(), text, st.booleans(),
    schema, schema,
)  # fmt: skip
headers = st.none() | st.lists(st.tuples(text, text), max_size=3)

calls = st.builds(Call, number, text, seconds, text, text, st.none() | st.dictionaries(text, text, max_size=3))
to_worker = st.one_of(st.builds(Cancel, number, text), st.builds(Grant, text, number), st.builds(Stop))
from_worker = st.one_of(
    st.builds(Ready, text, number, number, number, st.lists(infos, max_size=2), st.lists(st.builds(BrokenModule, text, text), max_size=2)),
    st.builds(Failed, text, number, text, st.booleans()),
    st.builds(
        Answer, text, number, number, number, number, text, headers, text, text, *([seconds] * 5),
    ),
    st.builds(Released, text, number, text, number),
    st.builds(Leaving, text, number),
)  # fmt: skip
launches = st.builds(
    Launch, number, text, text, number, number, number, text, text, text, st.lists(text, max_size=2),
    st.dictionaries(text, st.lists(text, max_size=2), max_size=2), number, number,
    st.none() | st.builds(DatabaseAccess, text, seconds, st.booleans()), text, text,
)  # fmt: skip


@given(calls)
def test_a_call_comes_through(message: Call) -> None:
    assert frames.decode_to_work(frames.encode(message)) == message


@given(to_worker)
def test_a_control_message_comes_through(message: Any) -> None:
    assert frames.decode_to_worker(frames.encode(message)) == message


@given(from_worker)
def test_a_message_of_a_worker_comes_through(message: Any) -> None:
    assert frames.decode_from_worker(frames.encode(message)) == message


@given(launches)
def test_the_parameters_of_a_worker_come_through(message: Launch) -> None:
    assert frames.decode_launch(frames.encode(message)) == message


octets = st.binary(max_size=20).map(lambda value: value.decode(errors="surrogateescape"))
"""What Python makes of bytes that may not be UTF-8."""
anything = st.text(st.characters(exclude_categories=()), max_size=5)
"""With lone surrogates of all kinds, of which hypothesis makes none unless it is asked to."""


@given(st.dictionaries(text, octets, max_size=4), octets)
def test_headers_come_through_with_each_byte(headers: dict[str, str], client: str) -> None:
    call = frames.decode_to_work(frames.encode(Call(1, "a", 2.0, "r", client, dict(headers))))
    assert isinstance(call, Call)
    assert call.client == encodable(client)
    raw = {name: value.decode(errors="surrogateescape") for name, value in (call.raw_headers or {}).items()}
    assert (call.headers or {}) | raw == headers


@given(
    st.one_of(
        st.builds(Call, number, anything, seconds, anything, anything, st.dictionaries(anything, octets, max_size=2)),
        st.builds(Cancel, number, anything),
        st.builds(Failed, anything, number, anything, st.booleans()),
        st.builds(Answer, anything, *[number] * 4, anything, st.just([("a", "b")]), anything, anything, *[seconds] * 5),
        st.builds(Ready, anything, *[number] * 3, st.just([]), st.lists(st.builds(BrokenModule, anything, anything))),
    )
)
def test_no_text_keeps_a_message_from_being_sent(message: Any) -> None:
    frame = frames.encode(message)
    for decode in DECODERS:
        try:
            found = decode(frame)
        except frames.DecodeError:
            continue
        if type(found) is type(message):
            return
    raise AssertionError("nobody can read it")


@given(calls | to_worker | from_worker | launches)
def test_no_header_has_the_length_that_marks_a_batch(message: Any) -> None:
    """See ``sockets.send``: there a frame of one byte is the number of messages that follow."""
    assert len(frames.encode(message)) > 1


def total(frame: bytes) -> None:
    for decode in DECODERS:
        try:
            decode(frame)
        except frames.DecodeError:
            continue


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(frame: bytes) -> None:
    total(frame)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
                    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=3)))  # fmt: skip
def test_so_is_any_messagepack(value: Any) -> None:
    total(msgspec.msgpack.encode(value))


@given(calls | to_worker | from_worker | launches, st.data())
def test_so_is_a_message_with_a_byte_that_is_another(message: Any, data: st.DataObject) -> None:
    frame = bytearray(frames.encode(message))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    total(bytes(frame))
