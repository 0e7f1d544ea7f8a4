"""Booking, encoding and sending are one step: whatever requests come and wherever it raises, nothing of them is left."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, cast
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.daemon.core.backlog import Watermarks
from penstock.daemon.core.dispatch import Balance, Pool
from penstock.daemon.core.model import Block, Request, Worker
from penstock.daemon.core.throttle import Policy
from penstock.daemon.engine.engine import Engine
from penstock.daemon.engine.tickets import Failed, Ticket
from penstock.daemon.front.calls import Calls
from penstock.daemon.front.routes import Administration, Routes
from penstock.daemon.front.server import Server
from penstock.ipc.frames import decode_to_work, encode
from penstock.ipc.messages import AgentInfo, Answer, Batch, Call, Outcome, Part, Reply
from tests.fix_sinks import Awaited

POOL = "p"
AGENTS = ("waits", "computes", "alone", "asks")
ODD_BYTES = st.binary(max_size=12).map(lambda value: value.decode(errors="surrogateescape"))
HEADERS = st.dictionaries(st.sampled_from(("X-Note", "Affinity-Key", "Host", "Cookie")), ODD_BYTES, max_size=4)
FAULTS = st.sampled_from(("", "", "", "", "choose", "book", "send"))


def info(name: str) -> AgentInfo:
    return AgentInfo(
        name,
        "m",
        "",
        "sync" if name == "computes" else "async",
        POOL,
        idempotent=False,
        timeout=None,
        priority=3,
        max_concurrency=int(name == "alone"),
        raw_body=False,
        wants_headers=True,
        database="async" if name == "asks" else "",
        connection=name == "asks",
        body_schema={},
        result_schema={},
    )


class Fault(Exception):
    """What is raised where it hurts."""


class Doomed(Ticket):
    """A request at which a step raises: ``choose``, ``book`` or ``send``."""

    at = ""


def raises(request: Request, at: str) -> None:
    if isinstance(request, Doomed) and request.at == at:
        raise Fault(at)


class FaultyPool(Pool):
    __slots__ = ()

    def choose(self, request: Request, now: float) -> Worker | None:
        raises(request, "choose")
        return super().choose(request, now)


class FaultyWorker(Worker):
    def take(self, request: Request, call: int, now: float) -> None:
        raises(request, "book")
        super().take(request, call, now)


class Link:
    """A worker's channel that keeps what it was given, decoded as the worker would."""

    refused: Callable[[list[int]], None]

    def __init__(self, engine: Engine, worker: Worker) -> None:
        self.sent: dict[int, Any] = {}
        self.worker = worker

    def send(self, call: Call, body: bytes) -> None:
        raises(self.worker.calls[call.call], "send")
        self.sent[call.call] = decode_to_work(encode(call))

    def send_batch(self, batch: Batch, bodies: bytes) -> None:
        raise AssertionError("nothing here goes in batches")

    def cancel(self, call_id: int, reason: str) -> None:
        pass

    def allow(self, call_id: int, credit: int) -> None:
        raise AssertionError("nothing here streams")

    def reply(self, message: Part | Reply, body: bytes) -> None:
        raise AssertionError("no call here asks for another")


def books(engine: Engine, workers: Sequence[Worker]) -> list[float]:
    """Everything that is booked anywhere; all zero when nothing waits and nothing runs."""
    scheduler = engine.scheduler
    backlog, host = scheduler.backlog, scheduler.host
    found = [backlog.requests, backlog.bytes, len(scheduler.wheel), host.share, host.short, host.long, host.calls]
    for queue in backlog.queues.values():
        found += [queue.requests, len(queue.busy), queue.work.wall, queue.work.cpu, queue.work.sync]
    for worker in workers:
        own = worker.processors
        found += [len(worker.calls), worker.sync_calls, worker.load, own.share, own.short, own.long, own.calls]
        found += [*worker.connected.values(), *worker.by_agent.values()]
    for listing in engine.catalogue.values():
        found += [listing.agent.running, listing.agent.sent_at]
    return found


def ticket(engine: Engine, kind: type[Ticket], agent: str, headers: dict[str, str], size: int, number: int) -> Ticket:
    now = time.monotonic()
    return kind(
        engine.catalogue[agent].agent,
        now,
        now + 60.0,
        request_id=f"r{number}",
        body=bytes(size),
        headers=headers,
        priority=number % 8,
        client=f"c{number % 3}",
        affinity=headers.get("Affinity-Key", ""),
        sink=Awaited(),
    )


def told(ticket: Ticket) -> bool:
    """Whether its sink was called."""
    return ticket in cast(Awaited, ticket.sink).tickets


def failed(ticket: Ticket) -> bool:
    return isinstance(ticket.outcome, Failed)


def answer(worker: Worker, call: int) -> Answer:
    now = time.monotonic()
    times = (0.001, 0.001, 0.0, now, now)
    return Answer(worker.name, worker.generation, call, Outcome.RESULT, 200, "", None, "", "", *times)


def stand(balance: str) -> tuple[Engine, list[FaultyWorker], list[Link]]:
    engine = Engine(asyncio.get_running_loop())
    engine.scheduler.pools[POOL] = FaultyPool(POOL, Balance(balance))
    # Without the throttle slots alone count, and nothing is refused: what waits and what runs does not hang on time.
    engine.configure({POOL: balance}, Watermarks(), 30.0, 1.0, Policy(enabled=False))
    workers = [FaultyWorker(f"p:{at}", 1, POOL, 2, 1, frozenset(AGENTS), connections={"async": 1}) for at in range(2)]
    links = [Link(engine, worker) for worker in workers]
    for worker, link in zip(workers, links, strict=True):
        engine.join(worker, link, [info(name) for name in AGENTS], Mock())
    return engine, workers, links


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Each fault is in the log, with its traceback; here they are meant."""
    caplog.set_level("CRITICAL", "penstock.engine")


REQUESTS = st.lists(
    st.tuples(st.sampled_from(AGENTS), HEADERS, st.integers(0, 300), FAULTS, st.integers(0, 3)), max_size=30
)


@given(balance=st.sampled_from(Balance), requests=REQUESTS, seed=st.integers(0, 99))
@settings(max_examples=150)
def test_nothing_is_left_of_any_request(
    balance: str, requests: list[tuple[str, dict[str, str], int, str, int]], seed: int
) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        engine, workers, links = stand(balance)

        def end_one() -> bool:
            # A worker answers what it was sent.
            busy = [(link.worker, call) for link in links for call in link.sent if call in link.worker.calls]
            if busy:
                worker, call = rng.choice(busy)
                engine.answered(worker, answer(worker, call), b"")
            return bool(busy)

        made: list[Ticket] = []
        for number, (agent, headers, size, fault, ends) in enumerate(requests):
            each = ticket(engine, Doomed if fault else Ticket, agent, headers, size, number)
            if isinstance(each, Doomed):
                each.at = fault
            made.append(each)
            engine.submit(each)
            for _ in range(ends):
                end_one()
        while end_one():
            pass
        assert all(told(each) for each in made), "everybody gets an answer"
        for each in made:
            assert isinstance(each.outcome, Failed if isinstance(each, Doomed) else Answer)
        assert not any(books(engine, workers)), "nothing is left"
        assert engine.stuck() == ""
        sent = {call.request_id: call for link in links for call in link.sent.values()}
        for each in made:
            if not failed(each):
                call = sent[each.request_id]
                raw = {name: value.decode(errors="surrogateescape") for name, value in (call.raw_headers or {}).items()}
                assert call.headers | raw == each.headers

    asyncio.run(main())


def test_a_deadline_at_which_a_decision_raises_ends_that_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        engine, workers, _ = stand("least-loaded")
        for worker in workers:
            worker.block(Block.DRAINING)
        throttle = engine.scheduler.throttle(POOL)

        def expire(rank: int, name: str, *arguments: Any) -> None:
            if name == "c0":
                raise Fault("expire")

        def now_or_soon(arrived_at: float, deadline: float, own_deadline: bool) -> float:
            return arrived_at

        monkeypatch.setattr(type(throttle), "expire", lambda self, *arguments: expire(*arguments))
        monkeypatch.setattr(type(throttle), "expiry", lambda self, *arguments: now_or_soon(*arguments))
        made = [ticket(engine, Ticket, "waits", {}, 10, number) for number in range(6)]
        for each in made:
            engine.submit(each)
        async with asyncio.timeout(20.0):
            for each in made[::3]:
                await cast(Awaited, each.sink).wait(each)
        assert [failed(each) for each in made] == [True, False, False, True, False, False]
        assert not any(told(each) for each in made if not failed(each))
        for worker in workers:
            worker.unblock(Block.DRAINING)
        engine.pump(POOL)
        for worker in workers:
            for call in list(worker.calls):
                engine.answered(worker, answer(worker, call), b"")
        assert all(isinstance(each.outcome, Answer) for each in made if not failed(each))
        assert not any(books(engine, workers))

    asyncio.run(main())


def test_a_head_at_which_a_decision_raises_does_not_stop_the_watchdog(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        engine, workers, links = stand("hash")
        for worker in workers:
            worker.block(Block.DRAINING)
        first, second = (ticket(engine, kind, "waits", {}, 10, 0) for kind in (Doomed, Ticket))
        assert isinstance(first, Doomed)
        first.at = "choose"
        for each in (first, second):
            # Nobody is asked where to yet.
            engine.scheduler.backlog.number(each)
            engine.scheduler.backlog.push(each)
        workers[0].unblock(Block.DRAINING)
        assert engine.stuck() == ""
        assert (failed(first), told(first), failed(second)) == (True, True, False)
        assert [call.request_id for call in links[0].sent.values()] == ["r0"]

    caplog.set_level("ERROR", "penstock.engine")
    asyncio.run(main())
    assert "an internal error ended a request" in caplog.text
    assert "Fault: choose" in caplog.text


@pytest.mark.parametrize("fault", ["choose", "book", "send"])
def test_its_client_is_told_that_the_fault_is_ours_and_no_more(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        engine, workers, _ = stand("least-loaded")
        routes = Routes(engine, cast(Administration, Mock()), Mock(), Calls(engine, Mock(), 1000))
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(Server(routes), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]

        class AtFault(Doomed):
            __slots__ = ()
            at = fault

        monkeypatch.setattr("penstock.daemon.front.calls.Ticket", AtFault)
        for _ in range(6):
            async with asyncio.timeout(20.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(
                    b"POST /v1/agents/waits HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                )
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
                writer.close()
            assert head.startswith(b"HTTP/1.1 500 ")
            found = json.loads(body)
            assert (found["type"], found["agent"]) == ("urn:penstock:problem:http-error", "waits")
            assert found["detail"] == "the supervisor failed to handle this request"
            assert found["request_id"].encode() in head
        assert not any(books(engine, workers))
        listener.close()

    asyncio.run(main())
