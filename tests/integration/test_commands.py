"""``penstock check``, ``call``, ``status`` and ``reload`` as a user runs them, as processes, with a real daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fix_daemon import AGENTS, Daemon, DaemonFactory, eventually

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons("basic")
    made.wait_workers(2)
    return made


def penstock(*arguments: str, given: str = "", url: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command; what it said and how it ended."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    if url:
        variables["PENSTOCK_URL"] = url
    return subprocess.run(
        [sys.executable, "-m", "penstock.daemon", *arguments],
        cwd=AGENTS,
        env={**variables, "PENSTOCK_CONFIG": os.devnull, **environment},
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def run(daemon: Daemon) -> Run:
    """Run a command against the daemon."""

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return penstock(*arguments, url=f"http://127.0.0.1:{daemon.port}", **more)

    return run


def test_call_prints_the_result(run: Run, tmp_path: Path) -> None:
    assert run("call", "echo", '{"a": [1, "ä"]}').stdout == '{"a":[1,"ä"]}\n'
    assert run("call", "echo", "-", given="17").stdout == "17\n"
    (tmp_path / "body").write_text('"from a file"')
    assert run("call", "echo", f"@{tmp_path}/body").stdout == '"from a file"\n'


def test_call_explains_problems(run: Run) -> None:
    done = run("call", "order", '{"text": 1}')
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("penstock: invalid-body (422): ")
    assert "$.text" in done.stderr
    assert done.stderr.count("\n") == 1
    assert run("call", "nobody", "1").stderr.startswith("penstock: unknown-agent (404): ")
    assert run("call", "a/b", "1").stderr.startswith("penstock: unknown-agent (404): ")


def test_call_keeps_its_deadline(run: Run) -> None:
    done = run("call", "wait", "--timeout", "200ms", "20")
    assert done.returncode == 1
    assert done.stderr.startswith("penstock: deadline-exceeded (504): ")


def test_status_shows_what_runs(run: Run, daemon: Daemon) -> None:
    text = run("status").stdout
    assert "default:0" in text
    assert "default:1" in text
    assert "RUNNING" in text
    assert "database  off" in text
    said = json.loads(run("status", "--json").stdout)
    assert [worker["pid"] for worker in said["workers"]] == [worker["pid"] for worker in daemon.workers()]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["status"], ["call", "echo", "1"], ["--version"], ["--help"]])
def test_output_that_nobody_reads_is_no_traceback(daemon: Daemon, arguments: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "penstock.daemon", *arguments],
        env={**os.environ, "PENSTOCK_URL": f"127.0.0.1:{daemon.port}", "PYTHONUNBUFFERED": unbuffered},
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writing)
    assert done.stderr == b""
    # argparse does not mind when its help cannot be written.
    assert done.returncode == 1 or arguments == ["--help"]


def test_reload_takes_new_code_and_says_why_it_does_not_take_broken_code(fresh: DaemonFactory, tmp_path: Path) -> None:
    module = tmp_path / "versioned.py"
    code = "from penstock.workers import agent\n\n@agent\nasync def version() -> int:\n    return {}\n"
    module.write_text(code.format(1))
    daemon = fresh("versioned", environment={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"})
    daemon.wait_workers(2)
    url = f"http://127.0.0.1:{daemon.port}"
    module.write_text("raise RuntimeError('no good')\n")
    done = penstock("reload", url=url)
    assert done.returncode == 1
    assert done.stderr.startswith("penstock: reload-failed (409): ")
    assert "no good" in done.stderr
    assert done.stderr.count("\n") == 1
    assert penstock("call", "version", url=url).stdout == "1\n"
    module.write_text(code.format(333))
    assert penstock("reload", url=url).returncode == 0
    eventually(lambda: penstock("call", "version", url=url).stdout == "333\n", "the new code serves")


def test_reload_reads_the_configuration_again(fresh: DaemonFactory, tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text("[agents]\ntimeout = 7\n")
    daemon = fresh("basic", environment={"PENSTOCK_CONFIG": str(file)})
    url = f"http://127.0.0.1:{daemon.port}"
    assert daemon.get("/v1/agents/echo").json["timeout"] == 7
    file.write_text("[agents]\ntimeout = -1\n")
    done = penstock("reload", url=url)
    assert done.returncode == 1
    assert "agents.timeout: -1 must be" in done.stderr
    assert daemon.get("/v1/agents/echo").json["timeout"] == 7
    file.write_text("[agents]\ntimeout = 9\n")
    assert penstock("reload", url=url).returncode == 0
    eventually(lambda: daemon.get("/v1/agents/echo").json["timeout"] == 9, "the new timeout counts")


def test_a_daemon_on_a_unix_socket_is_found_by_its_configuration(
    fresh: DaemonFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = fresh.prepare("basic")
    bind = f"http.bind=unix:{tmp_path}/http.sock"
    command = [*daemon.command(), "--bind", bind.removeprefix("http.bind=")]
    monkeypatch.setattr(daemon, "command", lambda: command)
    daemon.start()
    eventually(lambda: penstock("call", "--set", bind, "echo", "5").stdout == "5\n", "it answers on its socket")
    assert "RUNNING" in penstock("status", "--set", bind).stdout
    assert daemon.stop() == 0
    done = penstock("status", "--set", bind)
    assert done.returncode == 1
    assert f"no daemon answers at unix:{tmp_path}/http.sock" in done.stderr


@pytest.fixture
def chosen(fresh: DaemonFactory, tmp_path: Path) -> tuple[Daemon, list[str]]:
    """A daemon whose ports the system chose, and the options that name its configuration."""
    file = tmp_path / "penstock.toml"
    file.write_text(
        f'[http]\nbind = "127.0.0.1:0"\nadmin_bind = "127.0.0.1:0"\n[supervision]\nstate_dir = "{tmp_path}/state0"\n'
    )
    return fresh("basic", settings={"http.admin_bind": "127.0.0.1:0"}), ["-c", str(file)]


def test_a_daemon_whose_port_the_system_chose_is_found_by_its_state_directory(
    chosen: tuple[Daemon, list[str]],
) -> None:
    daemon, options = chosen
    listening = daemon.status()["listening"]
    assert listening == {"http": [f"127.0.0.1:{daemon.port}"], "admin": [f"127.0.0.1:{daemon.admin_port}"]}
    for port in (daemon.port, daemon.admin_port):
        assert f"listening on 127.0.0.1:{port}\n" in daemon.log
    shown = penstock("status", *options)
    assert f"listens   127.0.0.1:{daemon.port}, 127.0.0.1:{daemon.admin_port} (admin)\n" in shown.stdout
    assert penstock("call", *options, "echo", "1").stdout == "1\n"
    assert "MainThread" in penstock("stack", *options, "default:0").stdout, "by the listener that has admin routes"
    assert penstock("profile", *options, "-d", "0.1", "--format", "raw", "-o", "-", "default:0").returncode == 0
    assert penstock("reload", *options).returncode == 0


def test_a_daemon_at_another_address_is_found_without_configuration(
    chosen: tuple[Daemon, list[str]],
) -> None:
    daemon, _ = chosen
    assert penstock("call", "--set", f"supervision.state_dir={daemon.state}", "echo", "2").stdout == "2\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_port_of_a_daemon_that_has_ended_is_not_asked(
    chosen: tuple[Daemon, list[str]], number: signal.Signals
) -> None:
    daemon, options = chosen
    daemon.stop(number)
    done = penstock("status", *options)
    assert done.returncode == 1
    assert f"no daemon runs on the state directory {daemon.state}" in done.stderr
    assert done.stderr.count("\n") == 1


# check

OFF = ["--set", "database.dsn=off"]


def test_check_prints_what_would_run() -> None:
    done = penstock("check", *OFF, "--set", "agents.modules=basic", "--set", "pools.default.workers=3")
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:8080" in done.stdout
    assert "default: 3 workers" in done.stdout
    assert "echo (async" in done.stdout
    assert "spin (sync" in done.stdout
    assert "database    off" in done.stdout
    assert os.devnull in done.stdout


def test_check_puts_every_agent_into_its_pool(tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(
        "[agents]\nmodules = ['basic']\n[database]\ndsn = 'off'\n"
        "[pools.first]\nagents = ['spin', 'wait*']\n[pools.rest]\n"
    )
    done = penstock("check", "-c", str(file))
    assert done.returncode == 0, done.stderr
    first, rest = done.stdout.split("pool        first")[1].split("pool        rest")
    assert {"spin", "wait", "wait_again"} == {line.split()[1] for line in first.splitlines() if " agent " in line}
    assert " echo " in rest
    assert " spin " not in rest
    assert str(file) in done.stdout


def test_check_names_a_module_that_cannot_be_imported() -> None:
    done = penstock("check", *OFF, "--set", "agents.modules=['basic', 'broken_module']")
    assert done.returncode == 1
    assert "broken_module" in done.stdout
    assert "broken on purpose" in done.stdout
    assert " echo " in done.stdout
    done = penstock("check", *OFF, "--set", "agents.modules=there_is_no_such_module")
    assert done.returncode == 1
    assert "there_is_no_such_module" in done.stdout


def test_check_finds_a_pool_that_does_not_exist() -> None:
    done = penstock("check", *OFF, "--set", "agents.modules=lost")
    assert done.returncode == 78
    assert "nowhere" in done.stdout


def test_check_tries_the_database() -> None:
    done = penstock("check", "--set", "agents.modules=basic", "--set", "database.dsn=host=127.0.0.1 port=9 dbname=x")
    assert done.returncode == 1
    assert "database    cannot be reached" in done.stdout


def test_check_ends_with_78_for_a_wrong_setting() -> None:
    done = penstock("check", PENSTOCK_QUEUE__HIGH_WATER="0")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "penstock: queue.high_water: 0 must be an integer from 1 to 1000000\n"


def test_serve_ends_with_78_for_a_wrong_setting() -> None:
    done = penstock("serve", "--set", "agents.timeuot=3")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "penstock: agents.timeuot = 3: there is no such setting; did you mean agents.timeout?\n"
