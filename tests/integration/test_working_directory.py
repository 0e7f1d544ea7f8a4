"""What lies in the working directory is for agents alone, and nobody needs it to be there."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.workers.searching import standard_library
from tests.fix_daemon import AGENTS, Daemon, DaemonFactory, eventually

MINE = """
import sys
from importlib import import_module
from penstock.workers import agent

@agent
def where(name: str) -> str | None:
    return import_module(name).__file__

@agent
def path(body: None) -> list:
    return sys.path
"""

FATAL = "raise SystemExit('it was imported from the working directory')"
IMPORTED = ("email", "random", "types", "logging", "zmq", "msgspec", "psycopg", "_pydatetime", "dill", "uvloop")
"""Names of modules that Penstock, its libraries or the interpreter import, at the start or later."""


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A directory with a module of ours, and others that must not be imported by Penstock itself."""
    made = tmp_path / "crowded"
    made.mkdir()
    (made / "mine.py").write_text(MINE)
    for name in IMPORTED:
        (made / f"{name}.py").write_text(FATAL)
    for folder in ("daemon", "workers", "ipc"):  # a clone
        (made / "penstock" / folder).mkdir(parents=True)
        (made / "penstock" / folder / "__init__.py").write_text(FATAL)
    (made / "wrapt.py").write_text("")
    return made


SCRIPT = f'shift 3; set -- {Path(sys.executable).with_name("penstock")} "$@";'
"""As people start it: ``python -m`` would look into the working directory by itself."""


def check(directory: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    words = [word for setting in ("database.dsn=off", *settings) for word in ("--set", setting)]
    return subprocess.run(
        [Path(sys.executable).with_name("penstock"), "check", *words],
        cwd=directory,
        env={**os.environ, "PENSTOCK_CONFIG": os.devnull},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("preload", [False, True])
def test_what_lies_there_does_not_go_before_penstock_and_the_standard_library(
    crowded: Path, fresh: DaemonFactory, preload: bool
) -> None:
    settings = {"pools.default.workers": 1, "agents.preload": preload}
    if preload:
        (crowded / "penstock" / "__init__.py").write_text(FATAL)
    daemon = fresh("mine", "penstock.workers.demo.basic", settings=settings, directory=crowded, shell=SCRIPT)
    for name in ("email", "random", "penstock.workers.run", "msgspec"):
        assert not str(daemon.call("where", name).json).startswith(str(crowded))
    assert daemon.call("where", "wrapt").json == str(crowded / "wrapt.py"), "it goes before the rest"
    path = daemon.call("path", None).json
    assert path.index(os.path.dirname(json.__file__).removesuffix("/json")) < path.index(str(crowded))
    assert str(crowded) in path
    assert path.index(str(crowded)) < min(i for i, each in enumerate(path) if each.endswith("site-packages"))
    assert daemon.get("/v1/workers/default:0/stack").status == 200
    if not preload:
        daemon.send(signal.SIGHUP)
        eventually(lambda: daemon.worker("default:0")["generation"] > 1, "the reload is done")
        assert daemon.call("where", "mine").json == str(crowded / "mine.py")


def test_a_module_to_serve_that_is_shadowed_is_said_so(crowded: Path, fresh: DaemonFactory) -> None:
    (crowded / "penstock" / "workers" / "demo").mkdir()
    (crowded / "penstock" / "workers" / "demo" / "basic.py").write_text(FATAL)
    modules = ["mine", "email", "penstock.workers.demo.basic"]
    found = check(crowded, f"agents.modules={json.dumps(modules)}")
    assert found.returncode == 1
    said = next(line for line in found.stdout.splitlines() if line.startswith("broken"))
    assert said.split()[1] == "email:"
    assert f"goes before {crowded}/email.py" in said
    assert "from mine" in found.stdout
    daemon = fresh(*modules, settings={"pools.default.workers": 1}, directory=crowded, shell=SCRIPT)
    assert daemon.call("echo", 1).json == 1
    assert f"goes before {crowded}/email.py" in daemon.log
    assert f"goes before {crowded}/penstock/workers/demo/basic.py" in daemon.log


def test_functions_are_served_from_there(crowded: Path, tmp_path: Path) -> None:
    program = "from penstock.workers.serve import command; print(command('/x')[1])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "-P\n", "what python -m would look for first"


def control(daemon: Daemon, *words: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("penstock")), "ctl", "--set", f"supervision.state_dir={daemon.state}"]
    script = 'cd "$1" && rmdir "$1"; shift; exec "$@"'
    directory.mkdir()
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(directory), *command, *words],
        env={**os.environ, "PENSTOCK_CONFIG": os.devnull},
        capture_output=True,
        text=True,
    )


def test_a_working_directory_that_is_deleted_is_not_missed(tmp_path: Path, fresh: DaemonFactory) -> None:
    old = tmp_path / "old"
    old.mkdir()
    settings = {"pools.default.workers": 2, "database.dsn": ""}
    daemon = fresh("basic", settings=settings, directory=old, environment={"PYTHONPATH": str(AGENTS)})
    shutil.rmtree(old)
    for worker in daemon.wait_workers(2):
        os.kill(worker["pid"], signal.SIGKILL)
    eventually(lambda: {each["generation"] for each in daemon.workers()} == {2}, "both are new")
    daemon.wait_workers(2)
    assert daemon.request("POST", "/v1/reload").status == 202
    eventually(lambda: min(each["generation"] for each in daemon.workers()) > 2, "all are newer")
    assert daemon.call("echo", 1).json == 1
    assert daemon.get("/v1/workers/default:0/stack").status == 200
    avail = control(daemon, "avail", directory=tmp_path / "gone")
    assert avail.returncode == 0
    assert "default:0" in avail.stdout
    assert "Traceback" not in daemon.log
    assert daemon.log.count(f"the working directory {old} was deleted") == 1


def test_nothing_of_a_start_in_a_deleted_directory_fails(tmp_path: Path, fresh: DaemonFactory) -> None:
    old = tmp_path / "old"
    old.mkdir()
    daemon = fresh("basic", directory=old, shell=f"rmdir {old};", environment={"PYTHONPATH": str(AGENTS)})
    assert daemon.call("echo", 1).json == 1
    assert daemon.log.count(f"the working directory {old} was deleted") == 1


def test_a_cleaner_of_temporary_directories_takes_nothing_that_is_needed(tmp_path: Path, fresh: DaemonFactory) -> None:
    """Not even where the state directory's path is too long for sockets."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    settings = {"pools.default.workers": 1, "database.dsn": ""}
    daemon = fresh.prepare("stored", settings=settings, environment={"TMPDIR": str(temporary), "XDG_RUNTIME_DIR": ""})
    daemon.state = daemon.state / ("d" * 100)
    daemon.state.parent.mkdir()
    daemon.start()
    daemon.wait_ready()
    for each in temporary.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    for _ in range(2):
        os.kill(daemon.worker("default:0")["pid"], signal.SIGKILL)
        eventually(lambda: daemon.call("ask", "SELECT 1").json == [[1]], "its successor works, with the database")
    assert daemon.request("POST", "/v1/reload").status == 202


SERVE = """
import os, sys
from penstock.workers import serve
serve({"pid": lambda body: os.getpid()}, workers=1, bind="127.0.0.1:0", settings={"database.dsn": "off"})
"""


def test_served_functions_need_no_temporary_file(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    daemon = Daemon(tmp_path / "state", [], [])
    environment = {"TMPDIR": str(temporary), "PENSTOCK_SUPERVISION__STATE_DIR": str(daemon.state)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVE],
        env={**os.environ, "PENSTOCK_CONFIG": os.devnull, **environment},
    ) as caller:
        try:
            daemon.process = caller
            daemon.wait_ready()
            assert list(temporary.iterdir()) == []
            before = daemon.call("pid").json
            os.kill(before, signal.SIGKILL)
            eventually(lambda: daemon.call("pid").json not in (before, None), "its successor works")
        finally:
            caller.terminate()
            caller.wait()


def test_where_the_supervisor_looks_for_modules_workers_look_too(tmp_path: Path, fresh: DaemonFactory) -> None:
    """Last, since whoever started it may have put Penstock there, and not by the environment."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.py").write_text(MINE)
    program = (
        f"import sys; sys.path.append('{tmp_path}/bundle'); from penstock.daemon.__main__ import command; command()"
    )
    shell = f'shift 3; set -- {sys.executable} -P -c "{program}" "$@";'
    daemon = fresh("mine", settings={"pools.default.workers": 1}, directory=tmp_path, shell=shell)
    assert daemon.call("path", None).json[-1] == f"{tmp_path}/bundle"


def test_the_standard_library_is_where_its_modules_are() -> None:
    bare = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys; print(*sys.path, sep='\\n')"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(bare.stdout.split()) <= standard_library()
    for name in ("email", "random", "_json"):
        file = str(importlib.import_module(name).__file__)
        assert any(file.startswith(entry + os.sep) for entry in standard_library())
