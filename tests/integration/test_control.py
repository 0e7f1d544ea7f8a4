"""Stopping, starting and reloading by the control socket: what it does to requests, and who may use it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from supervisor.xmlrpc import Faults

from tests.fix_control import client_command, connect, fault, proxy, supervisorctl
from tests.fix_daemon import PATIENCE, PATIENT, Daemon, DaemonFactory, eventually, line_of, rest_of


def control(daemon: Daemon) -> Path:
    return daemon.state / "control.sock"


def api(daemon: Daemon) -> Any:
    return proxy(control(daemon)).supervisor


def state(daemon: Daemon, name: str) -> str:
    return str(api(daemon).getProcessInfo(name)["statename"])


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    started = daemons("basic")
    started.wait_workers(2)
    return started


# Stop and start


def test_a_stop_lets_the_calls_end_and_the_worker_stays_stopped(daemon: Daemon) -> None:
    calls = [daemon.begin("alone", {"seconds": 0.6}) for _ in range(2)]
    eventually(lambda: daemon.in_flight() == 2, "both workers have one")
    begun = time.monotonic()
    stopping = threading.Thread(target=api(daemon).stopProcess, args=("default:0",))
    stopping.start()
    eventually(lambda: state(daemon, "default:0") == "STOPPING", "it is stopping")
    # A second stop waits with the first, and a start for its end.
    assert api(daemon).stopProcess("default:0") is True
    assert time.monotonic() - begun > 0.3
    stopping.join()
    assert [call.result().status for call in calls] == [200, 200]
    # The other worker serves on, and nothing but a start brings this one back: not a restart of the code either.
    assert daemon.call("echo", 1).status == 200
    assert daemon.request("POST", "/v1/reload").status == 202
    eventually(lambda: "every worker runs the new code" in daemon.log, "the reload is over")
    assert state(daemon, "default:0") == "STOPPED"
    assert api(daemon).startProcess("default:0") is True
    assert state(daemon, "default:0") == "RUNNING"


def test_a_start_during_a_stop_comes_after_it(daemon: Daemon) -> None:
    call = daemon.begin("wait", {"seconds": 0.4})
    eventually(lambda: daemon.in_flight() == 1, "it runs")
    busy = next(worker["name"] for worker in daemon.workers() if worker["in_flight"])
    before = daemon.worker(busy)["pid"]
    api(daemon).stopProcess(busy, False)
    assert fault(api(daemon).stopProcess, busy, False)[0] == Faults.NOT_RUNNING
    assert api(daemon).startProcess(busy, False) is True
    assert call.result().status == 200
    eventually(lambda: state(daemon, busy) == "RUNNING", "it runs again")
    assert daemon.worker(busy)["pid"] != before


def test_stopping_all_does_what_waits_and_refuses_what_is_new(daemon: Daemon) -> None:
    held = [daemon.hold("alone", {"seconds": 25}) for _ in range(2)]
    eventually(lambda: daemon.in_flight() == 2, "both workers are held")
    calls = [daemon.begin("alone", {"seconds": 0.1}, PATIENT) for _ in range(6)]
    eventually(lambda: daemon.status()["queue"]["requests"] == 6, "six wait")
    stopping = threading.Thread(target=api(daemon).stopAllProcesses)
    stopping.start()
    eventually(lambda: daemon.get("/readyz").status == 503, "it is known that nobody will serve")
    refused = daemon.call("echo", 1)
    assert (refused.status, refused.problem) == (503, "unavailable")
    for connection in held:
        connection.close()
    assert [call.result().status for call in calls] == [200] * 6
    stopping.join()
    assert {worker["state"] for worker in daemon.workers()} == {"STOPPED"}
    assert daemon.call("echo", 1).problem == "unavailable"
    assert len(api(daemon).startAllProcesses()) == 2
    assert daemon.call("echo", 1).status == 200


def test_a_restart_of_one_under_load_fails_nothing(daemon: Daemon) -> None:
    done = threading.Event()
    replies: list[int] = []

    def hammer() -> None:
        while not done.is_set():
            replies.append(daemon.call("wait", {"seconds": 0.01}).status)

    threads = [threading.Thread(target=hammer) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for name in ("default:0", "default:1"):
            assert supervisorctl(control(daemon), "restart", name).status == 0
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert set(replies) == {200}
    assert len(replies) > 20


def test_what_the_stop_timeout_cuts_off_is_answered(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", settings={"supervision.stop_timeout": 0.3, "pools.default.workers": 1})
    calls = [daemon.begin("alone", {"seconds": 25}) for _ in range(2)]
    eventually(lambda: daemon.status()["queue"]["requests"] == 1, "one waits")
    assert api(daemon).stopProcess("default:0") is True
    assert [call.result().problem for call in calls] == ["unavailable"] * 2


def test_a_worker_that_dies_is_started_again_and_one_that_cannot_start_is_fatal(fresh: DaemonFactory) -> None:
    daemon = fresh(
        "chatty",
        settings={"pools.default.workers": 1, "supervision.start_retries": 1, "supervision.start_seconds": 0},
        environment={"CHATTY_BROKEN": str(fresh._directory / "broken")},
    )
    first = api(daemon).getProcessInfo("default:0")
    eventually(lambda: api(daemon).getProcessInfo("default:0")["now"] > first["start"], "it has run for a while")
    api(daemon).signalProcess("default:0", "KILL")
    eventually(lambda: state(daemon, "default:0") == "RUNNING" and daemon.worker("default:0")["restarts"] == 1, "again")
    (fresh._directory / "broken").touch()
    api(daemon).signalProcess("default:0", "KILL")
    eventually(lambda: state(daemon, "default:0") == "FATAL", "it is given up")
    info = api(daemon).getProcessInfo("default:0")
    assert "told to fail" in info["spawnerr"]
    assert info["description"] == info["spawnerr"]
    assert (info["pid"], info["exitstatus"]) == (0, 0)
    assert supervisorctl(control(daemon), "status").status == 3
    (fresh._directory / "broken").unlink()
    assert api(daemon).startProcess("default:0") is True


# Reload and shutdown


def test_reload_takes_new_code_or_says_why_not(fresh: DaemonFactory, tmp_path: Path) -> None:
    module = tmp_path / "turning.py"
    module.write_text("from penstock.workers import agent\n@agent\nasync def one(body=None): return 1\n")
    daemon = fresh("turning", environment={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"})
    daemon.wait_workers(2)
    module.write_text("nonsense(\n")
    said = supervisorctl(control(daemon), "reload")
    assert said.status == 1
    assert "SyntaxError" in said.out
    assert daemon.call("one").body == b"1"
    module.write_text("from penstock.workers import agent\n@agent\nasync def one(body=None): return 22\n")
    assert supervisorctl(control(daemon), "reload").out == "Restarted supervisord\n"
    eventually(lambda: daemon.call("one").body == b"22", "the new code answers")


def test_a_broken_configuration_cannot_be_reread(fresh: DaemonFactory, tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text("[queue]\nhigh_water = 10\nlow_water = 5\n")
    daemon = fresh("basic", environment={"PENSTOCK_CONFIG": str(file)})
    file.write_text("[queue]\nhigh_water = 0\n")
    said = supervisorctl(control(daemon), "reread")
    assert (said.status, said.out) == (
        1,
        "ERROR: CANT_REREAD: queue.high_water: 0 must be an integer from 1 to 1000000\n",
    )
    file.write_text('[control]\nmode = "0660"\n')
    assert "control.mode cannot change in a reload" in supervisorctl(control(daemon), "reread").out
    # What concerns no worker is no change of a group, and comes with a reload.
    file.write_text("[queue]\nhigh_water = 77\n")
    assert supervisorctl(control(daemon), "reread").out == "No config updates to processes\n"
    assert daemon.status()["queue"]["high_water"] == 10
    assert supervisorctl(control(daemon), "reload").status == 0
    assert daemon.status()["queue"]["high_water"] == 77
    file.write_text("[queue]\nhigh_water = 77\n[agents]\ntimeout = 5\n")
    assert supervisorctl(control(daemon), "reread").out == "No config updates to processes\n"
    file.write_text("[queue]\nhigh_water = 77\n[agents]\npreload = true\n")
    assert supervisorctl(control(daemon), "update").out == "default: stopped\ndefault: updated process group\n"
    eventually(lambda: daemon.get("/readyz").status == 200, "it serves again")


@pytest.mark.parametrize("preload", ["false", "true"])
def test_an_update_of_one_pool_changes_nothing_of_what_is_not_its_own(
    fresh: DaemonFactory, tmp_path: Path, preload: str
) -> None:
    (tmp_path / "added.py").write_text(
        "import os\nfrom penstock.workers import agent\n"
        f"open({str(tmp_path / 'imported')!r}, 'a').write(f'{{os.getpid()}} ')\n"
        "@agent\nasync def added(body=None): return 1\n"
    )
    file = tmp_path / "penstock.toml"
    old = f'[pools.old]\nworkers = 1\n[agents]\npreload = {preload}\nmodules = ["basic"]\n'
    file.write_text(old)
    environment = {"PENSTOCK_CONFIG": str(file), "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    daemon = fresh.prepare("basic", environment=environment)
    daemon.agents, daemon.settings = [], ["database.dsn=off"]
    daemon.start()
    daemon.wait_ready()

    def importing(pool: str) -> bool:
        """Whether a worker of the pool that runs, or its forkserver, has imported the added module."""
        process = psutil.Process(daemon.worker(f"{pool}:0")["pid"])
        return bool({str(process.pid), str(process.ppid())} & set((tmp_path / "imported").read_text().split()))

    def rest() -> list[Any]:
        status = daemon.status()
        queue, throttle = status["queue"], status["throttle"]
        timeout = daemon.get("/v1/agents/echo").json["timeout"]
        return [queue["high_water"], queue["max_bytes"], throttle["enabled"], throttle["target"], timeout]

    before = rest()
    file.write_text(
        '[pools.new]\nworkers = 1\nagents = ["added"]\n'
        + old.replace('"basic"]', '"basic", "added"]\ntimeout = 1.5')
        + '[log]\nlevel = "debug"\n[throttle]\nenabled = false\n'
        + '[queue]\nhigh_water = 7\nlow_water = 5\nmax_bytes = "1MiB"\ntarget_delay = 0.7\n'
    )
    ctl = control(daemon)
    assert supervisorctl(ctl, "update new").out == "new: added process group\n"
    eventually(lambda: daemon.call("added").status == 200, "the agent of the new pool answers")
    assert rest() == before
    assert importing("new")
    first = daemon.worker("old:0")["pid"]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: daemon.worker("old:0")["pid"] not in (0, first), "the old pool's worker is followed")
    daemon.wait_workers(2)
    assert not importing("old")
    # It takes what workers are started with when it is updated itself, and the rest comes with a reload.
    assert supervisorctl(ctl, "update").out == "old: stopped\nold: updated process group\n"
    daemon.wait_workers(2)
    assert importing("old")
    assert supervisorctl(ctl, "reread").out == "No config updates to processes\n"
    assert rest() == before
    assert supervisorctl(ctl, "reload").status == 0
    eventually(lambda: rest() == [7, 2**20, False, 0.7, 1.5], "a reload takes everything")


def test_a_pool_that_is_removed_takes_its_agents_with_it(fresh: DaemonFactory, tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    pools = '[pools.fast]\nworkers = 1\nagents = ["echo"]\n[pools.slow]\nworkers = 1\nagents = ["wait"]\n'
    file.write_text(pools)
    daemon = fresh.prepare("basic", environment={"PENSTOCK_CONFIG": str(file)})
    daemon.settings = ["database.dsn=off"]
    daemon.start()
    daemon.wait_ready()
    daemon.wait_workers(2)
    file.write_text(pools.partition("[pools.slow]")[0])
    assert supervisorctl(control(daemon), "update").out == "slow: stopped\nslow: removed process group\n"
    assert daemon.call("wait", {"seconds": 0}).problem == "unknown-agent"
    assert daemon.call("echo", 1).status == 200
    file.write_text(pools)
    assert supervisorctl(control(daemon), "update").out == "slow: added process group\n"
    eventually(lambda: daemon.call("wait", {"seconds": 0}).status == 200, "it is back")


def test_a_shutdown_drains_and_takes_no_more_orders(fresh: DaemonFactory) -> None:
    daemon = fresh("basic")
    follower = subprocess.Popen(client_command(control(daemon), "maintail", "-f"), stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    assert line_of(follower, "maintail -f prints what there is")
    call = daemon.begin("wait", {"seconds": 2.0})
    eventually(lambda: daemon.in_flight() == 1, "it runs")
    said = supervisorctl(control(daemon), "shutdown")
    assert (said.status, said.out) == (0, "Shut down\n")
    assert fault(api(daemon).getAllProcessInfo) == (Faults.SHUTDOWN_STATE, "SHUTDOWN_STATE")
    assert proxy(control(daemon)).system.listMethods()
    assert api(daemon).sendRemoteCommEvent("a", "b") is True
    assert call.result().status == 200
    assert daemon.process is not None
    assert daemon.process.wait(PATIENCE) == 0
    with follower.stdout:
        assert "draining, at most 30 s" in rest_of(follower, "maintail -f ends")
    assert follower.wait(PATIENCE) == 0
    assert not control(daemon).exists()


# The socket


def test_the_socket_is_for_its_owner_alone(daemon: Daemon) -> None:
    found = control(daemon).lstat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_mode_and_owner_are_as_configured(fresh: DaemonFactory, tmp_path: Path) -> None:
    path = tmp_path / "made" / "c.sock"
    path.parent.mkdir()
    path.write_bytes(b"")
    settings = {"control.socket": str(path), "control.mode": '"0660"', "control.owner": f":{os.getgid()}"}
    daemon = fresh.prepare("basic", settings=settings)
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(PATIENCE) == 1
    assert f"control socket {path}: the path exists and is not a socket" in daemon.log
    path.unlink()
    daemon.start()
    daemon.wait_ready()
    assert stat.S_IMODE(path.lstat().st_mode) == 0o660
    assert supervisorctl(path, "pid").out == f"{daemon.pid}\n"


def test_an_owner_that_is_not_there_is_a_configuration_error(fresh: DaemonFactory) -> None:
    daemon = fresh.prepare("basic", settings={"control.owner": "nobody-of-that-name"})
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(PATIENCE) == 78
    assert "control.owner: 'nobody-of-that-name'" in daemon.log


def test_it_lies_in_the_runtime_directory_which_is_made(fresh: DaemonFactory, tmp_path: Path) -> None:
    directory = tmp_path / "run" / "penstock"
    daemon = fresh("basic", environment={"RUNTIME_DIRECTORY": str(directory)})
    assert supervisorctl(directory / "control.sock", "pid").out == f"{daemon.pid}\n"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not control(daemon).exists()


def test_a_stale_socket_is_replaced_and_one_in_use_is_not(fresh: DaemonFactory, tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    daemon = fresh("basic", settings={"control.socket": str(path)})
    assert supervisorctl(path, "pid").out == f"{daemon.pid}\n"
    second = fresh.prepare("basic", settings={"control.socket": str(path)})
    second.start()
    assert second.process is not None
    assert second.process.wait(PATIENCE) == 1
    assert f"cannot listen on the control socket {path}: it is in use" in second.log
    assert supervisorctl(path, "pid").out == f"{daemon.pid}\n"


def test_a_path_that_is_too_long_is_a_configuration_error(fresh: DaemonFactory) -> None:
    daemon = fresh.prepare("basic", settings={"control.socket": "/tmp/" + "x" * 110})
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(PATIENCE) == 78
    assert "control.socket" in daemon.log
    assert "at most 107 bytes" in daemon.log


def test_under_a_long_state_directory_penstock_ctl_still_finds_it(fresh: DaemonFactory, tmp_path: Path) -> None:
    daemon = fresh.prepare("basic")
    daemon.state = tmp_path / ("long" * 30) / "state"
    daemon.state.parent.mkdir()
    daemon.start()
    daemon.wait_ready()
    assert len(str(control(daemon))) > 107
    with connect(control(daemon)):
        pass
    assert "only penstock ctl can connect to it" in daemon.log
    assert ctl(daemon, "pid") == (f"{daemon.pid}\n", 0)


def ctl(daemon: Daemon, *words: str, settings: tuple[str, ...] = ()) -> tuple[str, int]:
    """``penstock ctl``: what it prints, and its exit status."""
    options = [f"--set={each}" for each in (f"supervision.state_dir={daemon.state}", *settings)]
    done = subprocess.run(
        [sys.executable, "-m", "penstock.daemon", "ctl", *options, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PENSTOCK_CONFIG": os.devnull, **daemon.environment},
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout, done.returncode


def test_penstock_ctl_is_supervisorctl(daemon: Daemon) -> None:
    said = supervisorctl(control(daemon), "status", "default:0", "x")
    assert ctl(daemon, "status", "default:0", "x")[1] == said.status == 4
    assert ctl(daemon, "pid") == (f"{daemon.pid}\n", 0)
    assert ctl(daemon, "tail", "-100", "default:0", "stderr")[1] == 0
    assert ctl(daemon, "signal", "USR9", "default:0") == ("default:0: ERROR (bad signal name)\n", 1)
    assert "restart" in ctl(daemon, "help")[0]


PASSWORD = "a%(x)s;b #c:d"


def test_user_and_password_are_asked_for(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", settings={"control.username": "bob", "control.password": PASSWORD})
    path = control(daemon)
    said = supervisorctl(path, "pid")
    assert said.status == 1
    assert said.out.startswith("Server requires authentication\n")
    for user, password in (("bob", "wrong"), ("eve", PASSWORD), ("bob", "")):
        assert supervisorctl(path, "pid", options=("-u", user, "-p", password)).out.startswith("Server requires")
    assert supervisorctl(path, "pid", options=("-u", "bob", "-p", PASSWORD)).out == f"{daemon.pid}\n"
    settings = ("control.username=bob", f"control.password={PASSWORD}")
    assert ctl(daemon, "pid", settings=settings) == (f"{daemon.pid}\n", 0)
    for given in (b"!", b"caf\xe9", b"Y2Fm6Q=="):
        with connect(path) as connection:
            connection.sendall(b"GET /mainlogtail HTTP/1.1\r\nHost: x\r\nAuthorization: Basic %b\r\n\r\n" % given)
            assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
    with connect(path) as connection:
        connection.sendall(b"GET /mainlogtail HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'WWW-Authenticate: Basic realm="default"\r\n' in answer
    assert b"Connection: close\r\n" in answer


def test_a_password_can_be_kept_as_its_digest(fresh: DaemonFactory) -> None:
    # printf %s secret | sha1sum
    digest = "{SHA}e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4"
    daemon = fresh("basic", settings={"control.username": "bob", "control.password": digest})
    path = control(daemon)
    assert supervisorctl(path, "pid", options=("-u", "bob", "-p", "secret")).out == f"{daemon.pid}\n"
    assert supervisorctl(path, "pid", options=("-u", "bob", "-p", digest)).status == 1
