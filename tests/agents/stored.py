"""Agents with the database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

import psycopg
import psycopg_pool
from psycopg.rows import dict_row

from penstock.workers import agent


@agent
async def ask(sql: str, db: psycopg.AsyncConnection[Any]) -> Any:
    cursor = await db.execute(sql)
    return await cursor.fetchall() if cursor.description else None


@agent
def ask_sync(sql: str, db: psycopg.Connection[Any]) -> Any:
    cursor = db.execute(sql)
    return cursor.fetchall() if cursor.description else None


@agent(idempotent=True)
async def ask_again(sql: str, db: psycopg.AsyncConnection[Any]) -> Any:
    return await (await db.execute(sql)).fetchall()


@agent
async def store_and_fail(value: int, db: psycopg.AsyncConnection[Any]) -> None:
    await db.execute("INSERT INTO numbers VALUES (%s)", [value])
    raise RuntimeError("after the insert")


@agent
async def pooled(body: Any, pool: psycopg_pool.AsyncConnectionPool[Any]) -> Any:
    """A fraction is for how many seconds it waits for the connection."""
    async with pool.connection(body if isinstance(body, float) else None) as connection:
        return await (await connection.execute("SELECT 1")).fetchall()


@agent
def pooled_sync(body: Any, pool: psycopg_pool.ConnectionPool[Any]) -> Any:
    with pool.connection(body if isinstance(body, float) else None) as connection:
        return connection.execute("SELECT 1").fetchall()


@agent
async def nested(depth: int, pool: psycopg_pool.AsyncConnectionPool[Any]) -> None:
    """Takes one connection after another, and keeps them."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(depth):
            await stack.enter_async_context(pool.connection())


@agent
def nested_sync(depth: int, pool: psycopg_pool.ConnectionPool[Any]) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(depth):
            stack.enter_context(pool.connection())


@agent
async def keep(path: str, db: psycopg.AsyncConnection[Any]) -> None:
    """Has a connection until there is a file."""
    while not os.path.exists(path):
        await asyncio.sleep(0.01)


@agent
def keep_sync(path: str, db: psycopg.Connection[Any]) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


@agent
async def count_once(key: str, db: psycopg.AsyncConnection[Any]) -> str:
    await db.execute("INSERT INTO ledger VALUES (%s)", [key])
    await db.execute("SELECT pg_sleep(0.01)")
    return key


@agent(idempotent=True)
def count_again(key: str, db: psycopg.Connection[Any]) -> str:
    db.execute("INSERT INTO ledger VALUES (%s)", [key])
    db.execute("SELECT pg_sleep(0.01)")
    return key


@agent
async def hold_async(seconds: float, pool: psycopg_pool.AsyncConnectionPool[Any]) -> str:
    """Keeps all the connections that the pool may have, for so long."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(pool.max_size):
            await stack.enter_async_context(pool.connection())
        await asyncio.sleep(seconds)
    return "held them all"


@agent
def hold_sync(seconds: float, pool: psycopg_pool.ConnectionPool[Any]) -> str:
    """Keeps all the connections that the pool may have, for so long."""
    with contextlib.ExitStack() as stack:
        for _ in range(pool.max_size):
            stack.enter_context(pool.connection())
        time.sleep(seconds)
    return "held them all"


@agent
async def alter(what: str, db: psycopg.AsyncConnection[Any]) -> Any:
    """Changes the connection and leaves it so."""
    if what == "rows":
        db.row_factory = dict_row
    elif what == "autocommit":
        await db.set_autocommit(True)
    elif what == "read only":
        await db.set_read_only(True)
    return None


@agent
def alter_sync(what: str, db: psycopg.Connection[Any]) -> Any:
    if what == "rows":
        db.row_factory = dict_row
    elif what == "read only":
        db.commit()
        db.read_only = True
    return None


@agent
async def ask_and_hold(sql: str, db: psycopg.AsyncConnection[Any]) -> None:
    """Holds the connection for a while after the statement."""
    await db.execute(sql)
    await asyncio.sleep(0.2)


@agent
def ask_and_hold_sync(sql: str, db: psycopg.Connection[Any]) -> None:
    db.execute(sql)
    time.sleep(0.2)


@agent
async def ask_at_once(sql: str, pool: psycopg_pool.AsyncConnectionPool[Any]) -> None:
    """Two statements at the same time, on two connections, in tasks of its own."""

    async def ask_one() -> None:
        async with pool.connection() as connection:
            await connection.execute(sql)

    await asyncio.gather(ask_one(), ask_one())


@agent
async def ask_every_way(sql: str, db: psycopg.AsyncConnection[Any]) -> int:
    """The statement, which takes a while, in each of the ways that there are: six times."""
    query = sql.encode()
    async with db.pipeline():
        await db.execute(query)
    async with db.transaction():
        await db.execute(query)
    async with db.cursor("named") as named:
        await named.execute(query)
        await named.fetchall()
    async with db.cursor() as cursor, cursor.copy(b"COPY (" + query + b") TO STDOUT") as copy:
        async for _ in copy:
            pass
    async with db.cursor() as cursor:
        async for _ in cursor.stream(query):
            pass
        await cursor.executemany(query, [()])
    return 6


@agent
def ask_every_way_sync(sql: str, db: psycopg.Connection[Any]) -> int:
    query = sql.encode()
    with db.pipeline():
        db.execute(query)
    with db.transaction():
        db.execute(query)
    with db.cursor("named") as named:
        named.execute(query)
        named.fetchall()
    with db.cursor() as cursor, cursor.copy(b"COPY (" + query + b") TO STDOUT") as copy:
        for _ in copy:
            pass
    with db.cursor() as cursor:
        for _ in cursor.stream(query):
            pass
        cursor.executemany(query, [()])
    return 6
