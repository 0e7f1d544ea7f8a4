"""Where workers look for the code: the working directory as it was given, followed again at each reload.

A deployment often is a symbolic link, ``current`` to ``releases/1`` today and to ``releases/2`` tomorrow. A process
that was started in ``current`` is in ``releases/1`` ever after; what it was given is in ``$PWD``, where shells leave
it. The link is followed once for each reload, so that a worker that comes back between two of them has the code of the
others, and not that of tomorrow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_DELETED: Final = " (deleted)"


@dataclass(frozen=True, slots=True)
class Workplace:
    """What there was at one moment."""

    directory: str
    path: tuple[str, ...]
    """Where modules are looked for (``sys.path``)."""


class Origin:
    """Where the daemon was started."""

    def __init__(self, environ: Mapping[str, str], path: Sequence[str]) -> None:
        """``path``: the interpreter's ``sys.path``, whose entries for the working directory go along with that."""
        started_in = working_directory()
        self.directory = given_directory(environ)
        listed = [each for each in environ.get("PYTHONPATH", "").split(os.pathsep) if each]
        relative = {
            os.path.normpath(os.path.join(started_in, each)): each for each in listed if not os.path.isabs(each)
        }
        if started_in not in listed:
            relative.setdefault(started_in, os.curdir)
        self._path = [(entry, relative.get(entry) if entry else os.curdir) for entry in path]

    def follow(self) -> Workplace:
        """Where that is now."""
        real = os.path.realpath(self.directory)
        entries = (
            entry if relative is None else os.path.normpath(os.path.join(real, relative))
            for entry, relative in self._path
        )
        return Workplace(real, tuple(entries))


def given_directory(environ: Mapping[str, str]) -> str:
    """The working directory as it was named to whoever started this process, if that is known, else as it is."""
    named = environ.get("PWD", "")
    try:
        if os.path.isabs(named) and os.path.samefile(named, os.curdir):
            return named
    except OSError:
        pass  # it names nothing any more, or nothing that this user may see
    return working_directory()


def working_directory() -> str:
    """Its path, also of one that was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.readlink("/proc/self/cwd").removesuffix(_DELETED)
