"""Sockets that the service manager has opened for us (systemd's socket activation).

It hands them over as descriptors from 3 up, and says how many in ``$LISTEN_FDS``, for whom in ``$LISTEN_PID``, and by
which names in ``$LISTEN_FDNAMES``. They stay open while the daemon restarts: who connects meanwhile waits in their
backlog, and is refused nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

FIRST: Final = 3
ADMIN: Final = "admin"
"""The name (``FileDescriptorName=``) of a socket that is the admin listener. All others are what ``http.bind`` is."""


class ActivationError(Exception):
    """What was handed over is no listening socket. The text says which descriptor."""


def take(environ: MutableMapping[str, str]) -> tuple[list[socket.socket], list[socket.socket]]:
    """The sockets for the first listener and for the admin one; both empty if none were handed over
    (``ActivationError``). The variables are removed, so that no child takes them for its own.
    """
    given = {name: environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if given["LISTEN_PID"] != str(os.getpid()) or not given["LISTEN_FDS"].isdecimal():
        return [], []
    count = int(given["LISTEN_FDS"])
    names = given["LISTEN_FDNAMES"].split(":")
    public: list[socket.socket] = []
    admin: list[socket.socket] = []
    for number in range(count):
        name = names[number] if number < len(names) else ""
        (admin if name == ADMIN else public).append(_listener(FIRST + number))
    return public, admin


def _listener(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        found = socket.socket(fileno=descriptor)
        if found.type != socket.SOCK_STREAM or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.detach()
            raise ActivationError(f"descriptor {descriptor} that was handed over is not a listening stream socket")
    except OSError as error:
        raise ActivationError(f"descriptor {descriptor} that was handed over: {error.strerror}") from error
    found.setblocking(False)
    return found


def describe(listener: socket.socket) -> str:
    """Where a socket listens, as ``http.bind`` writes it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
