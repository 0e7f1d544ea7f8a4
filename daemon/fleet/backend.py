"""The seam between the workers as everybody knows them, and where they run.

What differs between a process of this host and one elsewhere is how it is made from the newest code, how bytes reach
it, how it is ended, and what can be known of it when it cannot speak. That is a ``Backend`` with its handles.
Lifecycle, restarts, reloads, recycling, credits, grants and deadlines are the same everywhere, and know nothing else.

What crosses the wire crosses the seam as the same frozen struct (``Call``, ``Answer``, ``Ready``, ``Failed``). A handle
encodes by itself, so that one whose worker is on another host can turn a deadline of this host's clock into seconds
left.

The contract of a handle with its ``WorkerEvents``:

* All events are called on the loop, one after another, and none before ``launch`` has returned.
* ``ready`` comes once and only when calls can be sent. ``exited`` comes once, at any time, and at once. What the worker
  had said before may still follow it, until ``finished``, which is the last event of all. A process's end and its words
  travel by different ways, so that only the backend can tell when all words have come.
* Nothing of a handle waits, and nothing raises, but ``send`` where a call cannot be encoded: it was not sent then.
* ``begun`` and ``sessions`` are valid after the end too, until ``close``.

What a process uses of its host (CPU, memory) is no part of ``Vitals``: ``telemetry.monitor`` measures it by pid, for
all processes of this host together, on a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from penstock.ipc.messages import (
    Answer,
    Batch,
    Call,
    DatabaseAccess,
    Failed,
    FromCall,
    Items,
    Part,
    Ready,
    Reply,
    Statistics,
)

from ..config.settings import Config
from ..host.pyspy import Recording, Thread


class SpawnError(Exception):
    """No process could be asked for; the host is short of something. The text says of what."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process in which seat. No two have the same, whatever reloads take away and bring back."""

    pool: str
    index: int
    generation: int

    @property
    def name(self) -> str:
        """The seat's name."""
        return f"{self.pool}:{self.index}"

    @property
    def title(self) -> str:
        """For the log."""
        return f"{self.pool}:{self.index}/{self.generation}"


class Stage(NamedTuple):
    """How far a worker is with a call."""

    begun: bool
    """The agent's function was entered."""
    since: float
    """When (monotonic seconds) it was entered, or when the worker took the call."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a worker shows without being asked, even when it hangs. Times are monotonic seconds."""

    turned_at: float
    """When its loop turned last; 0 before the first turn."""
    lag: float
    """Seconds by which that turn was late."""
    stepped: int
    """The call whose coroutine the loop runs; 0: none."""
    calls: Mapping[int, Stage]
    """The calls that it has taken, by id."""


class Template(Protocol):
    """The code as it was when this was made. Workers are launched from it until it is closed."""

    @property
    def lost(self) -> bool:
        """It was closed, or has come to an end by itself; workers need another."""

    def settle(self) -> None:
        """The code that later templates find, unless they are made anew, is where this one's is (``SpawnError``)."""

    def close(self) -> None:
        """Launch no more from it. Its workers go on. May be called twice."""


class WorkerEvents(Protocol):
    """What a backend tells of one worker."""

    def starting(self, step: str) -> None:
        """What it is about to do before it is ready."""

    def ready(self, ready: Ready) -> None:
        """It takes calls, and they can be sent."""

    def unusable(self, reason: str) -> None:
        """It has come up, and calls can never be sent to it: it speaks another version of the protocol, say."""

    def failed(self, failed: Failed) -> None:
        """It cannot serve and is about to exit."""

    def answered(self, answer: Answer, body: bytes) -> None:
        """It has ended a call. The request path."""

    def items(self, items: Items, body: bytes) -> None:
        """Part of a call's streamed result."""

    def asked(self, message: FromCall, body: bytes, /) -> None:
        """What a call says of its children."""

    def refused(self, call_ids: list[int]) -> None:
        """These calls, the last that were sent, were not taken: there is no way to it now."""

    def released(self, kind: str, connections: int) -> None:
        """Its pool of this kind holds no more than so many database connections from now on."""

    def statistics(self, statistics: Statistics) -> None:
        """The statistics of its database pools."""

    def leaving(self) -> None:
        """It was asked from outside to go."""

    def exited(self, status: int | None) -> None:
        """Its process has ended: exit status, minus a signal's number, None if that cannot be known."""

    def finished(self) -> None:
        """Everything that it has said was told."""


class WorkerHandle(Protocol):
    """One worker, from its launch until it is closed."""

    node: str
    """Where it runs; empty: on this host."""

    @property
    def pid(self) -> int:
        """Of its process, on its node; 0 until there is one."""

    def send(self, call: Call, body: bytes, /) -> None:
        """Send a call. If that fails, ``refused`` hears of it, perhaps before this returns. The request path."""

    def send_batch(self, batch: Batch, bodies: bytes, /) -> None:
        """The same for calls that go together, with their bodies one after another. ``refused`` names all of them."""

    def cancel(self, call_id: int, reason: str) -> None:
        """Have it stop working on a call. ``reason``: ``deadline`` or ``gone``."""

    def allow(self, call_id: int, credit: int) -> None:
        """Let it send so many bytes more of a call's stream."""

    def reply(self, message: Part | Reply, body: bytes) -> None:
        """Tell a call what has become of its child. What one call is told arrives in order."""

    def grant(self, kind: str, connections: int) -> None:
        """Its pool of this kind may hold so many database connections from now on."""

    def stop(self) -> None:
        """Have it run its stop hooks and exit. It must have no calls."""

    def signal(self, number: int) -> None:
        """Send its process a signal."""

    def kill(self) -> None:
        """End it at once, also if it has no process yet. ``exited`` follows."""

    def close(self) -> None:
        """Give up all that is held for it. Not before ``finished``."""

    def begun(self, call_ids: Iterable[int]) -> set[int]:
        """Those of the calls sent to it whose function it had entered, now that it is dead; where it is not known: all
        of them.
        """

    def sessions(self) -> list[int]:
        """The PostgreSQL backends that its calls use, or used when it died."""

    def vitals(self) -> Vitals | None:
        """What it shows; None: nothing, or it is closed."""


class Backend(Protocol):
    """Where workers run."""

    def template(self, config: Config, *, anew: bool = False) -> Template:
        """The code as it is now (``SpawnError``). ``anew``: look for it again where the daemon was started, which a
        link may have led elsewhere since; else it is where the template is that settled last.
        """

    def launch(
        self,
        template: Template,
        identity: Identity,
        config: Config,
        database: DatabaseAccess | None,
        events: WorkerEvents,
    ) -> WorkerHandle:
        """Ask for a worker (``SpawnError``), and do not wait for it."""

    def forget(self, name: str) -> None:
        """There is no seat of this name any more: give up what is kept for its workers one after another."""


@runtime_checkable
class Inspectable(Protocol):
    """A handle may be one whose process can be inspected; all raise ``SpyError``."""

    async def stacks(self, timeout: float, *, nonblocking: bool = False) -> list[Thread]:
        """What its threads are at. ``nonblocking``: without stopping it, as beside a recording."""

    async def record(self, seconds: float, form: str) -> Recording:
        """Where it spends its time. ``form`` is one of ``pyspy.FORMATS``."""

    def is_stopped(self) -> bool:
        """A signal has stopped it."""
