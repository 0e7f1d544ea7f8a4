"""The unit files and the installation: valid, tight, and wide enough for what the daemon does.

The seccomp filter is not only read: the daemon runs under it, and py-spy looks into a worker from inside.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from penstock.daemon.config.sources import load
from tests.fix_daemon import PATIENCE, Daemon, eventually

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
ANALYZE = shutil.which("systemd-analyze")

pytestmark = pytest.mark.skipif(ANALYZE is None, reason="systemd is not on this host")


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ANALYZE), *words], capture_output=True, text=True, timeout=PATIENCE)


def setting(name: str) -> list[str]:
    """All values of a setting of the service, in order."""
    return re.findall(rf"(?m)^{name}=(.*)$", (UNITS / "penstock.service").read_text())


def test_the_units_are_valid(tmp_path: Path) -> None:
    for unit in ("penstock.service", "penstock.socket", "penstock.slice"):
        text = (UNITS / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/opt/penstock/venv/bin/penstock", sys.executable))
    done = analyze("verify", *sorted(tmp_path.iterdir()))
    # About units that are missing on a host without an init system it may speak; about ours it must not.
    assert done.returncode == 0, done.stderr
    assert "penstock" not in done.stderr, done.stderr


def test_the_exposure_is_small() -> None:
    done = analyze("security", "--offline=true", "--threshold=25", "--no-pager", UNITS / "penstock.service")
    assert done.returncode == 0, done.stdout
    level = re.search(r"Overall exposure level for penstock\.service: ([0-9.]+)", done.stdout)
    assert level is not None
    assert float(level[1]) <= 2.5


def test_the_service_matches_the_program() -> None:
    """What the daemon says and does, and what the unit waits for."""
    assert setting("Type") == ["notify"]
    assert setting("ExecReload") == ["/bin/kill -HUP $MAINPID"]
    assert setting("KillMode") == ["mixed"]
    assert setting("RestartPreventExitStatus") == ["78"]
    assert setting("OOMPolicy") == ["continue"]
    assert setting("StateDirectory") == setting("RuntimeDirectory") == ["penstock"]
    assert setting("StateDirectoryMode") == setting("RuntimeDirectoryMode") == ["0700"]
    assert int(setting("WatchdogSec")[0]) > 5
    assert "FileDescriptorName=http" in (UNITS / "penstock.socket").read_text()


# The system call filter


def calls_of(group: str) -> set[str]:
    """The system calls of a group, by systemd's own list."""
    found: set[str] = set()
    for line in analyze("syscall-filter", group).stdout.splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            found |= calls_of(name)
        elif name and not name.startswith("#"):
            found.add(name)
    return found


def allowed_calls() -> set[str]:
    """What ``SystemCallFilter=`` comes to, line by line."""
    allowed: set[str] = set()
    for value in setting("SystemCallFilter"):
        taken = value.startswith("~")
        for word in value.removeprefix("~").split():
            names = calls_of(word) if word.startswith("@") else {word}
            allowed = allowed - names if taken else allowed | names
    return allowed


CONFINED = """
import ctypes, os, sys
library = ctypes.CDLL("libseccomp.so.2")
library.seccomp_init.restype = ctypes.c_void_p
ALLOW, EPERM = 0x7FFF0000, 0x00050000 | 1
filter = ctypes.c_void_p(library.seccomp_init(EPERM))
for name in sys.argv[1].split(","):
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert library.seccomp_rule_add(filter, ALLOW, number, 0) == 0
assert library.seccomp_load(filter) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""Runs a program with nothing but these system calls; all others fail with EPERM, as SystemCallErrorNumber= says."""


class Confined(Daemon):
    """A daemon under the filter of the unit."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", CONFINED, ",".join(sorted(allowed_calls())), *super().command()[1:]]


@pytest.mark.skipif(not Path("/usr/lib/x86_64-linux-gnu/libseccomp.so.2").exists(), reason="needs libseccomp")
def test_the_daemon_and_py_spy_live_with_the_filter(tmp_path: Path) -> None:
    module = (
        "import subprocess\nfrom penstock.workers import agent\n@agent(timeout=30)\ndef run(words: list) -> list:\n"
    )
    module += (
        "    done = subprocess.run(words, capture_output=True, text=True)\n    return [done.returncode, done.stdout]\n"
    )
    (tmp_path / "runner.py").write_text(module)
    settings = ["pools.default.workers=2", "database.dsn=off", "log.level=debug"]
    daemon = Confined(tmp_path / "state", settings, ["runner", "basic"], {"PYTHONPATH": str(tmp_path)})
    try:
        daemon.start()
        daemon.wait_ready()
        daemon.wait_workers(2)
        assert daemon.call("echo", 1).status == 200
        assert daemon.call("spin", {"seconds": 0.01}).status == 200
        # The filter is there, also for what a worker starts.
        status, _ = daemon.call("run", ["chroot", "/", "true"]).json
        assert status != 0
        py_spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert py_spy is not None
        status, stacks = daemon.call("run", [py_spy, "dump", "--pid", str(daemon.worker("default:1")["pid"])]).json
        assert status == 0
        assert "MainThread" in stacks
        for name in ("default:1", "supervisor"):
            assert "MainThread" in daemon.get(f"/v1/workers/{name}/stack").body.decode()
            assert daemon.get(f"/v1/workers/{name}/profile?seconds=0.2&format=raw").status == 200
        assert daemon.request("POST", "/v1/reload").status == 202
        eventually(lambda: "every worker runs the new code" in daemon.log, "the reload is over")
        assert daemon.stop() == 0
        assert "not permitted" not in daemon.log
    finally:
        daemon.end()


# Installing


DSN = r"""host=h password='a|&"\\x'"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The files as a packager gets them."""
    environment = {**os.environ, "DESTDIR": str(tmp_path), "PREFIX": "/usr/lib/penstock", "DSN": DSN}
    done = subprocess.run(["make", "-C", ROOT, "install"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_installing_puts_everything_in_its_place(installed: Path) -> None:
    modes = {
        str(path.relative_to(installed)): path.stat().st_mode & 0o777 for path in installed.rglob("*") if path.is_file()
    }
    assert modes.pop("etc/systemd/system/penstock.service.d/notify-reload.conf", 0o644) == 0o644
    assert modes == {
        "etc/penstock/penstock.toml": 0o640,
        "etc/penstock/environment": 0o640,
        "etc/penstock/supervisorctl.conf": 0o640,
        "etc/systemd/system/penstock.service": 0o644,
        "etc/systemd/system/penstock.socket": 0o644,
        "etc/systemd/system/penstock.slice": 0o644,
        "etc/sysusers.d/penstock.conf": 0o644,
        "etc/tmpfiles.d/penstock.conf": 0o644,
    }
    service = (installed / "etc/systemd/system/penstock.service").read_text()
    assert "ExecStart=/usr/lib/penstock/venv/bin/penstock serve" in service
    assert (installed / "etc/penstock/environment").read_text() == ""


def test_the_installed_configuration_is_the_services(installed: Path) -> None:
    config = load(str(installed / "etc/penstock/penstock.toml"), [], {})
    assert config.control.socket == "/run/penstock/control.sock"
    assert config.supervision.state_dir == "/var/lib/penstock"
    assert config.database.dsn == DSN
    client = configparser.ConfigParser()
    client.read(installed / "etc/penstock/supervisorctl.conf")
    assert client["supervisorctl"]["serverurl"] == "unix:///run/penstock/control.sock"


def test_installing_again_keeps_what_the_administrator_wrote(installed: Path) -> None:
    files = [installed / "etc/penstock" / name for name in ("penstock.toml", "supervisorctl.conf", "environment")]
    for mine in files:
        mine.write_text("# mine\n")
    environment = {**os.environ, "DESTDIR": str(installed)}
    subprocess.run(["make", "-C", ROOT, "install"], check=True, capture_output=True, env=environment)
    assert [mine.read_text() for mine in files] == ["# mine\n"] * 3
    subprocess.run(["make", "-C", ROOT, "uninstall"], check=True, capture_output=True, env=environment)
    left = {path.name for path in installed.rglob("*") if path.is_file()}
    assert left == {"penstock.toml", "environment", "supervisorctl.conf"}


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="needs systemd-sysusers")
def test_the_user_and_the_rights_are_made(installed: Path) -> None:
    for name in ("passwd", "group"):
        (installed / "etc" / name).write_text("root:x:0:0:root:/root:/bin/sh\n" if name == "passwd" else "root:x:0:\n")
    subprocess.run(["systemd-sysusers", f"--root={installed}"], check=True, capture_output=True)
    users: dict[str, list[str]] = defaultdict(list)
    for line in (installed / "etc/passwd").read_text().splitlines():
        users[line.split(":")[0]] = line.split(":")
    assert users["penstock"][5:] == ["/var/lib/penstock", "/usr/sbin/nologin"]
    if os.geteuid() == 0:
        subprocess.run(["systemd-tmpfiles", f"--root={installed}", "--create"], check=True, capture_output=True)
        assert (installed / "etc/penstock").stat().st_mode & 0o777 == 0o750
        assert (installed / "etc/penstock").stat().st_gid == int(users["penstock"][3])


def test_supervisord_takes_its_file(tmp_path: Path) -> None:
    """``etc/supervisord.conf`` runs the daemon where there is no systemd."""
    text = (
        (ROOT / "etc/supervisord.conf")
        .read_text()
        .replace("/run/", f"{tmp_path}/")
        .replace("/var/log/", f"{tmp_path}/")
    )
    command = f"{sys.executable} -m penstock.daemon serve --set supervision.state_dir={tmp_path}/state"
    command += f" --set database.dsn=off --set http.bind=unix:{tmp_path}/http.sock --workers 1"
    text = re.sub(r"(?m)^command = .*$", f"command = {command}", text)
    text = re.sub(r"(?m)^(user|directory) = .*$", "", text).replace("startsecs = 5", "startsecs = 1")
    (tmp_path / "conf").write_text(text)
    base = [sys.executable, "-m"]
    process = subprocess.Popen(
        [*base, "supervisor.supervisord", "-n", "-c", tmp_path / "conf"], stdout=subprocess.DEVNULL
    )

    def status() -> str:
        words = [*base, "supervisor.supervisorctl", "-c", str(tmp_path / "conf"), "status"]
        return subprocess.run(words, capture_output=True, text=True).stdout

    try:
        eventually(lambda: "RUNNING" in status(), "it runs")
        eventually(lambda: "is ready with" in (tmp_path / "penstock.log").read_text(), "and serves")
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert "stopped" in (tmp_path / "penstock.log").read_text()
