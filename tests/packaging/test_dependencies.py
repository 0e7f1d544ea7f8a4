"""What is installed with Penstock: named, said what for, used, and no more than that."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PRODUCT = ("daemon", "ipc", "workers")

PROGRAMS = {"py-spy"}
"""Dependencies that are run, and not imported."""
FRAMEWORKS = {"bottle", "django", "falcon", "fastapi", "flask", "quart", "sanic", "starlette", "tornado", "werkzeug"}


def named(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


def imported(folders: Iterable[str]) -> dict[str, Path]:
    """The top-level modules that code in these folders imports, each with one place."""
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {each.name.partition(".")[0]: path for each in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found[node.module.partition(".")[0]] = path
    return found


@functools.cache
def distributions() -> Mapping[str, list[str]]:
    """What top-level modules come from."""
    return metadata.packages_distributions()


def providers(module: str) -> set[str]:
    """The installed distributions with this module; none if it is the standard library's or of this tree."""
    if module in sys.stdlib_module_names:
        return set()
    return {str(canonicalize_name(each)) for each in distributions().get(module, ())} - {"penstock"}


def closure(names: Iterable[str]) -> set[str]:
    """These and all that they bring here, by what is said by the distributions that are installed."""
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found:
            continue
        found.add(name)
        brought = map(Requirement, metadata.requires(name) or ())
        wanted += [each.name for each in brought if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def test_each_dependency_says_what_it_is_for() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    every = [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    silent = [each for each in every if not re.search(rf'^    "{re.escape(each)}",  # \S+', text, re.MULTILINE)]
    assert silent == []


@pytest.mark.parametrize(
    ("folders", "extras"),
    [(PRODUCT, EXTRAS.keys() - {"test"}), (("tests", "bench"), EXTRAS.keys())],
    ids=["product", "tests"],
)
def test_what_is_imported_is_declared(folders: tuple[str, ...], extras: set[str]) -> None:
    declared = named([*PROJECT["dependencies"], *(each for extra in extras for each in EXTRAS[extra])])
    modules = imported(folders)
    assert {"aiohttp", "uvloop"} <= modules.keys()
    undeclared = {
        module: str(path.relative_to(ROOT))
        for module, path in modules.items()
        if (found := providers(module)) and not found & declared
    }
    assert undeclared == {}


def test_what_is_declared_is_imported() -> None:
    used = {name for module in imported(PRODUCT) for name in providers(module)}
    assert named(PROJECT["dependencies"]) - used == PROGRAMS


def test_an_installation_without_extras_brings_no_web_framework() -> None:
    """None but aiohttp, which parses HTTP here."""
    plain = closure(named(PROJECT["dependencies"]))
    assert {"aiohttp", "yarl", "idna"} <= plain
    assert plain & (FRAMEWORKS | named(EXTRAS["docs"])) == set()


def test_what_make_run_installs_has_the_page_and_a_database() -> None:
    done = subprocess.run(["make", "-n", "-B", ".venv/run"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (installed,) = re.findall(r"pip install .*'\.\[(.*)\]'", done.stdout)
    assert set(installed.split(",")) == {"embedded", "docs"}


READ_ALL = """
import asyncio, sys
from penstock.daemon.front import docs

async def read():
    files = docs.Files()
    for path in docs.PATHS:
        assert (await files.get(path)).body, path

asyncio.run(read())
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_serving_swagger_ui_runs_nothing_of_the_distribution_it_is_in() -> None:
    done = subprocess.run([sys.executable, "-c", READ_ALL], cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = {name for module in done.stdout.split() for name in providers(module)}
    assert "msgspec" in loaded
    assert loaded & (FRAMEWORKS | named(EXTRAS["docs"])) == set()
