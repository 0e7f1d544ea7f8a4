"""Loads users' modules by the contents of their sources, and takes the code's fingerprint.

Python takes a module from its ``.pyc`` if that names the source's size and its time of change in whole seconds. After
an edit of the same length within the same second, or with times that a deployment sets, that is the old module. So
modules of the user's are loaded here by the contents of their sources: the ``.pyc`` that are taken and written are
those of PEP 552, which have a hash of the source in them (checked ones, so that every other Python can use them as
well). That costs the reading of each source, and no compilation.

The same reading gives the fingerprint: over the names and contents of all modules that count as the user's. These are
what lies outside of the standard library and of ``site-packages``, and whatever is in the same top-level package as an
agent module. It is taken when the agents' modules are loaded; what is imported later does not count.
"""

from __future__ import annotations

import importlib
import importlib.util
import marshal
import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import blake2b
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, Final

_CHECKED: Final = (0b11).to_bytes(4, "little")
"""Flags of a ``.pyc``: by hash, and to be compared with the source."""
_HEADER: Final = 16
_LIBRARIES: Final = frozenset(os.path.realpath(sysconfig.get_path(each)) for each in ("stdlib", "platstdlib"))
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})

_executed: dict[str, bytes] = {}
"""Module, digest of the source that it was executed from."""
_packages: set[str] = set()
"""Top-level names of the agents' modules."""


class _ContentLoader(SourceFileLoader):
    """Takes a module's code from its source, or from what was compiled from the very same contents."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        _executed[fullname] = blake2b(source, digest_size=16).digest()
        stored = importlib.util.cache_from_source(path)
        head = importlib.util.MAGIC_NUMBER + _CHECKED + importlib.util.source_hash(source)
        try:
            data = self.get_data(stored)
            if data[:_HEADER] == head:
                return _code(data)
        except (OSError, EOFError, ValueError, TypeError):
            pass  # there is none, or it is damaged: it is compiled anew
        code: CodeType = self.source_to_code(source, path)
        if not sys.dont_write_bytecode:
            self._cache_bytecode(path, stored, head + marshal.dumps(code))  # type: ignore[attr-defined] # for subclasses
        return code


def _code(data: bytes) -> CodeType:
    code = marshal.loads(data[_HEADER:])  # noqa: S302 - what Python itself does with it
    if not isinstance(code, CodeType):
        raise TypeError
    return code


class _Finder:
    """Lets all others find a module, and has those of the user's loaded by their contents."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                loader = spec.loader
                if type(loader) is SourceFileLoader and _is_users(name, loader.path):
                    spec.loader = _ContentLoader(loader.name, loader.path)
                return spec
        return None


_finder: Final = _Finder()


def install(modules: Iterable[str]) -> None:
    """Load the user's modules by their contents from now on. ``modules``: the agents', by name. May be called again."""
    _packages.update(name.partition(".")[0] for name in modules)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    importlib.invalidate_caches()


def fingerprint(files: Iterable[str] = ()) -> str:
    """Of all that is loaded of the user's, and of these files. Processes that have loaded the same have the same."""
    found = dict(_executed)
    for name, module in list(sys.modules.items()):
        # Not by getattr: there are modules that import others when they are asked.
        file: Any = getattr(module, "__dict__", {}).get("__file__")
        # Extensions, and what was loaded in ways of its own.
        if name not in found and isinstance(file, str) and not name.startswith("penstock.") and _is_users(name, file):
            found[name] = _identity(file)
    for number, path in enumerate(files):
        with open(path, "rb") as opened:
            found[f"{number}:"] = blake2b(opened.read(), digest_size=16).digest()
    whole = blake2b(digest_size=6)
    for name in sorted(found):
        whole.update(f"{name}\0".encode(errors="surrogatepass") + found[name])
    return whole.hexdigest()


def _identity(path: str) -> bytes:
    """Of a file that was loaded by others: it can be large, and is not read. Empty: there is no such file."""
    while path and not os.path.isfile(path):
        # A member of an archive has a path in it, and what was never a file has any.
        path = "" if os.path.isdir(path) else os.path.dirname(path)
    if not path:
        return b""
    known = os.stat(path)
    return f"{known.st_size} {known.st_mtime_ns}".encode()


def _is_users(name: str, path: str) -> bool:
    return name.partition(".")[0] in _packages or not _is_library(os.path.dirname(path))


@cache
def _is_library(directory: str) -> bool:
    real = os.path.realpath(directory)
    return not _INSTALLED.isdisjoint(real.split(os.sep)) or any(
        real == library or real.startswith(library + os.sep) for library in _LIBRARIES
    )
