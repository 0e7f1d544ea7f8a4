"""Messages and frames, where a property says less than a case."""

from __future__ import annotations

import pytest

from penstock.ipc import frames
from penstock.ipc.messages import Answer, Call, Cancel, Grant, Leaving, Released, Stop

CALL = Call(7, "echo", 12.5, "id-1", "127.0.0.1", {"host": "x"})


def test_a_message_of_another_direction_is_no_message() -> None:
    answer = frames.encode(Answer("default:0", 1, 7, 0, 200, "", None, "", "", 0.1, 0.1, 0.0, 1.0, 1.1))
    with pytest.raises(frames.DecodeError, match="not a call"):
        frames.decode_to_work(answer)
    with pytest.raises(frames.DecodeError, match="not a control message"):
        frames.decode_to_worker(frames.encode(CALL))
    with pytest.raises(frames.DecodeError, match="not the parameters of a worker"):
        frames.decode_launch(answer)


@pytest.mark.parametrize("message", [Cancel(1, "gone"), Grant("async", 3), Stop()])
def test_control_messages_are_told_apart(message: Cancel | Grant | Stop) -> None:
    assert frames.decode_to_worker(frames.encode(message)) == message


@pytest.mark.parametrize("message", [Released("default:0", 1, "sync", 2), Leaving("default:0", 2)])
def test_so_are_those_of_workers(message: Released | Leaving) -> None:
    assert frames.decode_from_worker(frames.encode(message)) == message


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x96\x01\xa1\xff", id="a text that is no UTF-8"),
        pytest.param(b"\x91" * 100_000, id="nested too deeply"),
        pytest.param(frames.encode(CALL)[:-1], id="cut off"),
        pytest.param(frames.encode(CALL) + b"\x00", id="with something behind"),
    ],
)
def test_what_is_no_message_is_a_decode_error(frame: bytes) -> None:
    for decode in (
        frames.decode_to_work,
        frames.decode_to_worker,
        frames.decode_from_worker,
        frames.decode_launch,
    ):
        with pytest.raises(frames.DecodeError):
            decode(frame)
