"""The daemon's own source, for tests of what must be said in one place only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import penstock.daemon.core


def parsed() -> Iterator[tuple[Path, ast.Module]]:
    """Every module of the daemon, parsed."""
    for path in sorted(Path(penstock.daemon.core.__file__).parent.parent.rglob("*.py")):
        yield path, ast.parse(path.read_text())
