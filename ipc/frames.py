"""Messages to frames and back: total functions whose only failure is ``DecodeError``.

Headers are MessagePack arrays (msgspec's ``array_like`` structs); bodies are frames of their own and are never looked
into, copied or pickled here.
"""

from __future__ import annotations

import msgspec

from .messages import Call, FromWorker, Launch, ToWorker


class DecodeError(Exception):
    """The frame is no message of this protocol. The text says why."""


_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises at bytes: its own exceptions, and two of Python's that it lets through."""

_encoder = msgspec.msgpack.Encoder()
_call: msgspec.msgpack.Decoder[Call] = msgspec.msgpack.Decoder(Call)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_launch: msgspec.msgpack.Decoder[Launch] = msgspec.msgpack.Decoder(Launch)

encode = _encoder.encode
"""Any message to the bytes of its frame."""


def decode_call(frame: bytes) -> Call:
    """The header of a call, as a worker receives it."""
    try:
        return _call.decode(frame)
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
