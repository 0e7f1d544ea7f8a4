"""The tables of supervision: complete, printable, and right in the places that people rely on."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import Any

import pytest

from penstock.daemon.core.lifecycle import (
    PHASES,
    SEATS,
    Phase,
    PhaseCommand,
    PhaseEvent,
    SeatCommand,
    SeatEvent,
    SeatState,
    table,
)
from tests.sources import parsed


def test_every_pair_is_filled() -> None:
    assert set(SEATS) == set(SeatState)
    assert set(PHASES) == set(Phase)
    assert all(set(row) == set(SeatEvent) for row in SEATS.values())
    assert all(set(row) == set(PhaseEvent) for row in PHASES.values())


def test_the_tables_print_every_pair() -> None:
    lines = table().splitlines()
    assert len(lines) == 2 + len(SeatState) * len(SeatEvent) + len(Phase) * len(PhaseEvent)
    assert "  RUNNING   stop     -> STOPPING, retire" in lines
    assert "  gone      exit     -> ignored" in lines


def test_the_states_have_names_that_supervisord_has() -> None:
    known = {"STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING", "EXITED", "FATAL", "UNKNOWN"}
    assert {state.value for state in SeatState} <= known


@pytest.mark.parametrize("state", [SeatState.STOPPED, SeatState.BACKOFF, SeatState.FATAL])
def test_a_start_by_hand_works_wherever_nothing_runs(state: SeatState) -> None:
    assert SEATS[state][SeatEvent.START] == (SeatState.STARTING, SeatCommand.SPAWN)


@pytest.mark.parametrize("state", list(SeatState))
def test_a_stop_leads_to_stopped_from_everywhere(state: SeatState) -> None:
    cell = SEATS[state][SeatEvent.STOP]
    after = state if cell is None else cell[0]
    if after is SeatState.STOPPING:
        gone = SEATS[after][SeatEvent.GONE]
        assert gone is not None
        after = gone[0]
    assert after is SeatState.STOPPED


def test_a_stopped_seat_stays_stopped_but_for_a_start() -> None:
    assert {event for event, cell in SEATS[SeatState.STOPPED].items() if cell is not None} == {SeatEvent.START}


def test_a_process_that_dies_is_buried_once() -> None:
    for phase, row in PHASES.items():
        cell = row[PhaseEvent.EXIT]
        assert cell == (None if phase is Phase.GONE else (Phase.GONE, PhaseCommand.REAP))
    assert not any(PHASES[Phase.GONE].values())


def test_only_what_has_no_calls_is_told_to_stop_and_only_what_drains_is_cut_off() -> None:
    told = {
        (phase, event)
        for phase, row in PHASES.items()
        for event, cell in row.items()
        if cell and cell[1] is PhaseCommand.STOP
    }
    assert told == {(Phase.DRAINING, PhaseEvent.IDLE)}
    cut = {
        (phase, event)
        for phase, row in PHASES.items()
        for event, cell in row.items()
        if cell and cell[1] is PhaseCommand.CUT_OFF
    }
    assert cut == {(Phase.DRAINING, PhaseEvent.TIMEOUT)}


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.SERVING, Phase.DRAINING, Phase.LEAVING])
def test_whatever_does_not_yield_is_killed_in_every_phase(phase: Phase) -> None:
    assert PHASES[phase][PhaseEvent.STUCK] == (Phase.KILLED, PhaseCommand.KILL)


@pytest.mark.parametrize(("commands", "table"), [(SeatCommand, SEATS), (PhaseCommand, PHASES)])
def test_every_command_of_a_table_has_exactly_one_actor(
    commands: type[Enum], table: Mapping[Any, Mapping[Any, tuple[Any, Enum] | None]]
) -> None:
    acted_on = Counter(
        node.attr
        for path, tree in parsed()
        if path.name != "lifecycle.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == commands.__name__
    )
    assert acted_on == Counter(command.name for command in commands)
    decided = {cell[1] for row in table.values() for cell in row.values() if cell is not None}
    assert decided == set(commands)
