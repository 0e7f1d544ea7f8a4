"""Reads the documentation of Python's standard library, and writes it to standard output as JSON lines.

Run by its path in an interpreter of its own (``python -I -S extract.py``): importing the whole standard library would
bloat a worker, and without ``site`` nothing else is found. Only the standard library is at hand here.

The first line is the number of entries; each other one is ``[name, module, kind, signature, doc]``.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import os
import pkgutil
import signal
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

SKIPPED = frozenset(
    {
        # Importing them does something: opens a browser, prints, starts a program, or is the program itself.
        *("antigravity", "this", "__main__", "idlelib", "turtledemo"),
        # Not for use: tests, installers, and what is on its way out.
        *("test", "tests", "ensurepip", "lib2to3", "distutils"),
        # A module for each encoding, all alike.
        "encodings",
        # Documented under another name: os, os.path.
        *("posix", "nt", "ntpath", "genericpath"),
    }
)

NAMES = {"posixpath": "os.path"}
"""Modules that are known by another name than their own."""

MAX_DOC = 20_000
"""Characters of a docstring that are kept."""

Entry = tuple[str, str, str, str, str]


def main() -> None:
    """Read everything, then write everything."""
    _end_with_parent()
    warnings.simplefilter("ignore")
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # A module that prints when it is imported must not print into the data.
    os.dup2(2, 1)
    found = list(entries())
    output.write(f"{len(found)}\n")
    for entry in found:
        output.write(json.dumps(entry) + "\n")
    output.close()
    # Not by way of the exit hooks of every module of the standard library.
    os._exit(0)


def _end_with_parent() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def entries() -> Iterator[Entry]:
    """Every public module, class, function and method of which there is something to say, each once."""
    seen: set[str] = set()
    for module in modules():
        for entry in _module_entries(module):
            told = entry[4] or not entry[3].endswith("(...)")
            if told and entry[0] not in seen:
                seen.add(entry[0])
                yield entry


def modules() -> Iterator[ModuleType]:
    """The public modules of the standard library that this machine can import."""
    for name in sorted(sys.stdlib_module_names):
        if not name.startswith("_") and name not in SKIPPED:
            yield from _import(name)


def _import(name: str) -> Iterator[ModuleType]:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit):
        # Not built on this machine (tkinter, say), or not made for it (msvcrt).
        return
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if not found.name.startswith("_") and found.name not in SKIPPED:
            yield from _import(f"{name}.{found.name}")


def _module_entries(module: ModuleType) -> Iterator[Entry]:
    home = NAMES.get(module.__name__, module.__name__)
    yield home, home, "module", "", _doc(module)
    for name, value in _public(module):
        if inspect.isclass(value):
            yield f"{home}.{name}", home, "class", _signature(name, value), _doc(value)
            yield from _methods(home, name, value)
        elif inspect.isroutine(value):
            yield f"{home}.{name}", home, "function", _signature(name, value), _doc(value)


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The names that the module offers, without what it only imported for itself."""
    offered = getattr(module, "__all__", None)
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or inspect.ismodule(value):
            continue
        home = getattr(value, "__module__", None) or ""
        # What a C module with an underscore defines is the public module's: _io, _socket.
        own = home.lstrip("_") == module.__name__.lstrip("_") or module.__name__ == "builtins"
        if own if offered is None else name in offered:
            yield name, value


def _methods(home: str, owner: str, value: type) -> Iterator[Entry]:
    members: dict[str, Any] = {}
    for each in reversed(value.__mro__):
        if each is value or each.__module__.startswith("_"):
            members.update(vars(each))
    for name, member in sorted(members.items()):
        function = inspect.unwrap(getattr(member, "__func__", member)) if not isinstance(member, property) else None
        if not name.startswith("_") and inspect.isroutine(function):
            described = getattr(value, name, member)
            yield f"{home}.{owner}.{name}", home, "method", _signature(f"{owner}.{name}", function), _doc(described)


def _doc(value: Any) -> str:
    """The docstring, without a class's that is only its parent's."""
    if inspect.isclass(value) and not vars(value).get("__doc__"):
        return ""
    try:
        return (inspect.getdoc(value) or "")[:MAX_DOC].replace("\x00", "")
    except Exception:
        # Descriptors of the strangest kind have docstrings that raise.
        return ""


def _signature(name: str, value: Any) -> str:
    try:
        return f"{name}{inspect.signature(value)}"[:500]
    except Exception:
        # Not every builtin has one, and a default's repr may raise.
        return f"{name}(...)"


if __name__ == "__main__":
    main()
