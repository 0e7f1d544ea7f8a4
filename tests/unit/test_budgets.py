"""How large functions, classes and files may be, and how much a module may write into others' objects.

Complexity, arguments and statements of a single function are ruff's to count (C90 and PLR09 in pyproject.toml); here is
what it has no rule for. There are no exceptions.
"""

from __future__ import annotations

import ast
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
FILES: Final = {
    str(path.relative_to(ROOT)): path for root in ("daemon", "ipc", "workers") for path in (ROOT / root).rglob("*.py")
}

BODY_P90: Final = 20
LONGEST_BODY: Final = 60
LONGEST_FILE: Final = 450
METHODS: Final = 30
FOREIGN_WRITES: Final = 15

Function = ast.FunctionDef | ast.AsyncFunctionDef


def body_lines(function: Function) -> int:
    """Lines of a function without its head and its docstring."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def methods(tree: ast.AST) -> Iterator[int]:
    """How many methods each class has."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield sum(isinstance(each, Function) for each in node.body)


def foreign_writes(tree: ast.AST) -> int:
    """Assignments to attributes of anything but ``self`` and ``cls``: also of what an object has (``self.a.b = 1``)."""
    return sum(
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        for node in ast.walk(tree)
    )


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


MEASURES: Final[dict[str, tuple[int, Callable[[Path], int]]]] = {
    "body": (LONGEST_BODY, lambda path: max(map(body_lines, functions(parsed(path))), default=0)),
    "file": (LONGEST_FILE, lambda path: len(path.read_text().splitlines())),
    "methods": (METHODS, lambda path: max(methods(parsed(path)), default=0)),
    "foreign writes": (FOREIGN_WRITES, lambda path: foreign_writes(parsed(path))),
}


@pytest.mark.parametrize("what", MEASURES)
def test_every_file_is_within_its_budget(what: str) -> None:
    limit, measure = MEASURES[what]
    measured = {name: measure(path) for name, path in FILES.items()}
    assert {name: size for name, size in measured.items() if size > limit} == {}, f"{what}: over {limit}"


def test_functions_are_short() -> None:
    sizes = [body_lines(each) for path in FILES.values() for each in functions(parsed(path))]
    assert len(sizes) > 1000
    assert statistics.quantiles(sizes, n=10)[-1] <= BODY_P90


def test_what_is_measured() -> None:
    tree = ast.parse(
        'class A:\n    def f(self, b):\n        """Text."""\n        self.x = 1\n        b.y, self.z = 1, 2\n'
        "        self.x.y += 1\n        return b.y\n    def g(self): ...\n"
    )
    assert foreign_writes(tree) == 2
    assert Counter(map(body_lines, functions(tree))) == {4: 1, 1: 1}
    assert list(methods(tree)) == [2]
