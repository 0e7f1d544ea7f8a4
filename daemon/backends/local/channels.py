"""The supervisor's end of the wire: one PUSH for work and one for control a worker, one PULL for all answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import zmq

from penstock.ipc import frames, sockets
from penstock.ipc.messages import Answer, FromWorker, Items, ToWorker

log = logging.getLogger("penstock.channels")

CONNECT_INTERVAL: Final = 0.002
"""Seconds between two looks whether a worker that says it is ready has connected all its channels."""


BATCHES: Final = 64
"""Batches of messages that are read at most before something that has to come after them."""


class Link:
    """The two channels to one incarnation of a worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ctx: zmq.Context[zmq.Socket[bytes]], path: Path) -> None:
        """``path``: where the sockets are, without their suffixes."""
        self._loop = loop
        self._files = (path.with_suffix(".w"), path.with_suffix(".c"))
        self.work_address, self.control_address = (f"ipc://{file}" for file in self._files)
        self._sockets = (sockets.bind_push(ctx, self.work_address), sockets.bind_push(ctx, self.control_address))
        self._work = sockets.Outbox(loop, self._sockets[0], self._calls_refused)
        self._control = sockets.Outbox(loop, self._sockets[1])
        self._sent: list[int] = []
        self.refused: Callable[[list[int]], None] = _nobody
        """Called with the ids of calls that the channel did not take. The owner sets it."""
        self._opening: asyncio.TimerHandle | None = None

    def when_open(self, opened: Callable[[], None]) -> None:
        """Call ``opened`` once both channels have their peer. A worker connects before it says that it is ready, but
        the two ends learn of a connection one after the other.
        """
        if all(int(each.getsockopt(zmq.EVENTS)) & zmq.POLLOUT for each in self._sockets):
            self._opening = None
            opened()
        else:
            self._opening = self._loop.call_later(CONNECT_INTERVAL, self.when_open, opened)

    def send_call(self, call: int, header: bytes, body: bytes) -> None:
        """Send a call at the end of this turn of the loop, without blocking. ``refused`` hears of it if that fails."""
        if not self._work.waiting:
            self._sent.clear()
        self._work.send(header, body)
        self._sent.append(call)

    def _calls_refused(self, count: int) -> None:
        self.refused(self._sent[-count:])

    def control(self, message: ToWorker) -> None:
        """Send a control message, in order, as soon as the channel takes it."""
        self._control.send(frames.encode(message))

    def close(self) -> None:
        """Close both channels and remove their files."""
        if self._opening is not None:
            self._opening.cancel()
        self._work.close()
        self._control.close()
        for file in self._files:
            file.unlink(missing_ok=True)


class Channels:
    """The answers of all workers, and a link for each of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: Path) -> None:
        """``directory``: of mode 0700, for the sockets."""
        sockets.check_directory(str(directory))
        self._loop = loop
        self._directory = directory
        self._context = sockets.context()
        self._count = 0
        self._file = directory / "answers"
        self._file.unlink(missing_ok=True)
        self.answer_address = f"ipc://{self._file}"
        self._answered: Callable[[Answer, bytes], None] = _nobody
        self._streamed: Callable[[Items, bytes], None] = _nobody
        self._received: Callable[[FromWorker], None] = _nobody
        self._inbox = sockets.Inbox(loop, sockets.bind_pull(self._context, self.answer_address), self._dispatch)

    def open(
        self,
        answered: Callable[[Answer, bytes], None],
        streamed: Callable[[Items, bytes], None],
        received: Callable[[FromWorker], None],
    ) -> None:
        """Hand answers to ``answered``, parts of streams to ``streamed`` and every other message to ``received`` from
        now on.
        """
        self._answered = answered
        self._streamed = streamed
        self._received = received
        self._inbox.open()

    def link(self) -> Link:
        """Fresh channels for one incarnation."""
        self._count += 1
        return Link(self._loop, self._context, self._directory / f"{self._count}")

    def catch_up(self) -> None:
        """Read what has arrived before anything else is done. Bounded, as others go on talking."""
        for _ in range(BATCHES):
            if not self._inbox.read():
                return

    def _dispatch(self, header: bytes, body: bytes) -> None:
        try:
            message = frames.decode_from_worker(header)
        except frames.DecodeError as error:
            log.error("dropped a message on the answer channel: %s", error)
            return
        if isinstance(message, Answer):
            self._answered(message, body)
        elif isinstance(message, Items):
            self._streamed(message, body)
        else:
            self._received(message)

    def close(self) -> None:
        """Close everything. Links are closed by their owners before."""
        self._inbox.close()
        # Not term(), which would wait for a socket that somebody forgot.
        self._context.destroy(linger=0)
        self._file.unlink(missing_ok=True)


def _nobody(*message: object) -> None:
    """Before ``open`` there are no workers, and so nobody who could say anything."""
