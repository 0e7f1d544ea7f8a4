"""One reload at a time, and never one too few."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from penstock.daemon.fleet.reloading import Reloads


class Stage:
    """Reloads whose proofs end when the test says so, and which are possible from the start."""

    def __init__(self) -> None:
        self.proofs: list[asyncio.Future[str]] = []
        self.possible = asyncio.Event()
        self.possible.set()
        self.obstacle: Exception | None = None
        self.reloads = Reloads(asyncio.get_running_loop(), self._prove, self._possible)

    async def _prove(self) -> str:
        self.proofs.append(asyncio.get_running_loop().create_future())
        return await self.proofs[-1]

    async def _possible(self) -> None:
        await self.possible.wait()
        if self.obstacle is not None:
            raise self.obstacle

    async def proofs_begun(self, count: int) -> None:
        while len(self.proofs) < count:
            await asyncio.sleep(0)


def play(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario

    asyncio.run(bounded())


def test_the_outcome_is_told() -> None:
    async def scenario() -> None:
        stage = Stage()
        for why in ("", "it is broken"):
            asked = stage.reloads.ask()
            await stage.proofs_begun(len(stage.proofs) + 1)
            stage.proofs[-1].set_result(why)
            assert await asked == why

    play(scenario())


def test_a_newer_one_takes_the_place_of_one_that_is_being_proven_and_answers_for_it() -> None:
    async def scenario() -> None:
        stage = Stage()
        asked = [stage.reloads.ask()]
        await stage.proofs_begun(1)
        asked += [stage.reloads.ask(), stage.reloads.ask()]
        await stage.proofs_begun(2)
        assert stage.proofs[0].cancelled()
        stage.proofs[1].set_result("")
        assert [await each for each in asked] == ["", "", ""]
        assert len(stage.proofs) == 2

    play(scenario())


def test_one_that_comes_too_early_is_remembered_and_shared_by_all_who_wait() -> None:
    async def scenario() -> None:
        stage = Stage()
        first = stage.reloads.ask()
        await stage.proofs_begun(1)
        stage.possible.clear()
        stage.proofs[0].set_result("")
        assert await first == ""
        asked = [stage.reloads.ask() for _ in range(5)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(stage.proofs) == 1
        stage.possible.set()
        await stage.proofs_begun(2)
        stage.proofs[1].set_result("no")
        assert {await each for each in asked} == {"no"}
        assert len(stage.proofs) == 2

    play(scenario())


def test_one_that_is_asked_for_when_a_proof_has_just_ended_is_not_lost() -> None:
    async def scenario() -> None:
        stage = Stage()
        first = stage.reloads.ask()
        await stage.proofs_begun(1)
        stage.proofs[0].set_result("")
        second = stage.reloads.ask()
        await stage.proofs_begun(2)
        stage.proofs[1].set_result("")
        assert (await first, await second) == ("", "")

    play(scenario())


def test_whoever_waits_at_the_end_is_told() -> None:
    async def scenario() -> None:
        stage = Stage()
        first = stage.reloads.ask()
        await stage.proofs_begun(1)
        stage.reloads.close()
        assert await first == "the daemon is stopping"

    play(scenario())


def test_an_exception_is_an_outcome() -> None:
    async def scenario() -> None:
        stage = Stage()
        first = stage.reloads.ask()
        await stage.proofs_begun(1)
        stage.proofs[0].set_exception(RuntimeError("a bug"))
        assert await first == "RuntimeError: a bug"

    play(scenario())


def test_a_reload_that_cannot_begin_is_told_and_logged_and_stops_none_after_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.obstacle = RuntimeError("a bug")
        assert await stage.reloads.ask() == "RuntimeError: a bug"
        stage.obstacle = None
        second = stage.reloads.ask()
        await stage.proofs_begun(1)
        stage.proofs[0].set_result("")
        assert await second == ""

    play(scenario())
    assert [record.getMessage() for record in caplog.records] == ["the sequence of reloads failed"]
