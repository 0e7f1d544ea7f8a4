"""The supervisor's end of the wire: one PUSH for work and one for control a worker, one PULL for all answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import zmq

from penstock.ipc import frames, sockets
from penstock.ipc.messages import (
    Answer,
    Batch,
    Call,
    Failed,
    FromCall,
    Items,
    Leaving,
    Ready,
    Released,
    Starting,
    Statistics,
    ToWorker,
)

log = logging.getLogger("penstock.channels")

CONNECT_INTERVAL: Final = 0.002
"""Seconds between two checks whether a worker that says it is ready has connected all its channels."""


BATCHES: Final = 64
"""Batches of messages that are read at most before something that has to come after them."""


Told = Starting | Ready | Failed | Released | Leaving | Statistics
"""Everything that workers say but their answers to calls, and parts of these."""


class Peer(Protocol):
    """Who is told what one incarnation of a worker says."""

    answered: Callable[[Answer, bytes], None]
    """The request path."""

    def items(self, items: Items, body: bytes) -> None:
        """Part of a stream."""

    def asked(self, message: FromCall, body: bytes) -> None:
        """What a call says of its children."""

    def received(self, message: Told) -> None:
        """Everything else."""

    def refused(self, call_ids: list[int]) -> None:
        """The channel did not take these calls."""


class Link:
    """The two channels to one incarnation of a worker."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, ctx: zmq.Context[zmq.Socket[bytes]], path: Path, peer: Peer
    ) -> None:
        """``path``: where the sockets are, without their suffixes."""
        self._loop = loop
        self._peer = peer
        self._files = (path.with_suffix(".w"), path.with_suffix(".c"))
        self.work_address, self.control_address = (f"ipc://{file}" for file in self._files)
        work = sockets.bind_push(ctx, self.work_address)
        try:
            self._sockets = (work, sockets.bind_push(ctx, self.control_address))
        except zmq.ZMQError:
            work.close(linger=0)
            raise
        self._work = sockets.Outbox(loop, self._sockets[0], self._calls_refused)
        self._control = sockets.Outbox(loop, self._sockets[1])
        self._sent: list[list[int]] = []
        """The calls of each message that the channel may still refuse."""
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

    def send(self, call: Call, body: bytes) -> None:
        """Send a call at the end of this turn of the loop, without blocking. The peer hears of it if that fails."""
        self._post(frames.encode(call), body, [call.call])

    def send_batch(self, batch: Batch, bodies: bytes) -> None:
        """The same for calls that go together."""
        self._post(frames.encode(batch), bodies, [call.call for call in batch.calls])

    def _post(self, header: bytes, body: bytes, calls: list[int]) -> None:
        if not self._work.waiting:
            self._sent.clear()
        self._work.send(header, body)
        self._sent.append(calls)

    def _calls_refused(self, count: int) -> None:
        self._peer.refused([call for calls in self._sent[-count:] for call in calls])

    def control(self, message: ToWorker, body: bytes = b"") -> None:
        """Send a control message, in order, as soon as the channel takes it."""
        self._control.send(frames.encode(message), body)

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
        self._peers: dict[tuple[str, int], Peer] = {}
        """By name and generation; what others say, of an incarnation that is no more, is dropped."""
        self._inbox = sockets.Inbox(loop, sockets.bind_pull(self._context, self.answer_address), self._dispatch)
        self._inbox.open()

    def link(self, worker: str, generation: int, peer: Peer) -> Link:
        """Fresh channels for one incarnation. What it says is told to ``peer`` until it is forgotten."""
        self._count += 1
        link = Link(self._loop, self._context, self._directory / f"{self._count}", peer)
        self._peers[worker, generation] = peer
        return link

    def forget(self, worker: str, generation: int) -> None:
        """Tell nothing more of this incarnation."""
        self._peers.pop((worker, generation), None)

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
        peer = self._peers.get((message.worker, message.generation))
        if peer is None:
            log.debug("dropped a message of %s, which has ended", message.worker, extra={"worker": message.worker})
        elif isinstance(message, Answer):
            peer.answered(message, body)
        elif isinstance(message, Items):
            peer.items(message, body)
        elif isinstance(message, FromCall):
            peer.asked(message, body)
        else:
            peer.received(message)

    def close(self) -> None:
        """Close everything. Links are closed by their owners before."""
        self._inbox.close()
        # Not term(), which would wait for a socket that somebody forgot.
        self._context.destroy(linger=0)
        self._file.unlink(missing_ok=True)
