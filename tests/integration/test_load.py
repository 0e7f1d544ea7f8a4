"""The load generator: what it says about a server whose answers are known."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from bench.connection import NO_ANSWER, NO_CONNECTION, RESET
from bench.generator import Generator, run_apart
from bench.series import Report
from bench.spec import Kind, Population, Spec
from bench.tables import summary

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def _against(handler: Handler, *populations: Population, seconds: float = 0.3, apart: bool = False) -> Report:
    runner = web.ServerRunner(web.Server(handler, access_log=None))  # type: ignore[arg-type]  # its stubs want BaseRequest
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = int(runner.addresses[0][1])
        spec = Spec("127.0.0.1", port, list(populations), seconds)
        if apart:
            return await asyncio.to_thread(run_apart, spec)
        return await Generator(spec).run()
    finally:
        await runner.cleanup()


def _problem(status: int, name: str, **headers: str) -> web.Response:
    body = f'{{"type": "urn:penstock:problem:{name}", "status": {status}}}'
    return web.Response(status=status, body=body.encode(), content_type="application/problem+json", headers=headers)


def test_every_request_is_counted_once_by_what_became_of_it() -> None:
    seen: Counter[str] = Counter()

    async def answer(request: web.Request) -> web.StreamResponse:
        agent = request.path.removeprefix("/v1/agents/")
        seen[agent] += 1
        if agent == "full":
            return _problem(503, "overloaded")
        if agent == "plain":
            return web.Response(status=500, text="no problem document")
        if agent == "gone":
            assert request.transport is not None
            request.transport.abort()
        return web.Response(body=await request.read())

    kinds = [Kind(agent, '{"a": 1}', weight) for agent, weight in (("fine", 4), ("full", 2), ("plain", 1), ("gone", 1))]
    report = asyncio.run(_against(answer, Population("mix", kinds, clients=8)))
    found = {name: dict(series.outcomes()) for name, series in report.series.items()}
    assert found == {
        "mix/fine": {"200": seen["fine"]},
        "mix/full": {"503 overloaded": seen["full"]},
        "mix/plain": {"500": seen["plain"]},
        "mix/gone": {RESET: seen["gone"]},
    }
    assert seen["fine"] > seen["full"] > seen["gone"] > 0
    assert "503 overloaded" in summary(report)


def test_large_bodies_and_heads_in_pieces_are_read_to_their_end() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=await request.read(), headers={"X-Long": "x" * 6000})

    body = '"' + "y" * 1_000_000 + '"'
    report = asyncio.run(_against(answer, Population("big", [Kind("echo", body)], clients=2)))
    series = report.all()
    assert len(series) >= 4
    assert set(series.outcomes()) == {"200"}


def test_the_latency_of_an_open_loop_counts_from_the_moment_that_a_request_was_due() -> None:
    """A server that answers nothing for 0.3 s must show in the latencies of all requests that were due meanwhile."""
    stall, at = 0.3, 10
    count = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        if count == at + 1:
            # Blocks generator and server alike, as they share this loop: the requests due meanwhile are sent late.
            time.sleep(stall)
        return web.Response(body=b"1")

    population = Population("open", [Kind("echo")], rate=100.0, even=True)
    report = asyncio.run(_against(answer, population, seconds=0.6))
    series = report.all()
    assert len(series) == 60
    begun = at / 100.0
    stalled = series.between(begun, begun + stall)
    assert len(stalled) == round(100 * stall)
    assert all(due + took >= begun + stall - 1e-3 for due, took in zip(stalled.due, stalled.took, strict=True))
    assert report.late["max"] > stall - 0.02


def test_the_generator_says_how_late_it_was_itself() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"1")

    population = Population("open", [Kind("echo")], rate=200.0)
    report = asyncio.run(_against(answer, population, seconds=1.0, apart=True))
    assert set(report.all().outcomes()) == {"200"}
    assert 0.0 <= report.late["p50"] <= report.late["p99"] <= report.late["max"]


def test_populations_keep_to_their_times_steps_headers_and_addresses() -> None:
    seen: Counter[tuple[str, str]] = Counter()

    async def answer(request: web.Request) -> web.StreamResponse:
        seen[request.remote or "", request.headers.get("Priority", "")] += 1
        return web.Response(body=b"1")

    early = Population(
        "early", [Kind("echo", headers={"Priority": "u=0"})], steps=[(0.1, 50.0), (0.1, 200.0)], even=True
    )
    addresses = ["127.0.0.2", "127.0.0.3"]
    late = Population("late", [Kind("echo", label="ask")], rate=100.0, even=True, begin=0.3, sources=addresses)
    report = asyncio.run(_against(answer, early, late, seconds=0.5))
    assert len(report.series["early/echo"]) == 25
    assert len(report.series["early/echo"].between(0.1)) == 20
    assert len(report.series["late/ask"]) == 20
    assert not len(report.series["late/ask"].between(0.0, 0.2999))
    assert report.series["late/ask"].good_by_source(5.0) == dict.fromkeys(addresses, 10)
    assert seen == {("127.0.0.1", "u=0"): 25, ("127.0.0.2", ""): 10, ("127.0.0.3", ""): 10}


def test_a_client_that_obeys_comes_back_when_it_was_told_to() -> None:
    arrived: list[float] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        arrived.append(time.monotonic())
        return _problem(503, "overloaded", **{"Retry-After": "1"}) if len(arrived) == 1 else web.Response(body=b"1")

    population = Population("obedient", [Kind("echo")], rate=10.0, even=True, retries=2)
    series = asyncio.run(_against(answer, population, seconds=0.1)).all()
    assert series.outcomes() == {"503 overloaded": 1, "200": 1}
    assert series.comebacks() == (1, 1)
    assert list(series.attempts) == [0, 1]
    assert 0.95 < arrived[1] - arrived[0] < 2.0
    assert series.due[1] >= 1.0
    assert series.took[1] < 0.9


def test_patience_ends_a_request_and_its_connection() -> None:
    closed = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        while request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.01)
        closed.set()
        return web.Response()

    async def main() -> Report:
        population = Population("hasty", [Kind("echo")], rate=20.0, even=True, patience=0.1)
        report = await _against(answer, population, seconds=0.1)
        await asyncio.wait_for(closed.wait(), 5)
        return report

    series = asyncio.run(main()).all()
    assert series.outcomes() == {NO_ANSWER: 2}
    assert all(0.1 <= took < 1.0 for took in series.took)


def test_a_server_that_goes_away_is_told_apart_from_one_that_was_never_there() -> None:
    async def main() -> Report:
        served = 0

        async def answer(request: web.Request) -> web.StreamResponse:
            nonlocal served
            served += 1
            if served == 3:
                await site.stop()
                assert request.transport is not None
                request.transport.abort()
            return web.Response(body=b"1", headers={"Connection": "close"} if served == 2 else {})

        runner = web.ServerRunner(web.Server(answer, access_log=None))  # type: ignore[arg-type]  # as above
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        spec = Spec("127.0.0.1", int(runner.addresses[0][1]), [Population("one", [Kind("echo")], clients=1)], 0.3)
        try:
            report = await Generator(spec).run()
        finally:
            await runner.cleanup()
        with pytest.raises(OSError, match=r"refused|failed"):
            await Generator(spec).run()
        return report

    outcomes = asyncio.run(main()).all().outcomes()
    refused = outcomes.pop(NO_CONNECTION)
    assert 1 <= refused <= 8
    assert outcomes == {"200": 2, RESET: 1}
