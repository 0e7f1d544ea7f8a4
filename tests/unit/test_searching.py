"""The order in which a worker looks for modules, and what it says of those that it does not take."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.workers.searching import ordered, shadowed

ENTRIES = st.lists(st.sampled_from(["", "/lib", "/lib/x", "/app", "/site", "/other"]))


@given(ENTRIES, st.sampled_from(["", "/app", "/new"]))
def test_the_standard_library_then_the_working_directory_then_the_rest(path: list[str], directory: str) -> None:
    standard = {"/lib", "/lib/x"}
    found = ordered(path, directory, standard)
    assert len(found) == len(set(found))
    assert set(found) - {directory} == set(path) - {"", directory}
    kinds = [0 if each in standard else 1 if each == directory else 2 for each in found]
    assert kinds == sorted(kinds)
    assert ordered(found, directory, standard) == found, "it can be done again"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_module_of_the_standard_library_goes_before_ours(directory: Path) -> None:
    (directory / "random.py").touch()
    (directory / "email").mkdir()
    (directory / "email" / "__init__.py").touch()
    (directory / "types").mkdir()
    (directory / "types" / "mine.py").touch()
    for name in ("random", "email"):
        assert shadowed(name, importlib.import_module(name)).startswith(str(directory / name))
    assert shadowed("types.mine", None) == str(directory / "types" / "mine.py")
    assert shadowed("json", importlib.import_module("json")) == ""


def test_a_module_of_ours_is_not_shadowed_whether_it_can_be_imported_or_not(directory: Path) -> None:
    (directory / "searched_one.py").touch()
    (directory / "searched_two").mkdir()
    (directory / "searched_two" / "inner.py").touch()
    (directory / "searched_two" / "broken.py").write_text("import no_such_module")
    for name in ("searched_one", "searched_two.inner"):
        assert shadowed(name, importlib.import_module(name)) == ""
    with pytest.raises(ImportError):
        importlib.import_module("searched_two.broken")
    assert shadowed("searched_two.broken", None) == ""
    assert shadowed("searched_nowhere", None) == ""
