"""The working directory as it was given, and what of ``sys.path`` goes along with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.daemon.host.workplace import Origin, given_directory


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A link to the first of two releases; the test runs where it leads."""
    for name in ("one", "two"):
        (tmp_path / name / "lib").mkdir(parents=True)
    link = tmp_path / "current"
    link.symlink_to("one")
    monkeypatch.chdir(link)
    return link


def test_the_name_is_the_shells_if_it_is_true(current: Path, tmp_path: Path) -> None:
    assert given_directory({"PWD": str(current)}) == str(current)
    for wrong in ("", "current", str(tmp_path), str(tmp_path / "nowhere"), "a\0b"):
        assert given_directory({"PWD": wrong}) == str(tmp_path / "one")


def test_what_is_relative_goes_along_and_what_is_absolute_stays(current: Path, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    environ = {"PWD": str(current), "PYTHONPATH": os.pathsep.join(["lib", f"{one}/absolute", f"{current}/linked"])}
    path = [one, f"{one}/lib", f"{one}/absolute", f"{current}/linked", "/usr/lib/python3", f"{one}/venv/site-packages"]
    origin = Origin(environ, path)
    assert origin.follow().path == tuple(path)
    current.unlink()
    current.symlink_to("two")
    found = origin.follow()
    assert found.directory == two
    assert found.path == (two, f"{two}/lib", *path[2:])


def test_a_directory_that_was_named_outright_stays(current: Path, tmp_path: Path) -> None:
    one = str(tmp_path / "one")
    origin = Origin({"PWD": str(current), "PYTHONPATH": one}, [one])
    current.unlink()
    current.symlink_to("two")
    assert origin.follow().path == (one,)
