"""The load generator: its schedule, its arithmetic, and what it says about a server whose answers are known."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from bench.load import (
    NO_ANSWER,
    NO_CONNECTION,
    RESET,
    Generator,
    Kind,
    Population,
    Report,
    Series,
    Spec,
    arrivals,
    jain,
    milliseconds,
    others,
    pack,
    percentile,
    run_apart,
    summary,
    unpack,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


# Arithmetic


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, part) for part in (0.5, 0.9, 0.99, 0.999, 1.0)] == [50.0, 90.0, 99.0, 100.0, 100.0]
    assert percentile([7.0], 0.01) == 7.0
    assert math.isnan(percentile([], 0.5))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.floats(0.001, 1.0))
def test_percentile_is_the_smallest_that_enough_do_not_exceed(values: list[float], part: float) -> None:
    found = percentile(values, part)
    needed = part * len(values) - 1e-6
    assert found in values
    assert sum(value <= found for value in values) >= needed
    assert sum(value < found for value in values) < needed + 1 + 1e-6


def test_jain() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert math.isnan(jain([0.0, 0.0]))


# Schedule


def test_even_arrivals_are_evenly_spaced_in_each_step() -> None:
    moments = list(arrivals([(1.0, 4.0), (0.5, 0.0), (1.0, 2.0)], True, random.Random(1)))
    assert moments == [0.0, 0.25, 0.5, 0.75, 1.5, 2.0]


def test_poisson_arrivals_have_the_rate_and_the_spread_of_chance() -> None:
    moments = list(arrivals([(50.0, 100.0), (50.0, 400.0)], False, random.Random(7)))
    first = [at for at in moments if at < 50.0]
    second = [at for at in moments if at >= 50.0]
    assert moments == sorted(moments)
    assert moments[-1] < 100.0
    assert len(first) == pytest.approx(5000, rel=0.06)
    assert len(second) == pytest.approx(20000, rel=0.03)
    gaps = [after - before for before, after in pairwise(first)]
    # An exponential distribution's standard deviation is its mean; that of even spacing would be 0.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    def made(seed: int) -> list[float]:
        return list(arrivals([(2.0, 50.0)], False, random.Random(seed)))

    assert made(3) == made(3)
    assert made(3) != made(4)


# Accounting


def _series() -> Series:
    series = Series(["200", "503 overloaded", RESET], ["127.0.0.1", "127.0.0.2", "127.0.0.3"])
    series.add(0.0, 0.1, 0, 0, 0)
    series.add(0.5, 0.6, 0, 1, 0)
    series.add(1.0, 0.01, 1, 1, 0)
    series.add(2.0, 0.2, 0, 1, 1)
    series.add(2.5, 0.02, 1, 2, 1)
    series.add(3.0, 0.03, 2, 2, 0)
    return series


def test_a_series_tells_what_became_of_requests() -> None:
    series = _series()
    assert series.outcomes() == {"200": 3, "503 overloaded": 2, RESET: 1}
    assert series.latencies() == [0.1, 0.6, 0.2]
    assert series.ages() == [0.01, 0.02]
    assert series.good(0.5) == 2
    assert series.good_by_source(0.5) == {"127.0.0.1": 1, "127.0.0.2": 1, "127.0.0.3": 0}
    assert series.comebacks() == (2, 1)
    assert milliseconds(series, "p50", "max") == [200.0, 600.0]
    assert others(series) == "2 x 503 overloaded, 1 x reset"


def test_windows_count_requests_when_due_and_throughput_when_answered() -> None:
    series = _series()
    assert series.between(0.5, 2.0).outcomes() == {"200": 1, "503 overloaded": 1}
    assert series.of_source("127.0.0.3").outcomes() == {"503 overloaded": 1, RESET: 1}
    assert series.throughput(1.0, 3.0) == 1.0


def test_progress_counts_calls_under_way_in_part() -> None:
    series = Series(["200", RESET], [""])
    for due, took, outcome in ((0.0, 2.0, 0), (1.0, 2.0, 0), (1.5, 0.25, 0), (0.0, 2.0, 1)):
        series.add(due, took, outcome, 0, 0)
    # In the second from 1 to 2: half of the first, half of the second, all of the third, nothing of what was reset.
    assert series.progress(1.0, 2.0) == pytest.approx(2.0)
    assert series.throughput(1.0, 2.0) == 1.0


def test_a_report_survives_its_way_between_processes() -> None:
    report = Report({"a/x": _series(), "b/x": _series()}, 3.0, {"p50": math.nan}, 0.5, 7.0)
    again = unpack(pack(report))
    assert again.all().outcomes() == Counter({"200": 6, "503 overloaded": 4, RESET: 2})
    assert again.only("a/").latencies() == [0.1, 0.6, 0.2]
    assert again.only("b/").good_by_source(1.0) == _series().good_by_source(1.0)
    assert (again.seconds, again.cpu, again.started) == (3.0, 0.5, 7.0)
    assert math.isnan(again.late["p50"])


# Against a real server


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
