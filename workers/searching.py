"""Where a worker looks for modules: Penstock and the standard library, then the working directory, then the rest.

Python itself looks into the working directory first. There a clone of Penstock, or an ``email.py`` that nobody uses,
would be what the worker's own program imports, and end every worker. So the interpreters of forkservers and listings
are started with ``-P``, which leaves the working directory out, and it is put in here, once the program is imported.
What is imported stays what it is, the packages of Penstock and the libraries that it needs among it.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

PROGRAM: Final = "penstock"


def arrange() -> None:
    """Put ``sys.path`` in order, with the working directory as it is now. May be called again."""
    sys.path[:] = ordered(sys.path, working_directory(), standard_library())


def working_directory() -> str:
    """Empty if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def standard_library() -> frozenset[str]:
    """The entries of ``sys.path`` that are the standard library's."""
    homes = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    beside = {os.path.join(os.path.dirname(home), archive) for home in homes}
    return frozenset({*homes, *beside, *(os.path.join(home, "lib-dynload") for home in homes)})


def ordered(path: Sequence[str], directory: str, standard: Collection[str]) -> list[str]:
    """The entries of a search path in our order, each once. ``directory``: the working directory, empty for none."""
    first = [each for each in path if each in standard]
    rest = [each for each in path if each not in standard and each not in ("", directory)]
    return list(dict.fromkeys([*first, *([directory] if directory else []), *rest]))


def shadowed(name: str, module: ModuleType | None) -> str:
    """The file or folder in the working directory that has this module's name and was not taken for it; empty if there
    is none. ``module``: what was imported, None if nothing could be.
    """
    directory = working_directory()
    if not directory:
        return ""
    found = Path(directory, *name.split("."))
    candidates = (found / "__init__.py", found.with_name(f"{found.name}.py"))
    ours = next((each for each in candidates if each.is_file()), None)
    if ours is None:
        return ""
    if module is None:
        # Its package is ours, and the module failed by itself; or it is another's, which has no such module.
        top = sys.modules.get(name.partition(".")[0])
        return "" if top is None or _is_below(_origin(top), directory) else str(ours)
    taken = _origin(module)
    return "" if taken and os.path.exists(taken) and ours.samefile(taken) else str(ours)


def _origin(module: ModuleType) -> str:
    """The file of a module, or the folder of a namespace; empty for what is built into the interpreter."""
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")


def _is_below(path: str, directory: str) -> bool:
    return Path(directory).resolve() in Path(path).resolve().parents
