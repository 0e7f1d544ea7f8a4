"""Reloads: what they follow, what they compare, who waits for whom, and what is said meanwhile."""

from __future__ import annotations

import os
import py_compile
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fix_daemon import Daemon, DaemonFactory, eventually

MODULE = """
from penstock.workers import agent
{more}
@agent
def version(body: None = None) -> int:
    return {version}
"""
HANG = """
import os, time
from penstock.workers import on_start
@on_start
def wait_for_the_model() -> None:
    open({path!r} + ".waits", "w").close()
    while os.path.exists({path!r}):
        time.sleep(0.01)
"""


def write(directory: Path, version: int, more: str = "") -> Path:
    """The module ``versioned``, whose agent tells this version."""
    directory.mkdir(exist_ok=True)
    module = directory / "versioned.py"
    module.write_text(MODULE.format(version=version, more=more))
    return module


def serve(fresh: DaemonFactory, directory: Path, settings: dict[str, Any] | None = None) -> Daemon:
    daemon = fresh("versioned", settings=settings, environment={"PYTHONPATH": str(directory)})
    daemon.wait_workers(2)
    return daemon


def reloads(daemon: Daemon) -> int:
    """How many have come to their end."""
    return daemon.log.count("reloaded: every worker runs the new code and configuration")


def answers(daemon: Daemon, version: int) -> None:
    """Every worker has this version, and they say so themselves."""
    eventually(lambda: {daemon.call("version").json for _ in range(8)} == {version}, f"{version} is served")

    def codes() -> set[str]:
        return {worker["code"] for worker in daemon.wait_workers(2)}

    eventually(lambda: len(codes()) == 1 and codes() != {""}, "all run the same code")


def by_post(daemon: Daemon) -> None:
    assert daemon.request("POST", "/v1/reload").status == 202


def by_signal(daemon: Daemon) -> None:
    daemon.send(signal.SIGHUP)


@pytest.mark.parametrize("ask", [by_post, by_signal])
def test_a_link_that_was_given_is_followed_again(
    fresh: DaemonFactory, tmp_path: Path, ask: Callable[[Daemon], None]
) -> None:
    for release in (1, 2):
        directory = tmp_path / f"release{release}"
        write(directory, release)
        (directory / "lib").mkdir()
        (directory / "lib" / "helping.py").write_text(f"NUMBER = {release}\n")
        with (directory / "versioned.py").open("a") as file:
            file.write("@agent\ndef helped(body: None = None) -> int:\n    import helping\n    return helping.NUMBER\n")
        (directory / "penstock.toml").write_text(f"pools.default.concurrency = {release}0\n")
    current = tmp_path / "current"
    current.symlink_to("release1")
    daemon = fresh.prepare("versioned")
    environment = {"PWD": str(current), "PYTHONPATH": "lib", "PENSTOCK_CONFIG": "penstock.toml"}
    with daemon.log_path.open("ab") as output:
        daemon.process = subprocess.Popen(
            daemon.command(), cwd=current, stdout=output, stderr=output, env={**os.environ, **environment}
        )
    daemon.wait_ready()
    answers(daemon, 1)
    current.unlink()
    current.symlink_to("release2")
    # One that comes back before the reload is one of the old.
    old = daemon.worker("default:0")["pid"]
    os.kill(old, signal.SIGKILL)
    eventually(lambda: daemon.worker("default:0")["pid"] not in (0, old), "it is back")
    answers(daemon, 1)
    ask(daemon)
    answers(daemon, 2)
    eventually(lambda: reloads(daemon) == 1, "the reload is done")
    assert daemon.call("helped").json == 2
    assert [worker["slots"] for worker in daemon.workers()] == [20, 20]
    assert os.path.realpath(f"/proc/{daemon.pid}/cwd") == str(tmp_path / "release2")


def test_code_of_the_same_length_and_time_is_new_code(fresh: DaemonFactory, tmp_path: Path) -> None:
    module = write(tmp_path, 1)
    os.utime(module, (1_000_000_000, 1_000_000_000))
    py_compile.compile(str(module), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    daemon = serve(fresh, tmp_path)
    before = daemon.worker("default:0")["code"]
    write(tmp_path, 2)
    os.utime(module, (1_000_000_000, 1_000_000_000))
    by_post(daemon)
    answers(daemon, 2)
    after = daemon.worker("default:0")["code"]
    assert after != before
    eventually(lambda: reloads(daemon) == 1, "the reload is done")
    assert f"(code {after})" in daemon.log
    write(tmp_path, 1)
    by_post(daemon)
    answers(daemon, 1)
    assert daemon.worker("default:0")["code"] == before, "it is one of the contents"


def test_code_that_changes_while_workers_are_replaced_is_noticed(fresh: DaemonFactory, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    # Each process that imports it finds other code than the one before.
    changing = tmp_path / "changing.py"
    changing.write_text("A = 1\n")
    write(
        tmp_path,
        1,
        f"import changing, os\nif os.path.exists({str(gate)!r}):\n    open({str(changing)!r}, 'a').write('#')\n",
    )
    daemon = serve(fresh, tmp_path)
    gate.touch()
    by_post(daemon)
    eventually(lambda: "the code changed meanwhile, and workers are mixed" in daemon.log, "it is said")
    assert len({worker["code"] for worker in daemon.workers()}) == 2
    gate.unlink()
    by_post(daemon)
    answers(daemon, 1)


def test_one_that_comes_back_with_other_code_is_told_of(fresh: DaemonFactory, tmp_path: Path) -> None:
    write(tmp_path, 1)
    daemon = serve(fresh, tmp_path)
    write(tmp_path, 2)
    os.kill(daemon.worker("default:1")["pid"], signal.SIGKILL)
    eventually(lambda: "default:1/2 runs other code" in daemon.log, "it is said")
    assert len({worker["code"] for worker in daemon.workers()}) == 2


@pytest.mark.parametrize("ask", [by_post, by_signal])
def test_a_reload_asked_for_while_one_rolls_follows_it(
    fresh: DaemonFactory, tmp_path: Path, ask: Callable[[Daemon], None]
) -> None:
    hold = tmp_path / "hold"
    write(tmp_path, 1)
    daemon = serve(fresh, tmp_path)
    hold.touch()
    # Proven at once, while the second worker takes its time.
    write(
        tmp_path,
        2,
        "import multiprocess\nif multiprocess.current_process().name.endswith(':1'):\n"
        + "\n".join(f"    {line}" for line in HANG.format(path=str(hold)).splitlines()),
    )
    by_post(daemon)
    eventually((tmp_path / "hold.waits").exists, "the second of them starts")
    write(tmp_path, 3)
    second = None
    if ask is by_post:
        second = daemon.begin_post("/v1/reload")
    else:
        ask(daemon)
    eventually(lambda: "and follows it" in daemon.log, "the second is remembered")
    hold.unlink()
    answers(daemon, 3)
    assert second is None or second.result().status == 202
    eventually(lambda: reloads(daemon) == 2, "both are done")


def test_a_reload_that_hangs_gives_way_to_a_newer_one(fresh: DaemonFactory, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    write(tmp_path, 1)
    daemon = serve(fresh, tmp_path, {"supervision.start_timeout": 12.0})
    write(tmp_path, 2, HANG.format(path=str(hold)))
    daemon.send(signal.SIGHUP)
    first = daemon.begin_post("/v1/reload")
    eventually(
        lambda: "the reload waits for default:0/" in daemon.log and "the start hook versioned.wait_for" in daemon.log,
        "it is said what it waits for",
    )
    write(tmp_path, 3)
    by_post(daemon)
    assert first.result().status == 202, "what it asked for is older than what serves"
    assert "supervision.start_timeout" not in daemon.log, "nobody waited for the end of that"
    answers(daemon, 3)


def test_a_reload_that_hangs_is_bounded(fresh: DaemonFactory, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    write(tmp_path, 1)
    daemon = serve(fresh, tmp_path, {"supervision.start_timeout": 4.0})
    write(tmp_path, 2, HANG.format(path=str(hold)))
    reply = daemon.request("POST", "/v1/reload")
    assert (reply.status, reply.problem) == (409, "reload-failed")
    assert "supervision.start_timeout" in reply.json["detail"]
    assert "versioned.wait_for_the_model" in reply.json["detail"]
    answers(daemon, 1)


def test_a_module_may_run_a_loop_at_its_import(fresh: DaemonFactory, tmp_path: Path) -> None:
    write(
        tmp_path,
        5,
        "import asyncio, threading, time\n"
        "async def prepare():\n    await asyncio.sleep(0)\n"
        "asyncio.run(prepare())\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n",
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PENSTOCK_CONFIG": os.devnull}
    command = [sys.executable, "-m", "penstock.daemon", "check", "--set", "agents.modules=versioned"]
    checked = subprocess.run(
        [*command, "--set", "database.dsn=off"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    daemon = serve(fresh, tmp_path, {"supervision.stop_timeout": 1.0})
    answers(daemon, 5)
