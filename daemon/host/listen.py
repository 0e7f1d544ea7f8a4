"""Listening sockets: TCP by host and port, Unix sockets by path, with their mode and owner.

A Unix socket's file is bound under another name and moved into place, so that it is never there with other rights; by
way of its directory's descriptor, since a path may be longer than a socket's can be. The file of a listener that is
gone is replaced; one that somebody listens on stays, and so does a file of another kind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

BACKLOG: Final = 4096
"""Connections the kernel may hold for us; it cuts this to ``net.core.somaxconn``."""


class BindError(Exception):
    """The address cannot be listened on. The text names it and why."""


def bind(address: str, mode: int = 0o660, uid: int = -1, gid: int = -1) -> socket.socket:
    """A listening socket for ``HOST:PORT``, ``[V6]:PORT`` or ``unix:PATH`` (``BindError``).

    ``mode``, ``uid`` and ``gid`` are of a Unix socket; -1 leaves what the process has.
    """
    try:
        if address.startswith("unix:"):
            return unix(Path(address.removeprefix("unix:")), mode, uid, gid)
        host, _, port = address.rpartition(":")
        return _tcp(host.strip("[]"), int(port))
    except OSError as error:
        why = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise BindError(f"cannot listen on {address}: {why}") from error


def _tcp(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # All addresses of IPv6 are all addresses, as people expect and as systemd has it, whatever
            # net.ipv6.bindv6only says.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def unix(path: Path, mode: int, uid: int = -1, gid: int = -1, backlog: int = BACKLOG) -> socket.socket:
    """A listening Unix socket in a directory that is there (``OSError``)."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fresh = f"/proc/self/fd/{directory}/.{os.getpid()}.sock"
    try:
        _check_free(f"/proc/self/fd/{directory}/{path.name}")
        _remove(fresh)
        listener.bind(fresh)
        os.chmod(fresh, mode)
        if uid != -1 or gid != -1:
            os.chown(fresh, uid, gid)
        listener.listen(backlog)
        os.rename(fresh, f"/proc/self/fd/{directory}/{path.name}")
    except OSError:
        listener.close()
        _remove(fresh)
        raise
    finally:
        os.close(directory)
    listener.setblocking(False)
    return listener


def _check_free(target: str) -> None:
    """Raise ``OSError`` if somebody listens there, or if there is something else."""
    if os.path.lexists(target) and not stat.S_ISSOCK(os.lstat(target).st_mode):
        raise OSError("the path exists and is not a socket")
    absent = contextlib.suppress(ConnectionRefusedError, FileNotFoundError)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, absent:
        probe.settimeout(1.0)  # somebody whose backlog is full listens, too
        try:
            probe.connect(target)
        except TimeoutError:
            pass  # said below
        raise OSError(errno.EADDRINUSE, "it is in use")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode of what is at a path; None: nothing."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
