"""Notifications to the service manager (``sd_notify``): readiness, status, watchdog.

``READY=1`` goes out when the first worker serves: "active" in systemd then means that requests are answered.
``WATCHDOG=1`` is not sent by a side thread but by the loop itself, and only while the dispatcher makes progress: a
daemon that is stuck in either way stops sending it, and is restarted. While it starts, and while it drains, it asks for
the time that this takes (``EXTEND_TIMEOUT_USEC``).

Messages are datagrams to ``$NOTIFY_SOCKET``, a path or, with ``@``, an abstract name. Nothing here ever blocks: what
the socket does not take at once is sent a little later, of the status and the watchdog only the newest.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

log = logging.getLogger("penstock.notify")

INTERVAL: Final = 1.0
"""Seconds between two checks of the state, where the watchdog does not ask for more."""

STEP: Final = 30.0
"""Seconds of more time that are asked for while the daemon starts."""

AGAIN: Final = 0.05
"""Seconds until a message that the socket did not take is tried again."""


class Notifier:
    """The line to the service manager. Does nothing when there is none."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        environ: MutableMapping[str, str],
        status: Callable[[], str],
        stuck: Callable[[], str],
        can_start: Callable[[], bool],
    ) -> None:
        """Takes its variables out of the environment, so that no worker speaks for the daemon. ``status`` gives one
        line for people, ``stuck`` why the daemon does not move, or empty; ``can_start`` whether it may still come up.
        """
        self._loop = loop
        address = _address(environ.pop("NOTIFY_SOCKET", ""))
        self.watchdog = _watchdog(environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", ""))
        """Seconds within which the service manager wants to hear from us; 0 if it does not."""
        self._socket: socket.socket | None = None
        self._waiting: dict[str, str] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._status, self._stuck, self._can_start = status, stuck, can_start
        self._starting = True
        self._drain_ends = 0.0
        self._said = ""
        self._withheld = ""
        self._address = address or b""
        if address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def open(self) -> None:
        """Report from now on."""
        if self._socket is not None:
            self._check()

    def _check(self) -> None:
        interval = min(INTERVAL, self.watchdog / 3) if self.watchdog else INTERVAL
        self._tick = self._loop.call_later(interval, self._check)
        status = self._status()
        if status != self._said:
            self._said = status
            self._send("status", f"STATUS={status}")
        if self._drain_ends:
            self._extend(self._drain_ends - time.monotonic())
        elif self._starting and self._can_start():
            self._extend(STEP)
        if self.watchdog:
            self._feed()

    def _extend(self, seconds: float) -> None:
        if seconds > 0.0:
            self._send("time", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _feed(self) -> None:
        why = self._stuck()
        if not why:
            self._withheld = ""
            self._send("watchdog", "WATCHDOG=1")
        elif why != self._withheld:
            self._withheld = why
            log.critical("the watchdog is no longer notified: %s", why)

    def ready(self) -> None:
        """Requests are answered from now on."""
        self._starting = False
        if not self._drain_ends:
            self._send("state", f"READY=1\nSTATUS={self._status()}")

    def reloading(self) -> None:
        """A reload begins; ``reloaded`` ends it, however it went."""
        if not self._starting and not self._drain_ends:
            self._send("reload", f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """The daemon goes on, on the new or on the old."""
        if not self._starting:
            self.ready()

    def stopping(self, seconds: float) -> None:
        """The daemon drains, which may take so many seconds."""
        self._drain_ends = time.monotonic() + seconds
        self._send("state", f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def close(self) -> None:
        """Say no more."""
        for timer in (self._tick, self._retry):
            if timer is not None:
                timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, kind: str, message: str) -> None:
        """Send, after what waits. Of each kind, the newest goes."""
        if self._socket is None:
            return
        self._waiting.pop(kind, None)
        self._waiting[kind] = message
        if self._retry is None:
            self._flush()

    def _flush(self) -> None:
        self._retry = None
        assert self._socket is not None
        while self._waiting:
            kind, message = next(iter(self._waiting.items()))
            try:
                self._socket.sendto(message.encode(errors="replace"), self._address)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                    self._retry = self._loop.call_later(AGAIN, self._flush)
                    return
                log.warning("the service manager can no longer be notified: %s", error.strerror)
                self.close()
                return
            del self._waiting[kind]


def _address(given: str) -> bytes | None:
    if given.startswith("@"):
        return b"\0" + os.fsencode(given[1:])
    if given.startswith("/"):
        return os.fsencode(given)
    if given:
        log.warning("NOTIFY_SOCKET=%s: only paths and abstract names (@) are supported", given)
    return None


def _watchdog(microseconds: str, pid: str) -> float:
    if not microseconds.isdecimal() or pid not in ("", str(os.getpid())):
        return 0.0
    return int(microseconds) / 1e6
