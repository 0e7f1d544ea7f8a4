"""How much of the processors a container leaves us: the CPU quota of our control group and of those that it is in.

A quota is a part of each period that the processes of a group may run together, on whichever processors:
``cpu.max`` of cgroup v2, ``cpu.cfs_quota_us`` over ``cpu.cfs_period_us`` of v1. Neither the number of processors nor
the affinity shows it. A group cannot have more than any of those above it.

Which group is ours, and where its files are, say ``/proc/self/cgroup`` and ``/proc/self/mountinfo``, in that order: the
paths of the first begin at the roots of the hierarchies, and a mount may begin deeper.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

AGAIN: Final = 1.0
"""Seconds until a quota is read again: it may be changed while we run."""

_OCTAL: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Level:
    """A control group: our own, or one above it."""

    directory: Path
    unified: bool
    """It is of cgroup v2."""

    def quota(self) -> float:
        """Processors; infinite for no limit, and where nothing can be read."""
        try:
            if self.unified:
                given, period = (self.directory / "cpu.max").read_text().split()
            else:
                given = (self.directory / "cpu.cfs_quota_us").read_text()
                period = (self.directory / "cpu.cfs_period_us").read_text()
            found = int(given) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            return math.inf  # "max", or a group without the controller, as the topmost is
        return found if found > 0.0 else math.inf

    def used(self) -> float | None:
        """CPU seconds of its processes so far; None where it is not told."""
        try:
            if not self.unified:
                return int((self.directory / "cpuacct.usage").read_text()) / 1e9
            words = (self.directory / "cpu.stat").read_text().split()
            return int(words[words.index("usage_usec") + 1]) / 1e6
        except (OSError, ValueError, IndexError):
            return None


class Groups:
    """Our control group and those above it. What they say is read again once a second."""

    def __init__(self, root: Path = Path("/")) -> None:
        """``root``: where ``proc/self`` and the mounts are."""
        self.levels = list(dict.fromkeys(_levels(root)))
        self._read_at = -math.inf
        self._quota = math.inf
        self._tightest: Level | None = None

    def quota(self) -> float:
        """Processors that we may use, together with whatever else is in the group; infinite for no limit."""
        if self.levels and time.monotonic() - self._read_at > AGAIN:
            self._read_at = time.monotonic()
            self._quota, at = min((level.quota(), index) for index, level in enumerate(self.levels))
            self._tightest = None if math.isinf(self._quota) else self.levels[at]
        return self._quota

    def used(self) -> float | None:
        """CPU seconds of the group whose quota it is; None where there is none, or it is not told."""
        self.quota()
        return None if self._tightest is None else self._tightest.used()


@cache
def own() -> Groups:
    """This process's."""
    return Groups()


def processors() -> float:
    """How many this process may use: whole ones by its affinity, and no more than the quota of its control group."""
    return min(float(len(os.sched_getaffinity(0))), own().quota())


def _levels(root: Path) -> Iterator[Level]:
    try:
        memberships = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for membership in memberships:
        _, _, named = membership.partition(":")
        controllers, _, path = named.partition(":")
        unified = not controllers
        if not unified and "cpu" not in controllers.split(","):
            continue
        for top, within in _mounts(mounts, unified):
            mounted = root / top.lstrip("/")
            directory = mounted / _relative(path, within)
            yield from (
                Level(each, unified) for each in (directory, *directory.parents) if each.is_relative_to(mounted)
            )


def _mounts(lines: list[str], unified: bool) -> Iterator[tuple[str, str]]:
    """Where the hierarchy is mounted, and the group that is the root there."""
    for line in lines:
        place, _, kind = line.partition(" - ")
        if not kind:
            continue
        within, top = place.split()[3:5]
        filesystem, *_, options = kind.split()
        if filesystem == ("cgroup2" if unified else "cgroup") and (unified or "cpu" in options.split(",")):
            yield _unescaped(top), _unescaped(within)


def _relative(path: str, within: str) -> str:
    """A group's path below the root of a mount; empty where the mount shows only another part of the tree."""
    inside = within.rstrip("/")
    if ".." in path.split("/") or not f"{path}/".startswith(f"{inside}/"):
        return ""
    return path[len(inside) :].strip("/")


def _unescaped(path: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), path)
