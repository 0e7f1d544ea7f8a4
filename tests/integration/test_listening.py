"""Where the daemon listens: Unix sockets with the rights that were asked for, and both families of addresses."""

from __future__ import annotations

import grp
import http.client
import os
import pwd
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.daemon.config.owner import owner as ids
from penstock.daemon.front.listening import Sockets
from penstock.daemon.host import listen
from penstock.daemon.host.listen import BindError
from tests.fix_daemon import DaemonFactory, eventually
from tests.fix_postgres import short_directory


def connects(path: Path, user: str, group: int | None = None) -> bool:
    """Whether a process of this user, with this further group, can connect."""
    program = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", program],
        user=user,
        group=pwd.getpwnam(user).pw_gid,
        extra_groups=[] if group is None else [group],
    )
    return done.returncode == 0


def test_a_unix_socket_has_its_mode_and_owner_and_goes_at_the_stop(
    fresh: DaemonFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with short_directory() as directory:
        path, admin = directory / "http.sock", directory / "admin.sock"
        settings: dict[str, Any] = {"http.admin_bind": f"unix:{admin}"}
        if os.getuid() == 0:
            settings["http.socket_owner"] = ":games"
        daemon = fresh.prepare("basic", settings=settings)
        command = [*daemon.command(), "--bind", f"unix:{path}"]
        monkeypatch.setattr(daemon, "command", lambda: command)
        daemon.start()
        eventually(lambda: path.exists() and admin.exists(), "it listens")
        for each in (path, admin):
            assert stat.S_IMODE(each.stat().st_mode) == 0o660
        if os.getuid() == 0:
            directory.chmod(0o755)
            games = grp.getgrnam("games").gr_gid
            assert (path.stat().st_uid, path.stat().st_gid) == (0, games)
            if Path("/usr/bin/python3").exists():
                assert connects(path, "nobody", games)
                assert not connects(path, "nobody")
        assert daemon.stop() == 0
        assert list(directory.iterdir()) == []


@pytest.mark.parametrize(("mode", "owner"), [(0o600, ""), (0o666, ""), (0o660, str(os.getuid()))])
def test_the_mode_is_there_from_the_first_moment(tmp_path: Path, mode: int, owner: str) -> None:
    before = os.umask(0o777)
    try:
        bound = listen.bind(f"unix:{tmp_path}/s", mode, *ids("http.socket_owner", owner))
    finally:
        os.umask(before)
    with bound:
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode


def test_a_socket_file_of_another_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen.bind(f"unix:{path}"), pytest.raises(BindError, match="it is in use"):
        listen.bind(f"unix:{path}")
    # Its listener is gone, and so it is replaced.
    settings: Any = type(
        "Http", (), {"bind": f"unix:{path}", "admin_bind": "", "socket_mode": 0o660, "socket_owner": ""}
    )
    ours = Sockets(settings, {})
    path.unlink()
    with listen.bind(f"unix:{path}"):
        ours.close()
        assert path.exists(), "it was another's by then"
    path.unlink()
    path.write_text("precious")
    with pytest.raises(BindError, match="not a socket"):
        listen.bind(f"unix:{path}")
    assert path.read_text() == "precious"
    assert [each.name for each in tmp_path.iterdir()] == ["s"]


def test_an_owner_that_does_not_exist_is_a_configuration_error(tmp_path: Path) -> None:
    settings = [f"supervision.state_dir={tmp_path}/state", f"http.bind=unix:{tmp_path}/s"]
    options = [f"--set={each}" for each in (*settings, "http.socket_owner=:no-such-group")]
    for command in ("serve", "check"):
        done = subprocess.run(
            [sys.executable, "-m", "penstock.daemon", command, *options],
            capture_output=True,
            text=True,
            env={**os.environ, "PENSTOCK_CONFIG": os.devnull},
        )
        assert done.returncode == 78
        assert done.stderr.splitlines() == [
            "penstock: http.socket_owner: ':no-such-group': there is no such user or group on this host"
        ]


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this host has no IPv6")
def test_all_addresses_of_ipv6_are_all_addresses(fresh: DaemonFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = fresh.prepare("basic")
    command = [*daemon.command(), "--bind", "[::]:0"]
    monkeypatch.setattr(daemon, "command", lambda: command)
    daemon.start()
    daemon.wait_ready()  # by 127.0.0.1
    for host, client in (("127.0.0.1", "127.0.0.1"), ("::1", "::1")):
        connection = http.client.HTTPConnection(host, daemon.port, timeout=30)
        connection.request("POST", "/v1/agents/about", b"null")
        assert f'"client":"{client}"'.encode() in connection.getresponse().read()
        connection.close()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this host has no IPv6")
def test_one_address_of_ipv6_is_that_one() -> None:
    with listen.bind("[::1]:0") as bound:
        assert bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
