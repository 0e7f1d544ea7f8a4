"""The two state machines of supervision, as tables that can be printed: ``python -m penstock.daemon.core.lifecycle``.

A *seat* is a worker as people name it (``default:0``). It has supervisord's states, so that ``supervisorctl`` shows
what its users know, and lives as long as the configuration has it.

An *incarnation* is one process in a seat. A seat has one that serves, and for a while another: a replacement that
starts beside it, or a predecessor that drains. Replacing does not change the seat's state: it runs all the time.

Every pair of state and event is in the table; what is to be ignored says so.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final


class SeatState(StrEnum):
    """States of a seat, by supervisord's names."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"
    FATAL = "FATAL"


class SeatEvent(Enum):
    START = "start"
    """Somebody wants it to run."""
    READY = "ready"
    """Its process serves."""
    AGAIN = "again"
    """Its process died, and the restart policy says: at once."""
    LATER = "later"
    """Its process died, and the policy says: after a pause."""
    NEVER = "never"
    """Its process died, and the policy gives up."""
    DUE = "due"
    """The pause is over."""
    STOP = "stop"
    """Somebody wants it to stop."""
    GONE = "gone"
    """The process that was to stop has ended."""


class SeatCommand(Enum):
    NOTHING = "-"
    SPAWN = "spawn"
    PAUSE = "pause"
    RETIRE = "retire"


def _seat(**rows: tuple[SeatState, SeatCommand] | None) -> dict[SeatEvent, tuple[SeatState, SeatCommand] | None]:
    return {SeatEvent[name.upper()]: cell for name, cell in rows.items()}


_SPAWN: Final = (SeatState.STARTING, SeatCommand.SPAWN)
_PAUSE: Final = (SeatState.BACKOFF, SeatCommand.PAUSE)
_GIVE_UP: Final = (SeatState.FATAL, SeatCommand.NOTHING)
_RETIRE: Final = (SeatState.STOPPING, SeatCommand.RETIRE)
_STOPPED: Final = (SeatState.STOPPED, SeatCommand.NOTHING)
_RUNNING: Final = (SeatState.RUNNING, SeatCommand.NOTHING)

SEATS: Final[dict[SeatState, dict[SeatEvent, tuple[SeatState, SeatCommand] | None]]] = {
    SeatState.STOPPED: _seat(
        start=_SPAWN, ready=None, again=None, later=None, never=None, due=None, stop=None, gone=None
    ),
    SeatState.STARTING: _seat(
        start=None, ready=_RUNNING, again=_SPAWN, later=_PAUSE, never=_GIVE_UP, due=None, stop=_RETIRE, gone=None
    ),
    SeatState.RUNNING: _seat(
        start=None, ready=None, again=_SPAWN, later=_PAUSE, never=_GIVE_UP, due=None, stop=_RETIRE, gone=None
    ),
    SeatState.BACKOFF: _seat(
        start=_SPAWN, ready=None, again=None, later=None, never=None, due=_SPAWN, stop=_STOPPED, gone=None
    ),
    SeatState.STOPPING: _seat(
        start=None, ready=None, again=_STOPPED, later=_STOPPED, never=_STOPPED, due=None, stop=None, gone=_STOPPED
    ),
    SeatState.FATAL: _seat(
        start=_SPAWN, ready=None, again=None, later=None, never=None, due=None, stop=_STOPPED, gone=None
    ),
}
"""State, event: the next state and what to do. None: ignored."""


class Phase(Enum):
    """Phases of an incarnation."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    """It gets no new calls and ends those that it has."""
    LEAVING = "leaving"
    """It has no calls and was told to end."""
    KILLED = "killed"
    GONE = "gone"


class PhaseEvent(Enum):
    READY = "ready"
    RETIRE = "retire"
    IDLE = "idle"
    """Its last call has ended."""
    TIMEOUT = "timeout"
    """It had its time to drain, or to leave."""
    STUCK = "stuck"
    """It does not yield."""
    EXIT = "exit"


class PhaseCommand(Enum):
    JOIN = "join"
    DRAIN = "drain"
    STOP = "stop"
    CUT_OFF = "cut off"
    """Answer the calls that it still has, and kill it."""
    KILL = "kill"
    REAP = "reap"


def _phase(**rows: tuple[Phase, PhaseCommand] | None) -> dict[PhaseEvent, tuple[Phase, PhaseCommand] | None]:
    return {PhaseEvent[name.upper()]: cell for name, cell in rows.items()}


_KILL: Final = (Phase.KILLED, PhaseCommand.KILL)
_REAP: Final = (Phase.GONE, PhaseCommand.REAP)

PHASES: Final[dict[Phase, dict[PhaseEvent, tuple[Phase, PhaseCommand] | None]]] = {
    Phase.STARTING: _phase(
        ready=(Phase.SERVING, PhaseCommand.JOIN), retire=_KILL, idle=None, timeout=None, stuck=_KILL, exit=_REAP
    ),
    Phase.SERVING: _phase(
        ready=None, retire=(Phase.DRAINING, PhaseCommand.DRAIN), idle=None, timeout=None, stuck=_KILL, exit=_REAP
    ),
    Phase.DRAINING: _phase(
        ready=None,
        retire=None,
        idle=(Phase.LEAVING, PhaseCommand.STOP),
        timeout=(Phase.KILLED, PhaseCommand.CUT_OFF),
        stuck=_KILL,
        exit=_REAP,
    ),
    Phase.LEAVING: _phase(ready=None, retire=None, idle=None, timeout=_KILL, stuck=_KILL, exit=_REAP),
    Phase.KILLED: _phase(ready=None, retire=None, idle=None, timeout=None, stuck=None, exit=_REAP),
    Phase.GONE: _phase(ready=None, retire=None, idle=None, timeout=None, stuck=None, exit=None),
}
"""Phase, event: the next phase and what to do. None: ignored."""


def table() -> str:
    """Both tables as text."""
    lines: list[str] = []
    for title, rows in (("seat", SEATS), ("incarnation", PHASES)):
        lines.append(f"{title}: state, event -> state, command")
        for state, row in rows.items():
            for event, cell in row.items():
                then = "ignored" if cell is None else f"{cell[0].value}, {cell[1].value}"
                lines.append(f"  {state.value:9} {event.value:8} -> {then}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
