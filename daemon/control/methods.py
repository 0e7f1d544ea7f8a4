"""The namespace ``supervisor``: what clients can ask and do, with supervisord's names, answers and faults.

A pool is a group, a worker a process: ``default:0``. Differences to supervisord are few, and each is one that a client
would wish for: a stop waits for the calls that run; a second stop waits with the first; a start during a stop waits for
its end; ``reload`` replaces the workers without a gap, and fails with the reason when the new code or configuration is
broken, while the old serves on; clearing works for stopped workers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

from supervisor.states import RUNNING_STATES, SIGNALLABLE_STATES
from supervisor.xmlrpc import Faults, RPCError

from ..backends.local.output import Captures
from ..config.settings import ConfigError
from ..core.lifecycle import SeatState
from ..fleet.fleet import Fleet
from ..fleet.views import WorkerView
from ..host.logfiles import BadRangeError, LogFile, NoLogError
from . import views
from .groups import AlreadyActiveError, BusyError, Groups, NoSuchGroupError, StillRunningError
from .rpc import LARGEST, printable, published

log = logging.getLogger("penstock.control")

API_VERSION: Final = "3.0"
IDENTIFICATION: Final = "penstock"

_RUNNING: Final = frozenset(seat for seat, code in views.CODES.items() if code in RUNNING_STATES)
_SIGNALLABLE: Final = frozenset(seat for seat, code in views.CODES.items() if code in SIGNALLABLE_STATES)

Work = Callable[[WorkerView], Coroutine[Any, Any, object]]


class Governor(Protocol):
    """What the methods ask of the daemon as a whole."""

    @property
    def stopping(self) -> bool:
        """It takes no more orders."""

    def shut_down(self) -> None:
        """Begin to drain and end."""

    async def reload(self) -> str:
        """Take new code and configuration. Empty once the new is proven; else why it was not taken."""


class Supervisor:
    """The methods, over the fleet and its logs."""

    # ruff: noqa: N802, N815 - the methods have the names that clients know.

    def __init__(
        self, governor: Governor, fleet: Fleet, groups: Groups, captures: Captures, main_log: LogFile, version: str
    ) -> None:
        self._governor = governor
        self._fleet = fleet
        self._groups = groups
        self._captures = captures
        self._main_log = main_log
        self._version = version

    # The daemon

    @published
    def getAPIVersion(self) -> str:
        """Tell the version of this API.

        @return string version  The version.
        """
        return API_VERSION

    getVersion = getAPIVersion

    @published
    def getSupervisorVersion(self) -> str:
        """Tell the version of Penstock.

        @return string version  The version.
        """
        return self._version

    @published
    def getIdentification(self) -> str:
        """Tell what the daemon calls itself.

        @return string identifier  The name.
        """
        return IDENTIFICATION

    @published
    def getState(self) -> dict[str, Any]:
        """Tell the daemon's state.

        @return struct state  With the keys int statecode and string statename.
        """
        return views.daemon_state(self._governor.stopping)

    @published
    def getPID(self) -> int:
        """Tell the daemon's process id.

        @return int pid  The id.
        """
        return os.getpid()

    @published
    def readLog(self, offset: int, length: int) -> str:
        """Read from the daemon's log.

        @param int offset     Where to begin; negative: so many bytes before the end.
        @param int length     How many bytes; 0: all that follow.
        @return string result  The text.
        """
        return _read(self._main_log, offset, length)

    readMainLog = readLog

    @published
    def clearLog(self) -> bool:
        """Clear the daemon's log.

        @return boolean result  Always true unless error.
        """
        if not self._main_log.path.exists():
            raise RPCError(Faults.NO_FILE)
        try:
            self._main_log.clear()
        except OSError as error:
            raise RPCError(Faults.FAILED) from error
        return True

    @published
    def shutdown(self) -> bool:
        """Drain, stop all workers, and end.

        @return boolean result  Always true unless error.
        """
        self._governor.shut_down()
        return True

    @published
    async def restart(self) -> bool:
        """Replace all workers by ones with the code and the configuration as they are now, without a gap.

        Answers when the new ones have proven to work, and fails when they have not.

        @return boolean result  Always true unless error.
        """
        why = await self._governor.reload()
        if why:
            raise RPCError(Faults.FAILED, printable(why))
        return True

    @published
    def reloadConfig(self) -> list[Any]:
        """Read the configuration anew, and tell which groups would change.

        @return array result  [[added, changed, removed]], each an array of names.
        """
        try:
            changes = self._groups.reread()
        except ConfigError as error:
            raise RPCError(Faults.CANT_REREAD, printable(str(error))) from error
        return [[changes.added, changes.changed, changes.removed]]

    @published
    def addProcessGroup(self, name: str) -> bool:
        """Start a group as the configuration has it.

        @param string name     The group.
        @return boolean result  Always true unless error.
        """
        try:
            self._groups.add(name)
        except NoSuchGroupError:
            raise RPCError(Faults.BAD_NAME, name) from None
        except AlreadyActiveError:
            raise RPCError(Faults.ALREADY_ADDED, name) from None
        except BusyError:
            raise RPCError(Faults.FAILED, "a reload is in progress") from None
        return True

    @published
    def removeProcessGroup(self, name: str) -> bool:
        """Give up a group whose processes are stopped.

        @param string name     The group.
        @return boolean result  Always true unless error.
        """
        try:
            self._groups.remove(name)
        except NoSuchGroupError:
            raise RPCError(Faults.BAD_NAME, name) from None
        except StillRunningError:
            raise RPCError(Faults.STILL_RUNNING, name) from None
        except BusyError:
            raise RPCError(Faults.FAILED, "a reload is in progress") from None
        return True

    # Start and stop

    @published
    async def startProcess(self, name: str, wait: bool | int = True) -> Any:
        """Start a process.

        @param string name     The process as group:name, or group:* for all of a group.
        @param boolean wait    Wait until it is ready.
        @return boolean result  Always true unless error.
        """
        group, place = self._find(name)
        if place is None:
            return await self.startProcessGroup(group, wait)
        if place.state in _RUNNING:
            raise RPCError(Faults.ALREADY_STARTED, name)
        if place.state is SeatState.STOPPING and not wait:
            self._fleet.start_when_stopped(place.name)
            return True
        if await self._while(place, {SeatState.STOPPING}) is None:
            raise RPCError(Faults.BAD_NAME, name)
        self._fleet.start_worker(place.name)
        if not wait:
            return True
        state = await self._while(place, {SeatState.STARTING})
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
        return await self._start(self._group(name), wait)

    @published
    async def startAllProcesses(self, wait: bool | int = True) -> list[Any]:
        """Start all processes.

        @param boolean wait   Wait until they are ready.
        @return array result  A status struct for each that was not running.
        """
        return await self._start(self._fleet.workers(), wait)

    async def _start(self, places: Iterable[WorkerView], wait: bool | int) -> list[Any]:
        idle = [place for place in places if place.state not in _RUNNING]
        return await self._each(idle, lambda place: self.startProcess(place.name, wait))

    @published
    async def stopProcess(self, name: str, wait: bool | int = True) -> Any:
        """Stop a process: it gets no more calls, ends those it has, and stays stopped.

        @param string name     The process as group:name, or group:* for all of a group.
        @param boolean wait    Wait until it has stopped.
        @return boolean result  Always true unless error.
        """
        group, place = self._find(name)
        if place is None:
            return await self.stopProcessGroup(group, wait)
        if place.state is not SeatState.STOPPING:
            if place.state not in _RUNNING:
                raise RPCError(Faults.NOT_RUNNING, name)
            self._fleet.stop_worker(place.name)
        elif not wait:
            raise RPCError(Faults.NOT_RUNNING, name)
        if wait:
            await self._while(place, {SeatState.STOPPING})
        return True

    @published
    async def stopProcessGroup(self, name: str, wait: bool | int = True) -> list[Any]:
        """Stop all processes of a group.

        @param string name    The group.
        @param boolean wait   Wait until they have stopped.
        @return array result  A status struct for each that was running.
        """
        return await self._stop(self._group(name), wait)

    @published
    async def stopAllProcesses(self, wait: bool | int = True) -> list[Any]:
        """Stop all processes.

        @param boolean wait   Wait until they have stopped.
        @return array result  A status struct for each that was running.
        """
        return await self._stop(self._fleet.workers(), wait)

    async def _stop(self, places: Iterable[WorkerView], wait: bool | int) -> list[Any]:
        running = [place for place in places if place.state in _RUNNING or (wait and place.state is SeatState.STOPPING)]
        for pool in {place.pool for place in running}:
            self._fleet.close_pool(pool)
        return await self._each(running, lambda place: self.stopProcess(place.name, wait))

    async def _while(self, place: WorkerView, states: set[SeatState]) -> SeatState | None:
        """Wait while it is in one of these states; its state after that, or None if it is no more."""
        while (view := self._fleet.worker(place.name)) is not None and view.state in states:
            await self._fleet.changed(place.name)
        return None if view is None else view.state

    async def _each(self, places: Iterable[WorkerView], work: Work) -> list[Any]:
        """Do it with all at once; the results in the order in which they were done."""
        results: list[Any] = []

        async def one(place: WorkerView) -> None:
            code, text = Faults.SUCCESS, "OK"
            try:
                await work(place)
            except RPCError as error:
                code, text = error.code, printable(error.text)
            results.append(
                {"name": views.process_name(place), "group": place.pool, "status": code, "description": text}
            )

        await asyncio.gather(*(one(place) for place in places))
        return results

    # Signals

    @published
    async def signalProcess(self, name: str, sig: str | int) -> Any:
        """Send a signal to a process.

        @param string name     The process as group:name, or group:* for all of a group.
        @param string sig      Its name, such as HUP, or its number.
        @return boolean result  Always true unless error.
        """
        group, place = self._find(name)
        if place is None:
            return await self.signalProcessGroup(group, sig)
        number = signal_number(sig)
        if place.state not in _SIGNALLABLE or not self._fleet.signal_worker(place.name, number):
            raise RPCError(Faults.NOT_RUNNING, name)
        return True

    @published
    async def signalProcessGroup(self, name: str, sig: str | int) -> list[Any]:
        """Send a signal to all processes of a group.

        @param string name    The group.
        @param string sig     Its name, such as HUP, or its number.
        @return array result  A status struct for each that could be signalled.
        """
        return await self._signal(self._group(name), sig)

    @published
    async def signalAllProcesses(self, sig: str | int) -> list[Any]:
        """Send a signal to all processes.

        @param string sig     Its name, such as HUP, or its number.
        @return array result  A status struct for each that could be signalled.
        """
        return await self._signal(self._fleet.workers(), sig)

    async def _signal(self, places: Iterable[WorkerView], number: str | int) -> list[Any]:
        able = [place for place in places if place.state in _SIGNALLABLE]
        return await self._each(able, lambda place: self.signalProcess(place.name, number))

    # Views

    @published
    def getProcessInfo(self, name: str) -> dict[str, Any]:
        """Tell everything about a process.

        @param string name    The process as group:name.
        @return struct result  Its state, times, pid and logs.
        """
        place = self._one(name)
        return views.process_info(place, self._captures.log(place.name), time.time())

    @published
    def getAllProcessInfo(self) -> list[Any]:
        """Tell everything about all processes.

        @return array result  A struct for each.
        """
        now = time.time()
        places = sorted(self._fleet.workers(), key=lambda place: (place.pool, views.process_name(place)))
        return [views.process_info(place, self._captures.log(place.name), now) for place in places]

    @published
    def getAllConfigInfo(self) -> list[Any]:
        """Tell what the configuration says of all processes, active or not.

        @return array result  A struct for each.
        """
        config = self._groups.configured
        names = [f"{pool}:{index}" for pool, each in config.pools.items() for index in range(each.workers)]
        logs = {name: self._captures.log(name) for name in names}
        return views.config_infos(config, self._groups.active, logs)

    # Logs of processes

    @published
    def readProcessStdoutLog(self, name: str, offset: int, length: int) -> str:
        """Read from what a process has said on its standard output, and its logging.

        @param string name    The process as group:name.
        @param int offset     Where to begin; negative: so many bytes before the end.
        @param int length     How many bytes; 0: all that follow.
        @return string result  The text.
        """
        return _read(self._captures.log(self._one(name).name).output, offset, length)

    readProcessLog = readProcessStdoutLog

    @published
    def readProcessStderrLog(self, name: str, offset: int, length: int) -> str:
        """Read from what a process has said on its standard error, and its logging.

        @param string name    The process as group:name.
        @param int offset     Where to begin; negative: so many bytes before the end.
        @param int length     How many bytes; 0: all that follow.
        @return string result  The text.
        """
        return _read(self._captures.log(self._one(name).name).error, offset, length)

    @published
    def tailProcessStdoutLog(self, name: str, offset: int, length: int) -> list[Any]:
        """Read what is new of what a process has said on its standard output, and of its logging.

        @param string name   The process as group:name.
        @param int offset    How far the caller has read.
        @param int length    How many bytes it takes at most.
        @return array result  [the text, the log's size, whether something was left out].
        """
        return _tail(self._captures.log(self._one(name).name).output, offset, length)

    tailProcessLog = tailProcessStdoutLog

    @published
    def tailProcessStderrLog(self, name: str, offset: int, length: int) -> list[Any]:
        """Read what is new of what a process has said on its standard error, and of its logging.

        @param string name   The process as group:name.
        @param int offset    How far the caller has read.
        @param int length    How many bytes it takes at most.
        @return array result  [the text, the log's size, whether something was left out].
        """
        return _tail(self._captures.log(self._one(name).name).error, offset, length)

    @published
    def clearProcessLogs(self, name: str) -> bool:
        """Clear a process's logs.

        @param string name     The process as group:name.
        @return boolean result  Always true unless error.
        """
        place = self._one(name)
        try:
            for file in self._captures.log(place.name).files:
                file.clear()
        except OSError as error:
            raise RPCError(Faults.FAILED, name) from error
        return True

    clearProcessLog = clearProcessLogs

    @published
    async def clearAllProcessLogs(self) -> list[Any]:
        """Clear the logs of all processes.

        @return array result  A status struct for each.
        """

        async def clear(place: WorkerView) -> None:
            self.clearProcessLogs(place.name)

        return await self._each(self._fleet.workers(), clear)

    # The rest

    @published
    def sendProcessStdin(self, name: str, chars: str) -> bool:
        """Fail, since workers have no standard input: they get their work from the daemon.

        @param string name     The process as group:name.
        @param string chars    The text.
        @return boolean result  Never.
        """
        place = self._one(name)
        if place.state not in (SeatState.STARTING, SeatState.RUNNING):
            raise RPCError(Faults.NOT_RUNNING, name)
        raise RPCError(Faults.NO_FILE, name)

    @published
    def sendRemoteCommEvent(self, kind: str, data: str) -> bool:
        """Take an event for event listeners, of which there are none here.

        @param string kind     The event's type.
        @param string data     Its data.
        @return boolean result  Always true unless error.
        """
        log.debug("an event of type %r has no listener", kind)
        return True

    # Names

    def _find(self, name: str) -> tuple[str, WorkerView | None]:
        """The group, and the process unless all of the group is meant (``RPCError``)."""
        group, colon, process = name.partition(":")
        if not colon:
            process = group
        if not any(place.pool == group for place in self._fleet.workers()):
            raise RPCError(Faults.BAD_NAME, name)
        if colon and process in ("", "*"):
            return group, None
        place = self._fleet.worker(f"{group}:{process}")
        if place is None:
            raise RPCError(Faults.BAD_NAME, name)
        return group, place

    def _one(self, name: str) -> WorkerView:
        place = self._find(name)[1]
        if place is None:
            raise RPCError(Faults.BAD_NAME, name)
        return place

    def _group(self, name: str) -> list[WorkerView]:
        places = [place for place in self._fleet.workers() if place.pool == name]
        if not places:
            raise RPCError(Faults.BAD_NAME, name)
        return places


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


def text_of(data: bytes) -> str:
    """Bytes of a log as text; characters that the bounds have cut are left out."""
    start = 0
    while start < min(3, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    end = len(data)
    for back in range(1, min(3, end - start) + 1):
        byte = data[end - back]
        if byte & 0xC0 == 0xC0:
            # The first byte of a character says how many there should be.
            wanted = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            end -= back if wanted > back else 0
            break
        if byte < 0x80:
            break
    return printable(data[start:end].decode("utf-8", "replace"))


def _read(file: LogFile, offset: int, length: int) -> str:
    try:
        return text_of(file.read(offset, length))
    except NoLogError as error:
        raise RPCError(Faults.NO_FILE, str(error)) from error
    except BadRangeError:
        raise RPCError(Faults.BAD_ARGUMENTS) from None
    except OSError as error:
        raise RPCError(Faults.FAILED, error.strerror) from error


def _tail(file: LogFile, offset: int, length: int) -> list[Any]:
    try:
        data, size, overflow = file.tail(offset, length)
    except OSError:
        return ["", offset, False]
    return [text_of(data), min(size, LARGEST), overflow]
