"""Workers and their configuration as supervisord's structs: every field there, none of them null."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from typing import Any, Final

from supervisor.states import ProcessStates, SupervisorStates

from ..config.settings import Config
from ..core.lifecycle import SeatState
from ..fleet.views import WorkerView
from ..host.workerlogs import WorkerLog
from ..host.workplace import working_directory
from .rpc import capped, printable

CODES: Final[dict[SeatState, int]] = {seat: int(getattr(ProcessStates, seat.value)) for seat in SeatState}
TOO_QUICKLY: Final = "Exited too quickly (process log may have details)"
PRIORITY: Final = 999
"""supervisord's default; Penstock starts and stops everything at once."""


def daemon_state(stopping: bool) -> dict[str, Any]:
    """The daemon's own state."""
    code = SupervisorStates.SHUTDOWN if stopping else SupervisorStates.RUNNING
    return {"statecode": code, "statename": "SHUTDOWN" if stopping else "RUNNING"}


def process_name(worker: WorkerView) -> str:
    """The name within its group."""
    return str(worker.index)


def process_info(worker: WorkerView, log: WorkerLog, now: float) -> dict[str, Any]:
    """A worker. ``now``: unix seconds."""
    return {
        "name": process_name(worker),
        "group": worker.pool,
        "start": capped(worker.started),
        "stop": capped(worker.ended),
        "now": capped(now),
        "state": CODES[worker.state],
        "statename": worker.state.value,
        "spawnerr": _spawn_error(worker),
        "exitstatus": _exit_status(worker),
        "logfile": str(log.output.path),
        "stdout_logfile": str(log.output.path),
        "stderr_logfile": str(log.error.path),
        "pid": worker.pid,
        "description": _description(worker, now),
    }


def _spawn_error(worker: WorkerView) -> str:
    if worker.state in (SeatState.BACKOFF, SeatState.FATAL):
        return printable(worker.reason or TOO_QUICKLY)
    return ""


def _exit_status(worker: WorkerView) -> int:
    """As supervisord has it: 0 while it runs or when it could not be started, -1 after a signal."""
    if worker.state is not SeatState.STOPPED or worker.status is None:
        return 0
    return max(-1, worker.status)


def _description(worker: WorkerView, now: float) -> str:
    if worker.state is SeatState.RUNNING:
        return f"pid {worker.pid}, uptime {timedelta(seconds=capped(now - worker.started))}"
    if worker.state in (SeatState.BACKOFF, SeatState.FATAL):
        return _spawn_error(worker)
    if worker.state is SeatState.STOPPED:
        return time.strftime("%b %d %I:%M %p", time.localtime(worker.ended)) if worker.ended else "Not started"
    return ""


def config_infos(config: Config, active: frozenset[str], logs: dict[str, WorkerLog]) -> list[dict[str, Any]]:
    """Every worker that the configuration has, whether it is active or not."""
    infos = [
        _config_info(config, pool, index, pool in active, logs[f"{pool}:{index}"])
        for pool, settings in config.pools.items()
        for index in range(settings.workers)
    ]
    return sorted(infos, key=lambda info: (info["name"], info["group"]))


def _config_info(config: Config, pool: str, index: int, in_use: bool, log: WorkerLog) -> dict[str, Any]:
    info: dict[str, Any] = {
        "name": str(index),
        "group": pool,
        "inuse": in_use,
        "autostart": True,
        "command": f"{sys.executable} -m penstock.workers",
        "directory": working_directory(),
        "uid": os.getuid(),
        "serverurl": f"unix://{config.control.socket}",
        "exitcodes": [0],
        "group_prio": PRIORITY,
        "process_prio": PRIORITY,
        "killasgroup": False,
        "redirect_stderr": False,
        "startretries": capped(config.supervision.start_retries),
        "startsecs": capped(config.supervision.start_seconds),
        "stopsignal": int(signal.SIGTERM),
        "stopwaitsecs": capped(config.supervision.stop_timeout),
    }
    for channel, file in (("stdout", log.output), ("stderr", log.error)):
        info[f"{channel}_logfile"] = str(file.path)
        info[f"{channel}_logfile_backups"] = file.kept
        info[f"{channel}_logfile_maxbytes"] = capped(file.limit)
        info[f"{channel}_capture_maxbytes"] = 0
        info[f"{channel}_events_enabled"] = False
        info[f"{channel}_syslog"] = False
    return info
