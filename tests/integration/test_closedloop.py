"""The generator of closed loops, in C and in Python, against a server whose answers are known."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import pytest
from aiohttp import web

from bench.crowding import SOURCE, Crowd, Phase, generator, quantile, run, spec
from bench.spec import Kind

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ECHO = Kind("echo")


@pytest.fixture(params=["c", "python"])
def command(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "python":
        return [sys.executable, str(SOURCE.with_suffix(".py"))]
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    return generator()


def _against(
    handler: Handler, crowds: Sequence[Crowd], seconds: Sequence[float], command: list[str], patience: float = 30.0
) -> list[Phase]:
    async def serve() -> list[Phase]:
        runner = web.ServerRunner(web.Server(handler, access_log=None), shutdown_timeout=0.1)  # type: ignore[arg-type]  # its stubs want BaseRequest
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            data = spec("127.0.0.1", int(runner.addresses[0][1]), crowds, seconds, patience)
            return await asyncio.to_thread(run, data, crowds, time.process_time, command)
        finally:
            await runner.cleanup()

    return asyncio.run(serve())


def test_every_request_is_counted_once_by_what_became_of_it(command: list[str]) -> None:
    seen: Counter[str] = Counter()

    async def answer(request: web.Request) -> web.StreamResponse:
        agent = request.path.removeprefix("/v1/agents/")
        seen[agent] += 1
        if agent == "gone":
            assert request.transport is not None
            request.transport.abort()
        if agent == "odd":
            return web.Response(text="x" * 100_000, headers={"X-Long": "y" * 8000})
        return web.Response(
            status={"full": 503, "greedy": 429, "broken": 500}.get(agent, 200), body=await request.read()
        )

    mixed = Crowd([Kind("fine", '{"a": 1}', 4.0), Kind("full"), Kind("broken"), Kind("gone")], (8,), times=20)
    long = Crowd([Kind("odd")], (1,), times=1)
    one = Crowd([Kind("greedy")], (2,), times=3)
    phase = _against(answer, [mixed, long, one], [20.0], command)[0]
    outcomes = phase.crowds[0].outcomes
    assert outcomes == {"200": seen["fine"], "503": seen["full"], "500": seen["broken"], "reset": seen["gone"]}
    assert outcomes.total() == 8 * 20
    assert phase.crowds[0].answers == seen["fine"] > seen["full"] == phase.crowds[0].refusals > 0
    # The head may be too long for it, but then it says so.
    assert phase.crowds[1].outcomes.keys() <= {"not HTTP", "200"}
    assert phase.crowds[2].outcomes == {"429": 6}
    assert phase.seconds < 20.0
    assert phase.unanswered == 0
    assert sum(answered for answered, _ in phase.turns) == phase.all.answers
    assert sum(refused for _, refused in phase.turns) == phase.all.refusals


def test_who_obeys_comes_back_when_told_and_who_does_not_at_once(command: list[str]) -> None:
    came: dict[str, list[float]] = {}

    async def answer(request: web.Request) -> web.StreamResponse:
        times = came.setdefault(request.path, [])
        times.append(time.monotonic())
        if len(times) <= 2:
            return web.Response(status=503, headers={"Retry-After": "1"})
        return web.Response(body=b"1")

    crowds = [Crowd([Kind("polite")], (1,), obeys=True, times=1), Crowd([Kind("rude")], (1,), times=3)]
    polite, rude = _against(answer, crowds, [30.0], command)[0].crowds
    assert (polite.outcomes, rude.outcomes) == ({"503": 2, "200": 1}, {"503": 2, "200": 1})
    assert (polite.told, rude.told) == ({2: 1}, {2: 1})
    first, second, third = came["/v1/agents/polite"]
    assert second - first >= 0.999
    assert third - second >= 0.999
    assert polite.last_refusal >= 0.999
    assert 0.0 <= rude.last_refusal < polite.last_refusal


@pytest.mark.parametrize("keep", [True, False])
def test_connections_are_kept_or_made_for_each_request(command: list[str], keep: bool) -> None:
    ports: Counter[tuple[str, int]] = Counter()

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ports[request.transport.get_extra_info("peername")] += 1
        return web.Response(body=b"1")

    sources = ["127.0.0.2", "127.0.0.3"]
    phase = _against(answer, [Crowd([ECHO], (4,), keep, times=5, sources=sources)], [20.0], command)[0]
    assert phase.all.outcomes == {"200": 20}
    assert len(ports) == (4 if keep else 20)
    assert Counter(address for address, _ in ports.elements()) == {"127.0.0.2": 10, "127.0.0.3": 10}


def test_a_crowd_changes_without_a_gap_and_who_goes_hangs_up(command: list[str]) -> None:
    waiting: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def answer(request: web.Request) -> web.StreamResponse:
        waiting[request.path] += 1
        most[request.path] = max(most[request.path], waiting[request.path])
        try:
            await asyncio.sleep(0.02)
        finally:
            waiting[request.path] -= 1
        return web.Response(body=b"1")

    crowds = [Crowd([Kind("a")], (8, 2, 0)), Crowd([Kind("b")], (0, 0, 3), pause=0.01)]
    phases = _against(answer, crowds, [0.8, 0.8, 0.8], command)
    answers = [[crowd.answers for crowd in phase.crowds] for phase in phases]
    assert min(answers[0][0], answers[1][0], answers[2][1]) > 0
    assert (answers[0][1], answers[1][1], answers[2][0]) == (0, 0, 0)
    assert phases[1].unanswered <= 2
    assert most == {"/v1/agents/a": 8, "/v1/agents/b": 3}
    assert all(quantile(crowd.answered, 0.5) >= 0.02 for crowd in (phases[0].crowds[0], phases[2].crowds[1]))


def test_patience_ends_and_nobody_there_is_said(command: list[str]) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.0 if request.path.endswith("echo") else 60.0)
        return web.Response(body=b"1")

    crowds = [Crowd([Kind("never")], (2,), times=2), Crowd([ECHO], (1,), times=1)]
    phase = _against(answer, crowds, [20.0], command, patience=0.2)[0]
    assert [crowd.outcomes for crowd in phase.crowds] == [{"no answer": 4}, {"200": 1}]
    data = spec("127.0.0.1", 1, [Crowd([ECHO], (1,), times=2)], [20.0], 1.0)
    assert run(data, [Crowd([ECHO], (1,), times=2)], time.process_time, command)[0].all.outcomes == {"no connection": 2}


def test_times_are_told_from_histograms() -> None:
    times = Counter({0.1: 98, 0.2: 1, 0.3: 1})
    assert [quantile(times, part) for part in (0.0, 0.5, 0.98, 0.99, 1.0)] == [0.1, 0.1, 0.1, 0.2, 0.3]
    assert quantile(Counter(), 0.5) != quantile(Counter(), 0.5)
