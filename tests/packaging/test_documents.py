"""The documents: without warnings, complete, and naming nothing that does not exist."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree

from penstock.daemon.__main__ import parser
from penstock.daemon.config.settings import POOL_SETTINGS, SETTINGS
from penstock.daemon.front.operations import CALL, OPERATIONS
from penstock.daemon.front.problems import PROBLEMS
from tests.unit.test_metrics import SPECIFIED

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.rst"), *ROOT.glob("bench/*.rst"), *ROOT.glob("tests/*.rst"))
)
WIDTH = 120
MINUTES = 150
"""Lines of the README, which is to be read in ten minutes."""


def document(name: str) -> nodes.document:
    """The document's tree; fails with whatever docutils says about it."""
    said = io.StringIO()
    source = (ROOT / name).read_text()
    tree = publish_doctree(
        source, source_path=name, settings_overrides={"report_level": 1, "warning_stream": said, "halt_level": 5}
    )
    assert said.getvalue() == ""
    return tree


def table(name: str, heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading, without their heads."""
    found = [
        [[entry.astext() for entry in row.findall(nodes.entry)] for row in each.findall(nodes.row)]
        for each in document(name).findall(nodes.table)
    ]
    (rows,) = (rows[1:] for rows in found if rows[0][0] == heading)
    assert len({row[0] for row in rows}) == len(rows)
    return rows


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_read_without_a_warning(name: str) -> None:
    assert document(name).astext()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_line_is_too_long(name: str) -> None:
    assert [line for line in (ROOT / name).read_text().splitlines() if len(line) > WIDTH] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.rst").read_text().splitlines()) <= MINUTES


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_a_document_names_exist(name: str) -> None:
    """Those with a folder, from the top or from ``daemon/``, and other documents."""
    text = (ROOT / name).read_text()
    paths = {each for each in re.findall(r"``([\w./-]+\.(?:py|rst|toml|yml|json|conf))``", text) if each[0] != "/"}
    named = {each for each in paths if "/" in each or each.endswith(".rst")}
    assert named or name == "CHANGELOG.rst"
    places = (ROOT, ROOT / "daemon", (ROOT / name).parent)
    missing = {each for each in named if not any((place / each).exists() for place in places)}
    assert missing - MADE.get(name, set()) == set()


MADE = {"bench/README.rst": {"results/NAME.json"}}
"""Names of files that a program makes."""


def test_the_reference_has_every_setting_with_its_default() -> None:
    sections = {**SETTINGS, "pools.NAME": POOL_SETTINGS}
    assert {row[0]: row[1] for row in table("REFERENCE.rst", "Setting of the daemon")} == {
        f"{section}.{key}": json.dumps(setting.default)
        for section, settings in sections.items()
        for key, setting in settings.items()
    }


def test_the_reference_has_every_metric_with_its_labels() -> None:
    found = {}
    for name, _ in table("REFERENCE.rst", "Metric"):
        base, _, labels = name.rstrip("}").partition("{")
        found[base] = set(filter(None, labels.split(",")))
    assert found == SPECIFIED


def test_the_reference_has_every_command() -> None:
    named = {row[0].split()[1] for row in table("REFERENCE.rst", "Command")}
    (commands,) = (action for action in parser()._actions if action.choices)
    assert named == set(commands.choices or ())


def test_the_reference_has_every_route() -> None:
    assert {row[0] for row in table("REFERENCE.rst", "Route")} == {" ".join(route) for route in (CALL, *OPERATIONS)}


def test_the_reference_has_every_problem_with_its_status() -> None:
    found = {name: int(status) for name, status, _ in table("REFERENCE.rst", "Name")}
    assert found == {name: status for name, (status, _) in PROBLEMS.items()}


def test_the_unit_names_documents_that_are_installed() -> None:
    """One on each line: the installer puts another prefix into a line once."""
    unit = (ROOT / "systemd/penstock.service").read_text()
    named = re.findall(r"^Documentation=file:///opt/penstock/(\S+)$", unit, re.MULTILINE)
    assert len(named) == unit.count("Documentation=") == unit.count("file://") > 1
    script = (ROOT / "systemd/install.sh").read_text()
    assert all(f'"$source/{name}"' in script and f'"$prefix/{name}"' in script for name in named)
