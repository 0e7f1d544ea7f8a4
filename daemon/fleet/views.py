"""Workers as others see them: frozen, and put together when somebody asks."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec

from ..core.health import Health
from ..core.lifecycle import SeatState
from ..core.model import State, Worker
from ..engine.tickets import Ticket
from .backend import Vitals
from .seat import Seat


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A seat, and the process in it if there is one."""

    name: str
    pool: str
    index: int
    state: SeatState
    since: float
    """Seconds in this state."""
    reason: str
    """Why its last process ended, or could not start; empty if nothing went wrong."""
    started: float
    """Unix seconds of its current or last process's start; 0 if there was none."""
    ended: float
    """Unix seconds of its last process's end; 0 if none has ended."""
    status: int | None
    """Exit status of its last process that ended."""
    restarts: int
    answered: int
    pid: int
    """0: there is no process."""
    generation: int
    code: str
    """A fingerprint of the code that it runs; empty until it is ready."""
    in_flight: int
    slots: int
    load: float
    """Expected seconds of work that a new call would find before it."""
    oldest: float
    """Seconds since its oldest call was sent; 0 without one."""
    health: str
    """Whether its loop turns: healthy, late or stuck; empty while it does not serve."""
    standstill: float
    """Seconds that its loop has not turned for; 0 while it turns."""
    vitals: Vitals | None
    """What its process shows; None: there is none."""


class CallView(msgspec.Struct, frozen=True):
    """A call that a worker has, as people see it."""

    call: int
    agent: str
    request_id: str
    kind: str
    """``sync`` (on a thread) or ``async`` (on the loop)."""
    state: str
    """``waiting`` for a thread or a connection, ``running``, or ``awaiting`` (async, and on no stack)."""
    cancelled: bool
    """Its client has an answer or is gone, and it was told to end."""
    age: float
    """Seconds since it was sent to the worker."""
    since: float
    """Seconds since its function was entered, or since it waits for that."""
    remaining: float
    """Seconds until its deadline; negative when that is over."""


def view_of(seat: Seat, now: float) -> WorkerView:
    """A seat as it is now (monotonic seconds)."""
    current = seat.current
    worker = None if current is None else current.worker
    pulse = None if current is None else current.pulse
    return WorkerView(
        name=seat.name,
        pool=seat.pool,
        index=seat.index,
        state=seat.state,
        since=round(now - seat.since, 3),
        reason=seat.reason,
        started=seat.started,
        ended=seat.ended_at,
        status=seat.status,
        restarts=seat.restarts,
        answered=seat.answered,
        pid=0 if current is None else current.pid,
        generation=0 if current is None else current.identity.generation,
        code="" if current is None else current.code,
        in_flight=0 if worker is None else len(worker.calls),
        slots=0 if worker is None else worker.slots,
        load=0.0 if worker is None else round(worker.expected(now), 6),
        oldest=now - next(iter(worker.calls.values())).dispatched_at if worker is not None and worker.calls else 0.0,
        health="" if pulse is None else pulse.health,
        standstill=0.0 if pulse is None or pulse.health is Health.HEALTHY else round(pulse.standstill, 3),
        vitals=None if current is None else current.handle.vitals(),
    )


def calls_of(worker: Worker | None, vitals: Vitals | None) -> list[CallView]:
    """The calls that a worker has by the supervisor's books and by what it shows, the oldest first."""
    if worker is None or vitals is None:
        return []
    now = time.monotonic()
    views: list[CallView] = []
    for call, request in worker.calls.items():
        assert isinstance(request, Ticket)
        stage = vitals.calls.get(call)
        begun = stage is not None and stage.begun
        awaits = begun and not request.agent.sync and call != vitals.stepped
        views.append(
            CallView(
                call=call,
                agent=request.agent.name,
                request_id=request.request_id,
                kind="sync" if request.agent.sync else "async",
                state="awaiting" if awaits else "running" if begun else "waiting",
                cancelled=request.state is State.ENDED,
                age=now - request.dispatched_at,
                since=now - (request.dispatched_at if stage is None else stage.since),
                remaining=request.deadline - now,
            )
        )
    return views
