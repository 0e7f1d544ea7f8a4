"""Any history of a seat, and of a process: what must hold whatever happens in which order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.core.lifecycle import (
    PHASES,
    SEATS,
    Phase,
    PhaseCommand,
    PhaseEvent,
    SeatCommand,
    SeatEvent,
    SeatState,
)

DEATHS = {SeatEvent.AGAIN, SeatEvent.LATER, SeatEvent.NEVER}


@given(st.lists(st.sampled_from(SeatEvent)))
def test_a_seat_has_a_process_exactly_in_the_states_that_say_so(events: list[SeatEvent]) -> None:
    state, process, ready = SeatState.STOPPED, False, False
    for event in events:
        # A process can only be ready once, and die, where there is one; of one that was to stop it is said by GONE.
        if event is SeatEvent.READY and (not process or ready):
            continue
        if event in DEATHS and (not process or state is SeatState.STOPPING):
            continue
        if event is SeatEvent.GONE and not (process and state is SeatState.STOPPING):
            continue
        cell = SEATS[state][event]
        if event in DEATHS or event is SeatEvent.GONE:
            process = ready = False
        if event is SeatEvent.READY:
            ready = True
        if cell is not None:
            state, command = cell
            if command is SeatCommand.SPAWN:
                assert not process, "a second process in the seat"
                process, ready = True, False
            elif command is SeatCommand.RETIRE:
                assert process, "nothing to retire"
        assert process == (state in (SeatState.STARTING, SeatState.RUNNING, SeatState.STOPPING))
        if state is SeatState.RUNNING:
            assert ready


@given(st.lists(st.sampled_from(PhaseEvent)))
def test_a_process_joins_once_drains_before_it_is_stopped_and_is_buried_last(events: list[PhaseEvent]) -> None:
    phase = Phase.STARTING
    commands: list[PhaseCommand] = []
    for event in events:
        cell = PHASES[phase][event]
        if cell is not None:
            phase, command = cell
            commands.append(command)
    assert len(commands) == len(set(commands)), "a command was given twice"
    order = [
        PhaseCommand.JOIN,
        PhaseCommand.DRAIN,
        PhaseCommand.STOP,
        PhaseCommand.CUT_OFF,
        PhaseCommand.KILL,
        PhaseCommand.REAP,
    ]
    assert [each for each in order if each in commands] == commands
    assert not {PhaseCommand.CUT_OFF, PhaseCommand.KILL} <= set(commands)
    if PhaseCommand.DRAIN in commands:
        assert PhaseCommand.JOIN in commands
    if PhaseCommand.STOP in commands or PhaseCommand.CUT_OFF in commands:
        assert PhaseCommand.DRAIN in commands
    assert (phase is Phase.GONE) == (PhaseEvent.EXIT in events)
