"""The writer of the daemon's log: priorities for the journal, nobody waits, lost lines are reported."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.daemon.host import logwriter
from penstock.daemon.host.logfiles import LogFile
from penstock.daemon.host.logwriter import LogWriter, under_journal
from penstock.ipc.log import configure


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def read_all(descriptor: int) -> str:
    with open(descriptor, encoding="utf-8") as stream:
        return stream.read()


@pytest.mark.parametrize("journal", [True, False])
def test_every_line_has_its_priority_under_the_journal_and_none_elsewhere(
    tmp_path: Path, journal: bool, restored: None
) -> None:
    reading, writing = os.pipe()
    writer = LogWriter(journal=journal, descriptor=writing)
    writer.to_file(LogFile(tmp_path / "main.log", 10_000, 0))
    configure("debug", "text", output=writer.write)
    log = logging.getLogger("penstock.test")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, "one <6>line\nor two", extra={"request_id": "r", "worker": "w:0", "agent": "a"})
    try:
        raise ValueError("x")
    except ValueError:
        log.exception("failed")
    writer.close()
    os.close(writing)
    lines = read_all(reading).splitlines()
    marks = [line[:3] for line in lines]
    if journal:
        assert marks[:5] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
        assert set(marks[5:]) == {"<3>"}
        lines = [line[3:] for line in lines]
    assert not any(line.startswith("<") for line in lines)
    assert all("request_id=r worker=w:0 agent=a one <6>line\\nor two" in line for line in lines[:5])
    assert lines[-1] == "    ValueError: x"
    assert (tmp_path / "main.log").read_text().splitlines() == lines


def test_the_journal_is_known_by_its_device_and_inode() -> None:
    reading, writing = os.pipe()
    found = os.fstat(writing)
    assert under_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}, writing)
    assert not under_journal({"JOURNAL_STREAM": f"{found.st_dev}:1"}, writing)
    assert not under_journal({}, writing)
    os.close(reading)
    os.close(writing)


def test_nobody_waits_for_a_reader_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logwriter, "LIMIT", 100_000)
    reading, writing = os.pipe()
    writer = LogWriter(journal=False, descriptor=writing)
    for _ in range(1000):
        writer.write(b"<6>" + b"x" * 996 + b"\n")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(read_all(reading)))
    reader.start()
    writer.close()
    os.close(writing)
    reader.join()
    lines = found[0].splitlines()
    assert 50 < len(lines) < 300
    assert f" WARNING penstock.log: {1000 - (len(lines) - 1)} lines were dropped here" in lines[-1]


def test_a_disk_that_is_full_is_said_once(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    writer = LogWriter(journal=False, descriptor=writing)
    writer.to_file(LogFile(tmp_path, 100, 0))  # a directory cannot be written
    for _ in range(3):
        writer.write(b"<6>text\n")
    writer.close()
    os.close(writing)
    text = read_all(reading)
    assert text.count("text\n") == 3
    assert text.count("cannot be written") == 1


@pytest.mark.parametrize("journal", [True, False])
def test_a_file_that_cannot_be_written_is_said_like_everything_else(tmp_path: Path, journal: bool) -> None:
    reading, writing = os.pipe()
    writer = LogWriter(journal=journal, descriptor=writing)
    writer.to_file(LogFile(tmp_path, 10_000, 0))
    writer.write(b"<6>a line\n")
    writer.close()
    os.close(writing)
    complaint, line = read_all(reading).splitlines()
    assert f"the log file {tmp_path} cannot be written: Is a directory" in complaint
    assert line == ("<6>a line" if journal else "a line")
    assert complaint.startswith("<4>") == journal
