"""Background tasks are kept until they end, and none fails unseen."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from typing import Any, cast

import pytest

from penstock.daemon.backends.local.sessions import Sessions
from penstock.daemon.front.accepting import Acceptor
from penstock.ipc.messages import DatabaseAccess
from penstock.ipc.tasks import Tasks
from penstock.workers.database import Database


async def fail() -> None:
    raise RuntimeError("it broke")


def failures(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """Logger, message and exception of what was logged with a traceback."""
    return [
        (record.name, record.getMessage(), str(record.exc_info[1]))
        for record in caplog.records
        if record.exc_info is not None
    ]


def test_a_failure_is_logged_with_its_subject(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        tasks = Tasks(logging.getLogger("test"), "mowing the lawn")
        await asyncio.wait({tasks.start(fail())})
        await asyncio.sleep(0)
        assert len(tasks) == 0

    asyncio.run(scenario())
    assert failures(caplog) == [("test", "mowing the lawn failed", "it broke")]


def test_a_task_is_kept_although_nobody_else_does() -> None:
    async def scenario() -> None:
        tasks = Tasks(logging.getLogger("test"), "waiting")
        ended: list[bool] = []

        async def forgotten() -> None:
            # Only the task itself knows the future that it waits for: a cycle, which would be collected.
            waiting = asyncio.get_running_loop().create_future()
            waiters.append(id(waiting))
            try:
                await waiting
            finally:
                ended.append(True)

        waiters: list[int] = []
        tasks.start(forgotten())
        while not waiters:
            await asyncio.sleep(0)
        gc.collect()
        assert not ended
        assert len(tasks) == 1
        tasks.cancel()
        await tasks.wait(5)
        assert ended

    asyncio.run(scenario())


def test_one_that_was_cancelled_has_not_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        tasks = Tasks(logging.getLogger("test"), "sleeping")
        tasks.start(asyncio.sleep(60))
        await asyncio.sleep(0)
        tasks.cancel()
        await tasks.wait(5)
        assert len(tasks) == 0

    asyncio.run(scenario())
    assert failures(caplog) == []


def test_sessions_that_could_not_be_ended_for_an_unexpected_reason_are_no_secret(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sessions, "_open", lambda self: fail())

    async def scenario() -> None:
        ending = Sessions().end("default:0", "penstock default:0/1", [1])
        await asyncio.wait({ending})
        await asyncio.sleep(0)
        assert failures(caplog) == [("penstock.sessions", "ending database sessions failed", "it broke")]

    asyncio.run(scenario())


def test_a_connection_that_could_not_be_taken_for_an_unexpected_reason_is_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Server:
        free = 1

        def __call__(self) -> asyncio.Protocol:
            raise RuntimeError("it broke")

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            acceptor = Acceptor(cast(Any, Server()), listener, None)
            with socket.create_connection(listener.getsockname()):
                async with asyncio.timeout(20):
                    while not failures(caplog):
                        await asyncio.sleep(0)
            acceptor.close()

    asyncio.run(scenario())
    assert failures(caplog) == [("penstock.http", "accepting a connection failed", "it broke")]


def test_a_pool_that_could_not_be_shrunk_is_no_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[logging.LogRecord] = []
    monkeypatch.setattr("penstock.workers.database.database.log.handle", said.append)
    access = DatabaseAccess("", 1.0, True)

    async def scenario() -> None:
        database = Database(access, "penstock default:0/1", lambda kind, connections: None)
        monkeypatch.setattr(database, "_grow", lambda kind, connections: asyncio.sleep(0))
        monkeypatch.setattr(database, "_shrink", lambda kind, connections: fail())
        await database.grant("async", 2)
        await database.grant("async", 1)
        async with asyncio.timeout(20):
            while not said:
                await asyncio.sleep(0)

    asyncio.run(scenario())
    assert [record.getMessage() for record in said] == ["shrinking a connection pool failed"]
