"""Log files: rotated by size, read by offset, followed while they change."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.control.log_methods import text_of
from penstock.daemon.host.logfiles import BadRangeError, LogFile, NoLogError


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "log" / "a.log", 100, 2)


def test_it_keeps_so_many_files_of_such_a_size(log: LogFile) -> None:
    for number in range(10):
        log.write(f"{number}".encode() * 49 + b"\n")
    names = sorted(path.name for path in log.path.parent.iterdir())
    assert names == ["a.log", "a.log.1", "a.log.2"]
    assert log.path.read_bytes() == b"8" * 49 + b"\n" + b"9" * 49 + b"\n"
    assert (log.path.parent / "a.log.2").read_bytes().startswith(b"4")
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_it_goes_on_where_another_daemon_ended(log: LogFile) -> None:
    log.write(b"x" * 60)
    again = LogFile(log.path, 100, 0)
    again.write(b"y" * 60)
    assert log.path.read_bytes() == b"y" * 60
    assert [path.name for path in log.path.parent.iterdir()] == ["a.log"]


def test_a_file_that_is_removed_is_made_again(log: LogFile) -> None:
    log.write(b"one\n")
    log.path.unlink()
    with pytest.raises(NoLogError, match=r"a\.log"):
        log.read(0, 0)
    assert log.tail(0, 10) == (b"", 0, False)
    log.write(b"two\n")
    assert log.read(0, 0) == b"two\n"
    log.clear()
    assert log.read(0, 0) == b""


def test_one_that_is_renamed_is_written_on_until_it_is_reopened(log: LogFile) -> None:
    log.write(b"one\n")
    old = log.path.rename(log.path.with_name("old"))
    log.write(b"two\n")
    log.reopen()
    log.write(b"three\n")
    assert (old.read_bytes(), log.path.read_bytes()) == (b"one\ntwo\n", b"three\n")
    log.reopen()
    log.write(b"four\n")
    assert log.path.read_bytes() == b"three\nfour\n"


def test_one_that_others_truncate_is_not_full(log: LogFile) -> None:
    log.write(b"x" * 90)
    os.truncate(log.path, 0)
    log.write(b"y" * 90)
    assert [path.name for path in log.path.parent.iterdir()] == ["a.log"]
    assert log.path.read_bytes() == b"y" * 90


@pytest.mark.parametrize(
    ("offset", "length", "wanted"),
    [
        (0, 0, b"0123456789"),
        (3, 0, b"3456789"),
        (3, 4, b"3456"),
        (-3, 0, b"789"),
        (-30, 0, b"0123456789"),
        (30, 5, b""),
    ],
)
def test_reading(log: LogFile, offset: int, length: int, wanted: bytes) -> None:
    log.write(b"0123456789")
    assert log.read(offset, length) == wanted


@pytest.mark.parametrize(("offset", "length"), [(0, -1), (-1, 1), (-1, -1)])
def test_reading_what_is_no_range(log: LogFile, offset: int, length: int) -> None:
    log.write(b"0123456789")
    with pytest.raises(BadRangeError):
        log.read(offset, length)


@pytest.mark.parametrize(
    ("offset", "length", "wanted"),
    [
        (0, 10, (b"0123456789", 10, False)),
        (0, 4, (b"6789", 10, True)),
        (8, 4, (b"89", 10, False)),
        (10, 4, (b"", 10, False)),
        (99, 4, (b"", 10, False)),
        (0, 0, (b"", 10, True)),
        (-5, -5, (b"", 10, True)),
    ],
)
def test_reading_the_tail(log: LogFile, offset: int, length: int, wanted: tuple[bytes, int, bool]) -> None:
    log.write(b"0123456789")
    assert log.tail(offset, length) == wanted


def test_a_follower_misses_nothing_over_rotations_and_clearings(log: LogFile) -> None:
    log.write(b"before\n")
    told = threading.Event()
    follower = log.follow(4, told.set)
    assert follower.read() == b"ore\n"
    assert follower.read() == b""
    seen = b""
    for number in range(40):
        told.clear()
        log.write(f"{number:04}\n".encode())
        assert told.is_set()
        while data := follower.read():
            seen += data
    assert seen.split() == [f"{number:04}".encode() for number in range(40)]
    log.write(b"unseen\n")
    log.clear()
    log.write(b"new\n")
    # What was written before the clearing is still there for who had the file open.
    assert follower.read() + follower.read() == b"unseen\nnew\n"
    log.path.unlink()
    assert follower.read() == b""
    log.end()
    assert log.ended
    follower.close()
    log.write(b"nobody is told\n")


def test_a_missing_file_cannot_be_followed(log: LogFile) -> None:
    with pytest.raises(NoLogError):
        log.follow(10, lambda: None)
    log.write(b"x")
    log.close()
    os.stat(log.path)


@given(st.text(), st.integers(0, 40), st.integers(0, 40))
def test_text_between_any_two_bounds_loses_only_what_they_cut(text: str, start: int, end: int) -> None:
    data = text.encode(errors="replace")
    whole = text_of(data)
    part = text_of(data[start:end])
    assert part in whole or "\ufffd" in whole
