"""The methods that concern processes: start, stop, signal, and what there is to tell of them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from typing import Any, Final

from supervisor.states import RUNNING_STATES, SIGNALLABLE_STATES
from supervisor.xmlrpc import Faults, RPCError

from ..core.lifecycle import SeatState
from ..fleet.fleet import Fleet
from ..fleet.views import WorkerView
from ..host.workerlogs import WorkerLogs
from . import views
from .groups import Groups
from .processes import Processes, on_each
from .rpc import published

_RUNNING: Final = frozenset(seat for seat, code in views.CODES.items() if code in RUNNING_STATES)
_SIGNALLABLE: Final = frozenset(seat for seat, code in views.CODES.items() if code in SIGNALLABLE_STATES)


class ProcessMethods:
    """The methods over the fleet's workers."""

    # ruff: noqa: N802 - the methods have the names that clients know.

    def __init__(self, fleet: Fleet, processes: Processes, groups: Groups, worker_output: WorkerLogs) -> None:
        self._fleet = fleet
        self._processes = processes
        self._groups = groups
        self._worker_output = worker_output

    # Start and stop

    @published
    async def startProcess(self, name: str, wait: bool | int = True) -> Any:
        """Start a process.

        @param string name     The process as group:name, or group:* for all of a group.
        @param boolean wait    Wait until it is ready.
        @return boolean result  Always true unless error.
        """
        group, worker = self._processes.find(name)
        if worker is None:
            return await self.startProcessGroup(group, wait)
        if worker.state in _RUNNING:
            raise RPCError(Faults.ALREADY_STARTED, name)
        if worker.state is SeatState.STOPPING and not wait:
            self._fleet.start_when_stopped(worker.name)
            return True
        if await self._while(worker, {SeatState.STOPPING}) is None:
            raise RPCError(Faults.BAD_NAME, name)
        self._fleet.start_worker(worker.name)
        if not wait:
            return True
        state = await self._while(worker, {SeatState.STARTING})
        if state in (SeatState.BACKOFF, SeatState.FATAL):
            raise RPCError(Faults.SPAWN_ERROR, name)
        if state is not SeatState.RUNNING:
            raise RPCError(Faults.ABNORMAL_TERMINATION, name)
        return True

    @published
    async def startProcessGroup(self, name: str, wait: bool | int = True) -> list[Any]:
        """Start all processes of a group.

        @param string name    The group.
        @param boolean wait   Wait until they are ready.
        @return array result  A status struct for each that was not running.
        """
        return await self._start(self._processes.group(name), wait)

    @published
    async def startAllProcesses(self, wait: bool | int = True) -> list[Any]:
        """Start all processes.

        @param boolean wait   Wait until they are ready.
        @return array result  A status struct for each that was not running.
        """
        return await self._start(self._processes.all(), wait)

    async def _start(self, workers: Iterable[WorkerView], wait: bool | int) -> list[Any]:
        idle = [worker for worker in workers if worker.state not in _RUNNING]
        return await on_each(idle, lambda worker: self.startProcess(worker.name, wait))

    @published
    async def stopProcess(self, name: str, wait: bool | int = True) -> Any:
        """Stop a process: it gets no more calls, ends those it has, and stays stopped.

        @param string name     The process as group:name, or group:* for all of a group.
        @param boolean wait    Wait until it has stopped.
        @return boolean result  Always true unless error.
        """
        group, worker = self._processes.find(name)
        if worker is None:
            return await self.stopProcessGroup(group, wait)
        if worker.state is not SeatState.STOPPING:
            if worker.state not in _RUNNING:
                raise RPCError(Faults.NOT_RUNNING, name)
            self._fleet.stop_worker(worker.name)
        elif not wait:
            raise RPCError(Faults.NOT_RUNNING, name)
        if wait:
            await self._while(worker, {SeatState.STOPPING})
        return True

    @published
    async def stopProcessGroup(self, name: str, wait: bool | int = True) -> list[Any]:
        """Stop all processes of a group.

        @param string name    The group.
        @param boolean wait   Wait until they have stopped.
        @return array result  A status struct for each that was running.
        """
        return await self._stop(self._processes.group(name), wait)

    @published
    async def stopAllProcesses(self, wait: bool | int = True) -> list[Any]:
        """Stop all processes.

        @param boolean wait   Wait until they have stopped.
        @return array result  A status struct for each that was running.
        """
        return await self._stop(self._processes.all(), wait)

    async def _stop(self, workers: Iterable[WorkerView], wait: bool | int) -> list[Any]:
        running = [
            worker for worker in workers if worker.state in _RUNNING or (wait and worker.state is SeatState.STOPPING)
        ]
        for pool in {worker.pool for worker in running}:
            self._fleet.close_pool(pool)
        return await on_each(running, lambda worker: self.stopProcess(worker.name, wait))

    async def _while(self, worker: WorkerView, states: set[SeatState]) -> SeatState | None:
        """Wait while it is in one of these states; its state after that, or None if it is no more."""
        while (view := self._fleet.worker(worker.name)) is not None and view.state in states:
            await self._fleet.changed(worker.name)
        return None if view is None else view.state

    # Signals

    @published
    async def signalProcess(self, name: str, sig: str | int) -> Any:
        """Send a signal to a process.

        @param string name     The process as group:name, or group:* for all of a group.
        @param string sig      Its name, such as HUP, or its number.
        @return boolean result  Always true unless error.
        """
        group, worker = self._processes.find(name)
        if worker is None:
            return await self.signalProcessGroup(group, sig)
        number = signal_number(sig)
        if worker.state not in _SIGNALLABLE or not self._fleet.signal_worker(worker.name, number):
            raise RPCError(Faults.NOT_RUNNING, name)
        return True

    @published
    async def signalProcessGroup(self, name: str, sig: str | int) -> list[Any]:
        """Send a signal to all processes of a group.

        @param string name    The group.
        @param string sig     Its name, such as HUP, or its number.
        @return array result  A status struct for each that could be signalled.
        """
        return await self._signal(self._processes.group(name), sig)

    @published
    async def signalAllProcesses(self, sig: str | int) -> list[Any]:
        """Send a signal to all processes.

        @param string sig     Its name, such as HUP, or its number.
        @return array result  A status struct for each that could be signalled.
        """
        return await self._signal(self._processes.all(), sig)

    async def _signal(self, workers: Iterable[WorkerView], number: str | int) -> list[Any]:
        able = [worker for worker in workers if worker.state in _SIGNALLABLE]
        return await on_each(able, lambda worker: self.signalProcess(worker.name, number))

    # Views

    @published
    def getProcessInfo(self, name: str) -> dict[str, Any]:
        """Tell everything about a process.

        @param string name    The process as group:name.
        @return struct result  Its state, times, pid and logs.
        """
        worker = self._processes.one(name)
        return views.process_info(worker, self._worker_output.log(worker.name), time.time())

    @published
    def getAllProcessInfo(self) -> list[Any]:
        """Tell everything about all processes.

        @return array result  A struct for each.
        """
        now = time.time()
        workers = sorted(self._processes.all(), key=lambda worker: (worker.pool, views.process_name(worker)))
        return [views.process_info(worker, self._worker_output.log(worker.name), now) for worker in workers]

    @published
    def getAllConfigInfo(self) -> list[Any]:
        """Tell what the configuration says of all processes, active or not.

        @return array result  A struct for each.
        """
        config = self._groups.configured
        names = [f"{pool}:{index}" for pool, settings in config.pools.items() for index in range(settings.workers)]
        logs = {name: self._worker_output.log(name) for name in names}
        return views.config_infos(config, self._groups.active, logs)

    # What workers do not have

    @published
    def sendProcessStdin(self, name: str, chars: str) -> bool:
        """Fail, since workers have no standard input: they get their work from the daemon.

        @param string name     The process as group:name.
        @param string chars    The text.
        @return boolean result  Never.
        """
        worker = self._processes.one(name)
        if worker.state not in (SeatState.STARTING, SeatState.RUNNING):
            raise RPCError(Faults.NOT_RUNNING, name)
        raise RPCError(Faults.NO_FILE, name)


def signal_number(given: str | int) -> int:
    """The number of a signal by its name, with or without SIG in any case, or by its number (``RPCError``)."""
    text = str(given).strip().upper()
    number = int(text) if text.isdecimal() and len(text) < 4 else 0
    if not number:
        name = text if text.startswith("SIG") else f"SIG{text}"
        number = int(signal.Signals.__members__.get(name, 0))
    if number not in signal.valid_signals():
        raise RPCError(Faults.BAD_SIGNAL, given)
    return number
