"""What is built from the tree has all of it, and works without it."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOTS = ("daemon", "ipc", "workers")
BUILD = "from setuptools import build_meta as b; import sys; print(b.build_{}(sys.argv[1]))"


def build(kind: str, tree: Path, into: Path) -> Path:
    """The file that the build backend makes of a tree: a ``wheel`` or an ``sdist``."""
    into.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind), str(into)], cwd=tree, capture_output=True, text=True, timeout=80
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return into / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree without what was built in it before."""
    copy = tmp_path_factory.mktemp("tree") / "penstock"
    copy.mkdir()
    for name in (*ROOTS, ".typing"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.rst", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", tree, tmp_path_factory.mktemp("wheel")))


def files(tree: Path) -> set[str]:
    """Everything in the packages' folders, by its name below ``penstock``."""
    return {
        str(path.relative_to(tree))
        for root in ROOTS
        for path in (tree / root).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for root in ROOTS for path in (ROOT / root).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_wheel_has_every_file_of_the_tree_and_no_other(wheel: zipfile.ZipFile, tree: Path) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {f"penstock/{name}" for name in files(tree)}
    assert {f"penstock/{root}/py.typed" for root in ROOTS} <= packed
    assert "penstock/__init__.py" not in packed


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    names = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(names["entry_points.txt"]).decode())
    assert dict(scripts["console_scripts"]) == {"penstock": "penstock.daemon.__main__:command"}
    metadata = wheel.read(names["METADATA"]).decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "\nProvides-Extra: embedded\n" in metadata
    assert b"Apache License" in wheel.read(names["licenses/LICENSE"])


def test_a_wheel_made_of_the_sdist_is_the_same(wheel: zipfile.ZipFile, tree: Path, tmp_path: Path) -> None:
    sdist = build("sdist", tree, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = zipfile.ZipFile(build("wheel", unpacked, tmp_path / "again"))
    assert sorted(again.namelist()) == sorted(wheel.namelist())
    for name in again.namelist():
        if ".dist-info/" not in name:
            assert again.read(name) == wheel.read(name), name


IMPORT_ALL = """
import importlib, sys
sys.path[:0] = sys.argv[1:3]
for name in sys.stdin.read().split():
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), module.__file__
from penstock.daemon.__main__ import main
sys.exit(main(["--version"]))
"""


def test_every_module_of_the_wheel_can_be_imported_without_the_tree(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in wheel.namelist()
        if name.endswith(".py")
    ]
    # -S keeps the editable install's finder out, which would find the tree.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", IMPORT_ALL, str(tmp_path), sysconfig.get_path("purelib")],
        cwd="/",
        input=" ".join(modules),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("penstock 0.")


def test_the_command_is_installed() -> None:
    script = Path(sysconfig.get_path("scripts")) / "penstock"
    done = subprocess.run([script, "--help"], cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for command in ("serve", "check", "call", "status", "top", "reload"):
        assert f"\n    {command} " in done.stdout


# The arrows


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over the code of a tree."""
    return subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "lint-imports", "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / ".typing")},
        capture_output=True,
        text=True,
        timeout=80,
    )


def test_the_arrows_between_the_packages_are_kept(tree: Path) -> None:
    done = lint(tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("daemon/core/window.py", "import time", "The core does no I/O"),
        ("workers/context.py", "import penstock.daemon.config.settings", "The two programs never import each other"),
        ("daemon/host/state.py", "from penstock.workers import context", "The two programs never import each other"),
        ("ipc/frames.py", "import penstock.daemon.config.settings", "The wire format knows neither program"),
        (
            "daemon/engine/holding.py",
            "from penstock.daemon.fleet import journal",
            "No package of the daemon imports one above",
        ),
        (
            "daemon/front/headers.py",
            "from penstock.daemon.front import routes",
            "Modules and packages import each other in one",
        ),
        ("daemon/engine/holding.py", "import zmq", "Engine and fleet import neither sockets nor processes"),
        (
            "daemon/telemetry/traffic.py",
            "import penstock.daemon.backends.local.process",
            "Only the composition imports",
        ),
    ],
)
def test_an_arrow_the_wrong_way_is_found(tree: Path, file: str, line: str, contract: str) -> None:
    path = tree / file
    before = path.read_text()
    path.write_text(f"{before}\n{line}\n")
    try:
        done = lint(tree)
    finally:
        path.write_text(before)
    assert done.returncode == 1
    assert any(each.startswith(contract) and " BROKEN" in each for each in done.stdout.splitlines()), done.stdout
