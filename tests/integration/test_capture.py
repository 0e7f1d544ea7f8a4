"""The output of workers: in their log files and in the daemon's log, safe from forgery, and never at the cost of requests."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from pathlib import Path

import pytest

from tests.fix_control import proxy, supervisorctl
from tests.fix_daemon import Daemon, DaemonFactory, eventually

ONE: dict[str, object] = {"pools.default.workers": 1}


def files(daemon: Daemon, name: str = "default-0") -> tuple[str, str]:
    """The worker's two logs."""
    directory = daemon.state / "log"
    first, second = ((directory / f"{name}{kind}.log") for kind in ("", ".stderr"))
    return first.read_text(errors="replace"), second.read_text(errors="replace")


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    return daemons("talking", settings=ONE)


def test_each_way_of_saying_something_ends_where_it_belongs(daemon: Daemon) -> None:
    daemon.call("say", {"text": "hello"}, headers={"X-Request-Id": "r-1"})
    eventually(lambda: "noted: hello" in "".join(files(daemon)) and "aside: hello" in daemon.log, "all is written")
    out, error = files(daemon)
    noted = r"WARNING penstock\.agent\.say: request_id=r-1 worker=default:0 agent=say noted: hello\n"
    assert "hello\n" in out.splitlines(keepends=True)
    assert "aside: hello\n" in error
    assert "aside" not in out
    for text in (out, error, daemon.log):
        assert len(re.findall(noted, text)) == 1
    assert re.search(r"(?m)^\S+Z INFO    penstock\.stdout: worker=default:0 hello$", daemon.log)
    assert re.search(r"(?m)^\S+Z WARNING penstock\.stderr: worker=default:0 aside: hello$", daemon.log)
    assert "hello\n" in supervisorctl(daemon.state / "control.sock", "tail", "default:0").out
    main = supervisorctl(daemon.state / "control.sock", "maintail", "-100000").out
    assert main.splitlines()[:5] == daemon.log.splitlines()[:5]


def test_the_logs_are_for_their_owner_alone(daemon: Daemon) -> None:
    directory = daemon.state / "log"
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert {path.name for path in directory.iterdir()} >= {"penstock.log", "default-0.log", "default-0.stderr.log"}


def test_nothing_that_is_printed_passes_for_a_line_of_the_log(daemon: Daemon) -> None:
    forged = "2026-01-01T00:00:00.000Z ERROR   penstock: all is lost"
    for text in (f"x\n{forged}", f"x\r{forged}", f"<3>{forged}", f"\x1b[2K{forged}", f"x\u2028{forged}"):
        daemon.call("say", {"text": text})
        daemon.call("raise_with", {"text": text})
    daemon.call("say", {"text": "the end"})
    eventually(lambda: "noted: the end" in daemon.log, "all is written")
    # Lines of a traceback are indented, all others escaped.
    assert forged not in re.split(r"[\n\r\u2028]", daemon.log)
    assert "\x1b" not in daemon.log
    assert "\u2028" not in daemon.log
    own = re.compile(r"\S+Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) +penstock|    ")
    assert all(own.match(line) for line in re.split(r"[\n\r\u2028]", daemon.log) if line)


def test_the_last_words_of_a_worker_are_not_lost(daemon: Daemon) -> None:
    pid = daemon.worker("default:0")["pid"]
    assert daemon.call("say_and_die", {"lines": 5000}).problem == "worker-died"
    eventually(lambda: daemon.worker("default:0")["pid"] not in (0, pid), "there is another")
    out, error = files(daemon)
    assert [line for line in out.splitlines() if line.startswith("last words")] == [
        f"last words {n}" for n in range(5000)
    ]
    assert "that was all" in error


def test_a_child_that_outlives_its_worker_is_still_heard(daemon: Daemon, tmp_path: Path) -> None:
    pipe = tmp_path / "wait"
    os.mkfifo(pipe)
    daemon.call("leave_a_child", {"text": str(pipe)})
    eventually(lambda: f"{pipe} begins" in files(daemon)[0], "it has begun")
    pid = daemon.worker("default:0")["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: daemon.worker("default:0")["pid"] not in (0, pid), "there is another worker")
    pipe.write_text("go on\n")
    eventually(lambda: f"{pipe} ends" in files(daemon)[0], "the child was heard")


def test_words_come_by_lines_and_the_rest_at_the_end(daemon: Daemon) -> None:
    for text in ("one ", "line\n", "x" * 200_000 + "y\n", "half a line"):
        daemon.call("part", {"text": text})
    eventually(lambda: "one line\n" in files(daemon)[0], "a line is there when it is whole")
    eventually(lambda: "xy\n" in files(daemon)[0], "a long one too")
    assert files(daemon)[0].count("x") >= 200_000
    assert "half a line" not in files(daemon)[0]
    proxy(daemon.state / "control.sock").supervisor.stopProcess("default:0")
    eventually(lambda: files(daemon)[0].endswith("half a line\n"), "the end of the process is the end of the line")
    proxy(daemon.state / "control.sock").supervisor.startProcess("default:0")


def test_a_flood_is_kept_and_stops_nobody(fresh: DaemonFactory) -> None:
    daemon = fresh("talking", "basic", settings={**ONE, "log.file_size": "100MiB"})
    flood = daemon.begin("flood", {"lines": 300_000})
    slowest = max(daemon.call("echo", 1).seconds for _ in range(30))
    assert flood.result().status == 200
    eventually(lambda: files(daemon)[0].endswith(f"{299_999:09}\n"), "all of it is there")
    assert files(daemon)[0].split() == [f"{number:09}" for number in range(300_000)]
    assert slowest < 1.0
    # The daemon's own log has a share of it, and says that it is one.
    assert "lines were omitted here; they are in default-0.log" in daemon.log

    def accounted() -> int:
        kept = len(re.findall(r"penstock\.stdout: worker=default:0 \d{9}$", daemon.log, re.MULTILINE))
        return kept + sum(int(each) for each in re.findall(r"(\d+) lines were omitted", daemon.log))

    eventually(lambda: accounted() == 300_000, "every line is there or counted")


def test_files_are_rotated(fresh: DaemonFactory) -> None:
    daemon = fresh("talking", settings={**ONE, "log.file_size": "8KiB", "log.files": 2})
    daemon.call("flood", {"lines": 10_000})
    eventually(lambda: files(daemon)[0].endswith(f"{9999:09}\n"), "all of it is written")
    names = {path.name for path in (daemon.state / "log").iterdir() if path.name.startswith("default-0.log")}
    assert names == {"default-0.log", "default-0.log.1"}
    assert (daemon.state / "log" / "default-0.log").stat().st_size < 70_000


def test_as_json_every_line_is_an_object(fresh: DaemonFactory) -> None:
    daemon = fresh("talking", settings={**ONE, "log.format": "json"})
    daemon.call("say", {"text": 'a "quoted"\n\x1b[1mline'}, headers={"X-Request-Id": "r-2"})
    daemon.call("raise_with", {"text": "x\ny"})
    eventually(lambda: "noted" in daemon.log and "aside" in daemon.log and "Traceback" in daemon.log, "all is written")
    records = [json.loads(line) for line in daemon.log.splitlines()]
    by_logger = {record["logger"]: record for record in records}
    assert {record["level"] for record in records} <= {"info", "warning", "error"}
    assert by_logger["penstock.stdout"]["worker"] == "default:0"
    assert 'a "quoted"' in {record["message"] for record in records}
    noted = by_logger["penstock.agent.say"]
    assert (noted["request_id"], noted["worker"], noted["agent"]) == ("r-2", "default:0", "say")


FORGED = "2026-01-01T00:00:00.000Z ERROR   penstock: all is lost"
OWN = re.compile(r"\S+Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) +(penstock|talking)|    ")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_record_of_any_length_is_one_record(fresh: DaemonFactory, form: str) -> None:
    daemon = fresh("talking", settings={**ONE, "log.format": form})
    # The forged line would begin where a piece of 64 KiB ends, and at every other place.
    for text, times in (
        (f"{'x' * 11}{FORGED}\n", 3000),
        (FORGED, 5000),
        ("\u2028<3>", 40_000),
        ("x" * 65_400 + FORGED, 1),
    ):
        assert daemon.call("note_at_length", {"text": text, "times": times}).status == 200
    # Many processes that write at once: what one says is not cut by another's.
    many = {"text": f"{'x' * 59}\n{FORGED}", "times": 100, "children": 4, "records": 100}
    assert daemon.call("note_from_children", many).status == 200
    daemon.call("say", {"text": "the end"})
    eventually(lambda: "noted: the end" in daemon.log and "noted: the end" in files(daemon)[1], "all is written")
    for text in (daemon.log, files(daemon)[1].replace("aside: the end\n", "")):
        lines = text.splitlines()
        if form == "text":
            assert FORGED not in lines
            assert [each for each in lines if not OWN.match(each)] == []
            messages = lines
        else:
            messages = [json.loads(each)["message"] for each in lines]
        assert sum("child: xxx" in each for each in messages) == 400
        assert text.count("more characters were cut off") == 4
        assert text.count("characters were cut out") >= 3


def test_what_modules_do_to_logging_does_not_silence_the_daemons_log(fresh: DaemonFactory) -> None:
    daemon = fresh("reconfiguring", settings=ONE)
    for number, kind in enumerate(daemon.call("kinds").json):
        assert daemon.call("reconfigure", {"kind": kind}).status == 200
        failed = daemon.call("fail", {"text": f"boom {number}"}, headers={"X-Request-Id": f"r-{number}"})
        assert "the daemon's log has it" in failed.json["detail"]
        marks = rf"request_id=r-{number} worker=default:0 agent=fail"
        traced = f"RuntimeError: boom {number}"
        eventually(lambda traced=traced: traced in daemon.log, f"the log has it after {kind}")  # type: ignore[misc]
        assert (
            len(re.findall(rf"(?m)^\S+Z ERROR   penstock\.agent: {marks} fail raised RuntimeError$", daemon.log)) == 1
        )
        assert len(re.findall(rf"(?m)^\S+Z INFO    penstock\.agent\.fail: {marks} about to fail", daemon.log)) == 1


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_logrotate_by_rename_is_followed_at_a_signal(daemon: Daemon, number: signal.Signals) -> None:
    daemon.call("say", {"text": f"before {number}"})
    eventually(lambda: f"noted: before {number}" in files(daemon)[1], "it is written")
    directory = daemon.state / "log"
    names = ("penstock.log", "default-0.log", "default-0.stderr.log")
    for name in names:
        (directory / name).rename(directory / f"{name}-{number}")
    # To all of it, as `systemctl kill` does: only the supervisor acts on it, and nobody ends.
    workers = [worker["pid"] for worker in daemon.workers()]
    os.killpg(daemon.pid, number)
    eventually(lambda: all((directory / name).exists() for name in names), "there are new files")
    daemon.call("say", {"text": f"after {number}"})
    eventually(lambda: f"noted: after {number}" in files(daemon)[1], "the new file is written")
    main = directory / "penstock.log"
    eventually(lambda: f"noted: after {number}" in main.read_text(), "the new main log is written")
    assert f"penstock: {number.name}: the log files are reopened\n" in main.read_text()
    for name in names:
        assert f"after {number}" not in (directory / f"{name}-{number}").read_text()
    assert [worker["pid"] for worker in daemon.workers()] == workers


def test_with_a_high_level_only_what_is_grave_is_passed_on(fresh: DaemonFactory) -> None:
    daemon = fresh("talking", settings={**ONE, "log.level": "warning"})
    daemon.call("say", {"text": "hello"})
    eventually(lambda: "noted: hello" in daemon.log and "aside: hello" in daemon.log, "warnings are passed on")
    assert "penstock.stdout" not in daemon.log
    assert "hello\n" in files(daemon)[0]
