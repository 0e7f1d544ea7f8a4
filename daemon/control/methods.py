"""The namespace ``supervisor``: what clients can ask and do, with supervisord's names, answers and faults.

A pool is a group, a worker a process: ``default:0``. Differences to supervisord are few, and each is one that a client
would wish for: a stop waits for the calls that run; a second stop waits with the first; a start during a stop waits for
its end; ``reload`` replaces the workers without a gap, and fails with the reason when the new code or configuration is
broken, while the old serves on; clearing works for stopped workers.

Here are the methods that concern the daemon and its groups; those of single processes and those of logs have modules of
their own, and ``api`` puts them together.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final, Protocol

from supervisor.xmlrpc import Faults, RPCError

from ..config.settings import ConfigError
from ..fleet.fleet import Fleet
from ..host.logfiles import LogFile
from ..host.workerlogs import WorkerLogs
from . import views
from .groups import AlreadyActiveError, BusyError, Groups, NoSuchGroupError, StillRunningError
from .log_methods import LogMethods
from .process_methods import ProcessMethods
from .processes import Processes
from .rpc import printable, published

log = logging.getLogger("penstock.control")

API_VERSION: Final = "3.0"
IDENTIFICATION: Final = "penstock"


class Governor(Protocol):
    """What the methods ask of the daemon as a whole."""

    @property
    def stopping(self) -> bool:
        """It accepts no more commands."""

    def shut_down(self) -> None:
        """Begin to drain and end."""

    async def reload(self) -> str:
        """Take new code and configuration. Empty once the new is proven; else why it was not taken."""


class DaemonMethods:
    """The methods that concern the daemon as a whole, and its groups."""

    # ruff: noqa: N802, N815 - the methods have the names that clients know.

    def __init__(self, governor: Governor, groups: Groups, version: str) -> None:
        self._governor = governor
        self._groups = groups
        self._version = version

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
        """Read the configuration again, and tell which groups would change.

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
        """Remove a group whose processes are stopped.

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

    @published
    def sendRemoteCommEvent(self, kind: str, data: str) -> bool:
        """Take an event for event listeners, of which there are none here.

        @param string kind     The event's type.
        @param string data     Its data.
        @return boolean result  Always true unless error.
        """
        log.debug("an event of type %r has no listener", kind)
        return True


def api(
    governor: Governor, fleet: Fleet, groups: Groups, worker_output: WorkerLogs, main_log: LogFile, version: str
) -> tuple[object, ...]:
    """Who implements the methods of the namespace, together all of them."""
    processes = Processes(fleet)
    return (
        DaemonMethods(governor, groups, version),
        ProcessMethods(fleet, processes, groups, worker_output),
        LogMethods(processes, worker_output, main_log),
    )
