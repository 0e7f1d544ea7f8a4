"""A real PostgreSQL: the embedded one, owned by a process that stands in for the supervisor and can be killed."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg

from penstock.daemon.postgres import exec as postgres_exec
from tests.fix_daemon import line_of
from tests.fix_processes import family

PARENT = """
import asyncio, json, logging, sys
from pathlib import Path
import uvloop
from penstock.daemon.postgres.installation import PostgresError
from penstock.daemon.postgres.server import EmbeddedPostgres

def say(**what):
    print(json.dumps(what), flush=True)

async def main():
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    server = EmbeddedPostgres(Path(sys.argv[1]), max_connections=int(sys.argv[2]), log=logging.getLogger("pg"))
    say(starting=True)
    try:
        dsn = await server.start()
    except PostgresError as error:
        say(error=str(error))
        return
    say(dsn=dsn, pid=server.pid)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        say(alive=server.alive, pid=server.pid)
    await server.stop()
    say(alive=server.alive, pid=server.pid)

uvloop.run(main())
"""


class Parent:
    """The process that owns the server."""

    def __init__(self, directory: Path, connections: int = 5, user: str | None = None, before: str = "") -> None:
        self.directory = directory
        command = [sys.executable, "-c", before + PARENT, str(directory), str(connections)]
        if user is not None:
            # By way of the launcher, since the interpreter may lie under root's home.
            uid, gid = (user, user) if user.isdecimal() else (str(pwd.getpwnam(user)[2]), str(pwd.getpwnam(user)[3]))
            ids = [str(os.getpid()), uid, gid, str(int(signal.SIGKILL))]
            command = [sys.executable, "-I", "-S", postgres_exec.__file__, *ids, *command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.hear() == {"starting": True}

    def hear(self) -> dict[str, Any]:
        return dict(json.loads(line_of(self.process, "the owner of PostgreSQL says something")))

    def started(self) -> str:
        """The DSN."""
        said = self.hear()
        assert "dsn" in said, said
        return str(said["dsn"])

    def ask(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.hear()

    def postmaster(self) -> psutil.Process:
        """The server's first process; its children come and go."""
        return psutil.Process(self.ask()["pid"])

    def family(self) -> list[psutil.Process]:
        """The server's processes."""
        return family(self.process.pid, "postgres")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """Close our ends of its pipes."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.hear() == {"alive": False, "pid": None}
        assert self.process.wait() == 0
        self.close()


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory of mode 0700 with a path that is short enough for sockets, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="postgres-", dir="/tmp") as made:
        yield Path(made)


@contextmanager
def running(directory: Path, connections: int = 5, user: str | None = None, before: str = "") -> Iterator[Parent]:
    parent = Parent(directory, connections, user, before)
    try:
        yield parent
    finally:
        parent.kill()


def query(dsn: str, text: LiteralString, **settings: Any) -> Any:
    with psycopg.connect(dsn, autocommit=True, **settings) as connection:
        row = connection.execute(text).fetchone()
        return None if row is None else row[0]


@contextmanager
def serving() -> Iterator[str]:
    """The DSN of a server with an empty database."""
    with short_directory() as made, running(made / "postgres", 20) as parent:
        yield parent.started()
        parent.stop()
