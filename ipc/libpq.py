"""Connections to the embedded PostgreSQL, which ignore libpq's environment.

libpq takes what a connection string leaves open from the environment (``PGHOSTADDR``, ``PGOPTIONS``), and from files in
the home directory. For the embedded server that is never meant, and would send the agents' sessions to another one. So
``private_dsn`` sets all that decides where a connection goes and whether it is made, by parameters that every libpq in
use understands, since agents may hand it to other libraries; and ``complete`` says every parameter that has a variable.

Four variables have no parameter that goes before them: ``PGSERVICE``, which must name something in a file, and what
libpq puts into every session, ``PGTZ``, ``PGDATESTYLE`` and ``PGGEQO``. They are hidden from libpq while it
reads them, by ``AsyncConnection`` and ``Connection`` here, which also complete what they get. They cannot be taken
away for longer: the process's environment is the agents', for their own connections and the programs that they start.

To hide them, the C library's ``environ`` is pointed at another list of the same strings. ``unsetenv`` would do it, too,
but it rewrites the list that other threads may be reading, without a lock for readers.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import psycopg
from psycopg import pq
from psycopg.abc import PQGenConn
from psycopg.conninfo import conninfo_to_dict, make_conninfo

NO_FILE: Final = "/dev/null/penstock"
"""As ``passfile``: nothing can be there. It also marks a connection string as one of ours."""

DEFAULTS: Final = {
    "client_encoding": "UTF8",
    "connect_timeout": "10",
    "gssencmode": "disable",
    "max_protocol_version": "3.0",
    "min_protocol_version": "3.0",
    "passfile": NO_FILE,
    "sslcertmode": "disable",
    "sslmode": "disable",
}
"""What is said of parameters for which neither libpq's own default nor nothing at all would do."""

PORTABLE: Final = frozenset(
    {
        *("channel_binding", "client_encoding", "connect_timeout", "gssencmode", "hostaddr", "options", "passfile"),
        *("password", "requirepeer", "sslmode", "target_session_attrs"),
    }
)
"""Parameters that libpq has had since its version 13."""

HIDDEN: Final = ("PGSERVICE", "PGTZ", "PGDATESTYLE", "PGGEQO")
"""Variables that no parameter goes before."""

_library: Final = ctypes.CDLL(None)
_hiding: Final = threading.Lock()


def private_dsn(**parameters: str | int) -> str:
    """A connection string with these parameters, and others as they are where nobody has set anything."""
    said = {name: value for name, value in _unset().items() if name in PORTABLE}
    return make_conninfo("", **{**said, **parameters})


def complete(dsn: str) -> str:
    """A connection string of ``private_dsn`` with all that this libpq might take from elsewhere; others as they are."""
    return make_conninfo("", **{**_unset(), **conninfo_to_dict(dsn)}) if is_private(dsn) else dsn


def _unset() -> dict[str, str]:
    """Each parameter that has a variable, and its value where that is not set."""
    said = {
        option.keyword.decode(): (option.compiled or b"").decode()
        for option in pq.Conninfo.get_defaults()
        if option.envvar and option.keyword not in (b"service", b"servicefile")
    }
    return {**said, **{name: DEFAULTS[name] for name in DEFAULTS.keys() & said}}


def is_private(dsn: str) -> bool:
    """Whether a connection string is one of ``private_dsn``."""
    return conninfo_to_dict(dsn).get("passfile") == NO_FILE


@contextmanager
def hidden() -> Iterator[None]:
    """What C code finds in the environment meanwhile is without ``HIDDEN``. Never for longer than a call that cannot
    wait.
    """
    if not any(name in os.environ for name in HIDDEN):
        yield
        return
    prefixes = tuple(f"{name}=".encode() for name in HIDDEN)
    with _hiding:
        pointer = ctypes.c_void_p.in_dll(_library, "environ")
        before = pointer.value
        strings = _strings(before)
        kept = [each for each in strings if not ctypes.string_at(each).startswith(prefixes)]
        shown = (ctypes.c_void_p * (len(kept) + 1))(*kept, None)
        pointer.value = ctypes.addressof(shown)
        try:
            yield
        finally:
            if pointer.value == ctypes.addressof(shown):
                pointer.value = before
            else:
                # A thread has set a variable meanwhile, for which the C library made a list of its own.
                for name in HIDDEN:
                    if name in os.environ:
                        os.putenv(name, os.environ[name])


def _strings(array: int | None) -> list[int]:
    """The addresses in a list that ends with 0."""
    found: list[int] = []
    size = ctypes.sizeof(ctypes.c_void_p)
    while array and (address := ctypes.c_void_p.from_address(array + size * len(found)).value):
        found.append(address)
    return found


def _without_environment(connecting: PQGenConn[Any]) -> PQGenConn[Any]:
    """The same generator, each step of which is taken with ``HIDDEN`` hidden."""
    answer: Any = None
    try:
        while True:
            with hidden():
                try:
                    wanted = next(connecting) if answer is None else connecting.send(answer)
                except StopIteration as end:
                    return end.value
            answer = yield wanted
    finally:
        connecting.close()


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """As psycopg's, and what ``private_dsn`` has made is connected to without the environment."""

    @classmethod
    async def connect(cls, conninfo: str = "", **settings: Any) -> Self:
        """As in psycopg."""
        return await super().connect(complete(conninfo), **settings)

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Self]:
        connecting = super()._connect_gen(conninfo)
        return _without_environment(connecting) if is_private(conninfo) else connecting


class Connection(psycopg.Connection[Any]):
    """The same for threads."""

    @classmethod
    def connect(cls, conninfo: str = "", **settings: Any) -> Self:
        """As in psycopg."""
        return super().connect(complete(conninfo), **settings)

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Self]:
        connecting = super()._connect_gen(conninfo)
        return _without_environment(connecting) if is_private(conninfo) else connecting
