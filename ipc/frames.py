"""Encoding of messages to frames, and decoding, whose only failure is ``DecodeError``.

Headers are MessagePack arrays (msgspec's ``array_like`` structs); bodies are frames of their own and are never looked
into, copied or pickled here.

A text with a lone surrogate, as a byte that is not UTF-8 becomes in Python, can be in every message: a client's header,
the reason of a failure, an agent's description. MessagePack has no such texts. What cannot be encoded at once is
encoded again: a call's headers with their bytes, so that they arrive as they came, all else so that it can be read.
"""

from __future__ import annotations

import msgspec

from .messages import Batch, Call, FromWorker, Launch, ToWork, ToWorker
from .texts import all_encodable, encodable


class DecodeError(Exception):
    """The frame is no message of this protocol. The text says why."""


_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises at bytes: its own exceptions, and two of Python's that it lets through."""

_encoder = msgspec.msgpack.Encoder()
_to_work: msgspec.msgpack.Decoder[ToWork] = msgspec.msgpack.Decoder(ToWork)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_launch: msgspec.msgpack.Decoder[Launch] = msgspec.msgpack.Decoder(Launch)


def encode(message: ToWork | ToWorker | FromWorker | Launch) -> bytes:
    """Any message to the bytes of its frame."""
    try:
        return _encoder.encode(message)
    except UnicodeEncodeError:
        if isinstance(message, Call):
            message = _with_raw_headers(message)
        elif isinstance(message, Batch):
            message = Batch([_with_raw_headers(call) for call in message.calls], message.sizes)
        return _encoder.encode(all_encodable(message))


def _with_raw_headers(call: Call) -> Call:
    headers = call.headers or {}
    odd = {name: value for name, value in headers.items() if encodable(value) != value}
    raw = {name: value.encode(errors="surrogateescape") for name, value in odd.items()}
    plain = {name: value for name, value in headers.items() if name not in odd}
    return msgspec.structs.replace(call, headers=plain, raw_headers=raw) if odd else call


def decode_to_work(frame: bytes) -> ToWork:
    """The header of a call or of a batch, as a worker receives it."""
    try:
        return _to_work.decode(frame)
    except _FAULTS as error:
        raise DecodeError(f"not a call: {error}") from error


def decode_to_worker(frame: bytes) -> ToWorker:
    """A control message, as a worker receives it."""
    try:
        return _to_worker.decode(frame)
    except _FAULTS as error:
        raise DecodeError(f"not a control message: {error}") from error


def decode_from_worker(frame: bytes) -> FromWorker:
    """A worker's message, as the supervisor receives it."""
    try:
        return _from_worker.decode(frame)
    except _FAULTS as error:
        raise DecodeError(f"not a message of a worker: {error}") from error


def decode_launch(frame: bytes) -> Launch:
    """The start parameters of a worker."""
    try:
        return _launch.decode(frame)
    except _FAULTS as error:
        raise DecodeError(f"not the parameters of a worker: {error}") from error
