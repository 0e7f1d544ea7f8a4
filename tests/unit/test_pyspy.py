"""What is said where py-spy cannot do it, and how its work is shown. That it does it is for tests/integration."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import pytest

from penstock.daemon.diagnostics import profiler
from penstock.daemon.fleet.views import CallView
from penstock.daemon.front.headers import wants_json
from penstock.daemon.host import pyspy
from penstock.ipc.log import formatter
from penstock.ipc.ptrace import NOBODY, allow_tracer

DENIED = b"Permission Denied: Try running again with elevated permissions by going 'sudo env \"PATH=$PATH\" !!'\n"
BROKEN = b"""Error: Failed to get stack traces

Caused by:
    0: Failed to suspend process
    1: Input/output error (os error 5)

Stack backtrace:
   0: <E as anyhow::context::ext::StdError>::ext_context
"""


def test_py_spy_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    pyspy.program.cache_clear()
    assert Path(pyspy.program()).parent == Path(sys.executable).parent


def test_without_py_spy_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr("importlib.metadata.files", lambda name: None)
    pyspy.program.cache_clear()
    with pytest.raises(pyspy.SpyError, match="py-spy is not installed beside /nowhere/python: pip install py-spy"):
        pyspy.program()


@pytest.mark.parametrize(
    ("scope", "seccomp", "says"),
    [
        (-1, "0", "run the daemon with CAP_SYS_PTRACE"),
        (0, "2", "a seccomp filter on the daemon forbids"),
        (1, "0", "has named another than the daemon as its tracer"),
        (1, "2", "a seccomp filter on the daemon forbids"),
        (2, "0", "run `sysctl kernel.yama.ptrace_scope=1`"),
        (3, "0", "nobody can lift before the host's next start"),
    ],
)
def test_what_forbids_it_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, scope: int, seccomp: str, says: str
) -> None:
    facts = {"State": "S", "TracerPid": "0", "Uid": "1000", "Seccomp": seccomp}
    monkeypatch.setattr(pyspy, "_yama_scope", lambda: scope)
    monkeypatch.setattr(pyspy, "_facts", lambda pid: facts)
    assert says in pyspy._explain(1, 1, DENIED)


def test_another_user_and_another_tracer_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"State": "S", "TracerPid": "0", "Uid": "1000", "Seccomp": "0"}
    monkeypatch.setattr(pyspy, "_facts", lambda pid: {**facts, "Uid": "33"} if pid == "self" else facts)
    assert pyspy._explain(1, 1, DENIED) == "it runs as uid 1000 and the daemon as uid 33: run both as the same user"
    monkeypatch.setattr(pyspy, "_facts", lambda pid: {**facts, "TracerPid": "17"})
    assert pyspy._explain(1, 1, DENIED).startswith("process 17 traces it already")


def test_other_failures_are_one_line_without_a_backtrace() -> None:
    me = os.getpid()
    told = "py-spy failed: Failed to get stack traces: Input/output error (os error 5)"
    assert pyspy._explain(me, 1, BROKEN) == told
    assert pyspy._explain(me, 101, b"thread 'main' panicked at src/config.rs\n") == "py-spy ended with status 101"
    assert pyspy._explain(me, -9, b"") == "py-spy did not exit in time, and was killed"
    assert pyspy._explain(me, -25, b"") == "the output of py-spy is larger than 64 MiB"
    assert pyspy._explain(2**22 + 1, 1, DENIED) == "the process has ended"


def test_a_stack_in_the_log_keeps_its_lines_and_cannot_begin_a_record_of_its_own() -> None:
    record = logging.LogRecord("penstock.watch", logging.ERROR, "", 0, "default:0 is stuck", None, None)
    record.__dict__["stack"] = 'Thread 1 (idle): "\x1b[31m"\n    work (shop.py:7)'
    text = formatter("text").format(record)
    assert text.endswith('default:0 is stuck\n    Thread 1 (idle): "\\x1b[31m"\n        work (shop.py:7)')
    assert json.loads(formatter("json").format(record))["stack"] == record.__dict__["stack"]


def test_a_tracer_can_be_named_where_the_kernel_has_yama() -> None:
    has_yama = Path("/proc/sys/kernel/yama").exists()
    assert allow_tracer(os.getpid()) is has_yama
    assert allow_tracer(NOBODY) is has_yama


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", True),
        ("text/html, application/json;q=0.9", True),
        ("application/json;q=0.5, text/plain", False),
        ("text/plain;q=0.2,APPLICATION/JSON; q=0.3", True),
        ("application/json;q=0", False),
        ("application/json;q=x", False),
    ],
)
def test_json_is_for_those_who_ask_for_it(accept: str, wanted: bool) -> None:
    assert wants_json({"Accept": accept}) is wanted


def test_a_stack_as_text() -> None:
    calls = [
        CallView(1, "late", "r1", "sync", "running", True, 9.0, 8.0, -1.0),
        CallView(2, "next", "r2", "sync", "waiting", False, 3.0, 3.0, 2.0),
    ]
    frames = (pyspy.Frame("work", "shop.py", 7), pyspy.Frame("run", None, 0))
    threads = [pyspy.Thread("agent-1 late", 77, True, True, frames), pyspy.Thread(None, None, False, False, ())]
    text = profiler.Stack("p:0", 70, "stuck", 2.25, False, calls, threads).text()
    assert text.splitlines() == [
        "p:0 (pid 70): stuck, its loop has not turned for 2.2 s",
        "",
        "2 calls in flight:",
        "    late  sync, runs 8.0 s; 1.0 s past its deadline, was told to end  [request r1]",
        "    next  sync, waits 3.0 s for a thread or a connection; 2.0 s left  [request r2]",
        "",
        'Thread 77 (active+gil): "agent-1 late"',
        "    work (shop.py:7)",
        "    run (?)",
        'Thread ? (idle): ""',
    ]
    assert profiler.Stack("p:0", 70, "", 0.0, False, [], []).text().splitlines()[0].endswith("it is not serving")
    assert "`kill -CONT 70`" in profiler.Stack("p:0", 70, "stuck", 2.0, True, [], []).text()
