"""Modules are loaded by the contents of their sources, and known by a fingerprint of them."""

from __future__ import annotations

import marshal
import os
import py_compile
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROGRAM = """
import importlib, sys
from penstock.workers import sources
sources.install(sys.argv[1:])
for name in sys.argv[1:]:
    importlib.import_module(name)
print(sources.fingerprint())
print(sys.modules[sys.argv[1]].VALUE)
"""


def load(directory: Path, *modules: str, write: bool = True) -> tuple[str, str]:
    """The fingerprint and the value of the first module, as a process finds them that imports these."""
    environment = {**os.environ, "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "" if write else "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *modules],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    code, value = run.stdout.split()
    return code, value


def write(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"VALUE = {value}\n")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def cached(source: Path) -> Path:
    (found,) = (source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")
    return found


def test_a_stale_pyc_is_not_taken_and_a_true_one_is(tmp_path: Path) -> None:
    module = write(tmp_path / "mine.py", 1)
    py_compile.compile(str(module), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    write(module, 2)
    first, value = load(tmp_path, "mine")
    assert value == "2"
    # What was written is one that the next one takes: it is made to say something else here.
    good = cached(module).read_bytes()
    write(module, 2)
    forged = compile("VALUE = 77", str(module), "exec")
    cached(module).write_bytes(good[:16] + marshal.dumps(forged))
    assert load(tmp_path, "mine") == (first, "77")
    for damaged in (b"", good[:16], good[:40], b"\0" * 40):
        cached(module).write_bytes(damaged)
        assert load(tmp_path, "mine", write=False) == (first, "2")
        assert cached(module).read_bytes() == damaged


def test_every_other_python_takes_it_for_what_it_is(tmp_path: Path) -> None:
    module = write(tmp_path / "mine.py", 1)
    load(tmp_path, "mine")
    write(module, 3)
    run = subprocess.run(
        [sys.executable, "-c", "import mine; print(mine.VALUE)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.split() == ["3"]


@pytest.mark.parametrize("changed", ["mine.py", "helps.py", "package/__init__.py", "package/part.py"])
def test_the_fingerprint_is_of_the_contents_of_all_that_is_imported(tmp_path: Path, changed: str) -> None:
    for directory in ("a", "b"):
        where = tmp_path / directory
        write(where / "helps.py", 1)
        write(where / "package" / "__init__.py", 1)
        write(where / "package" / "part.py", 1)
        write(where / "unused.py", 1)
        (where / "mine.py").write_text("import helps\nfrom package import part\nVALUE = 1\n")
    before = load(tmp_path / "a", "mine")
    assert load(tmp_path / "b", "mine") == before, "it is the same wherever it lies"
    write(tmp_path / "a" / "unused.py", 2)
    assert load(tmp_path / "a", "mine") == before
    with (tmp_path / "a" / changed).open("a") as file:
        file.write("# changed\n")
    assert load(tmp_path / "a", "mine")[0] != before[0]


def test_what_others_have_loaded_counts_as_far_as_there_is_a_file(tmp_path: Path) -> None:
    archive = tmp_path / "parts.zip"
    (tmp_path / "mine.py").write_text(
        "import sys, types\n"
        f"sys.path.append({str(archive)!r})\n"
        "import inside\n"
        "for name, file in {'a': 'nowhere.py', 'b': '/nowhere/c.py', 'c': '', 'd': '<made up>', 'e': '/', 'f': 7}.items():\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "    sys.modules[name].__file__ = file\n"
        "VALUE = inside.VALUE\n"
    )
    codes = set()
    for value in (1, 22):
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("inside.py", f"VALUE = {value}\n")
        code, found = load(tmp_path, "mine")
        assert found == str(value)
        codes.add(code)
    assert len(codes) == 2


def test_of_what_is_installed_the_agents_own_packages_count(tmp_path: Path) -> None:
    installed = tmp_path / "site-packages"
    write(installed / "app" / "__init__.py", 1)
    write(installed / "library.py", 1)
    (installed / "app" / "agents.py").write_text("import library\nfrom app import helps\nVALUE = 1\n")
    write(installed / "app" / "helps.py", 1)
    before = load(installed, "app.agents")
    write(installed / "library.py", 2)
    assert load(installed, "app.agents", write=False) == before
    write(installed / "app" / "helps.py", 2)
    assert load(installed, "app.agents", write=False)[0] != before[0]
