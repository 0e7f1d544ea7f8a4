"""Poolers that give each transaction whichever session is free: PgBouncer where it is installed, and one of our own."""

from __future__ import annotations

import os
import queue
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.fix_daemon import eventually

SSL, GSS, CANCEL = 80877103, 80877104, 80877102
PARAMETERS = (
    "server_version",
    "client_encoding",
    "standard_conforming_strings",
    "DateStyle",
    "TimeZone",
    "integer_datetimes",
)


class Pooler:
    """Speaks PostgreSQL's protocol to clients, and passes their messages to one of its sessions until it is idle again.

    What it leaves out: COPY from the client, passwords, TLS.
    """

    def __init__(self, dsn: str, directory: Path, sessions: int) -> None:
        self.dsn = make_conninfo(dsn, host=str(directory), port=5432)
        self._sessions = [psycopg.connect(dsn, autocommit=True) for _ in range(sessions)]
        self._free: queue.Queue[tuple[psycopg.Connection[object], socket.socket]] = queue.Queue()
        for session in self._sessions:
            self._free.put((session, socket.socket(fileno=os.dup(session.fileno()))))
            self._free.queue[-1][1].setblocking(True)
        self._at: dict[tuple[int, int], psycopg.Connection[object]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{directory}/.s.PGSQL.5432")
        self._listener.listen(100)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            for number in range(1, 1_000_000):
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client, (number, number)), daemon=True).start()

    def _serve(self, client: socket.socket, key: tuple[int, int]) -> None:
        with client, suppress(OSError, EOFError):
            while (code := struct.unpack("!I", (start := _rest(client))[:4])[0]) in (SSL, GSS):
                client.sendall(b"N")
            if code == CANCEL:
                session = self._at.get(struct.unpack("!II", start[4:]))
                if session is not None:
                    session.cancel()
                return
            info = self._sessions[0].info
            given = [(name, info.parameter_status(name) or "") for name in PARAMETERS]
            client.sendall(
                b"".join(
                    [_message(b"R", struct.pack("!I", 0))]
                    + [_message(b"S", f"{name}\0{value}\0".encode()) for name, value in given]
                    + [_message(b"K", struct.pack("!II", *key)), _message(b"Z", b"I")]
                )
            )
            self._relay(client, key)

    def _relay(self, client: socket.socket, key: tuple[int, int]) -> None:
        held = None
        try:
            while (kind := _exactly(client, 1)) != b"X":
                if held is None:
                    held = self._free.get()
                    self._at[key] = held[0]
                held[1].sendall(_message(kind, _rest(client)))
                if kind in b"QS" and _answer(held[1], client) == b"I":
                    del self._at[key]
                    self._free.put(held)
                    held = None
        finally:
            if held is not None:
                # The client has left in the middle of a transaction.
                held[1].sendall(_message(b"Q", b"ROLLBACK\0"))
                _answer(held[1], None)
                self._at.pop(key, None)
                self._free.put(held)

    def close(self) -> None:
        self._listener.close()
        for session in self._sessions:
            session.close()


def _exactly(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = stream.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _rest(stream: socket.socket) -> bytes:
    """A message's content, from its length on."""
    return _exactly(stream, struct.unpack("!I", _exactly(stream, 4))[0] - 4)


def _message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("!I", len(content) + 4) + content


def _answer(server: socket.socket, client: socket.socket | None) -> bytes:
    """Pass on what the server says until it is ready for more; how it is then."""
    while True:
        kind, content = _exactly(server, 1), _rest(server)
        if client is not None:
            client.sendall(_message(kind, content))
        if kind == b"Z":
            return content


@contextmanager
def stand_in(dsn: str, directory: Path, sessions: int) -> Iterator[str]:
    """The DSN by way of the pooler above."""
    pooler = Pooler(dsn, directory, sessions)
    try:
        yield pooler.dsn
    finally:
        pooler.close()


@contextmanager
def pgbouncer(dsn: str, directory: Path, sessions: int) -> Iterator[str]:
    """The DSN by way of a real PgBouncer in transaction mode."""
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    parts = conninfo_to_dict(dsn)
    database = parts["dbname"]
    (directory / "users.txt").write_text(f'"{parts["user"]}" "x"\n')
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\n{database} = host={parts['host']} port={parts.get('port', 5432)} user={parts['user']}\n"
        f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {directory}\nlisten_port = 5432\nauth_type = trust\n"
        f"auth_file = {directory}/users.txt\npool_mode = transaction\ndefault_pool_size = {sessions}\n"
        f"server_round_robin = 1\nmax_client_conn = 100\n"
    )
    as_whom: dict[str, str] = {}
    if os.getuid() == 0:
        # It does not run as root, and has to reach our files and the server's socket as somebody else.
        as_whom = {"user": "nobody"}
        directory.chmod(0o777)
        within = Path(str(parts["host"]))
        (within / f".s.PGSQL.{parts.get('port', 5432)}").chmod(0o777)
        while within.stat().st_uid == 0 and within != within.parent and within != Path("/tmp"):
            within.chmod(0o711)
            within = within.parent
    command = [program, str(directory / "pgbouncer.ini")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_whom)  # type: ignore[call-overload]
    try:
        eventually((directory / ".s.PGSQL.5432").exists, "PgBouncer listens")
        yield make_conninfo(dsn, host=str(directory), port=5432)
    finally:
        process.terminate()
        process.wait()
