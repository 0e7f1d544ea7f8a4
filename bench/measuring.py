"""What all benchmarks share: a load on a target, and a result with its tables, its checks and its file.

A benchmark is a module with a function ``measure(scale)`` that returns a ``Result``; ``scale`` stretches or shortens
its runs. What the project promises about a figure is written beside it as a ``Check``; one that misses is printed as
missed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bench.generator import run_apart
from bench.series import Report
from bench.spec import Kind, Population, Spec
from bench.tables import table
from bench.targets import Target
from bench.work import CORES

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("penstock", "aiohttp", "uvloop", "pyzmq", "msgspec", "psycopg")


@dataclass(frozen=True)
class Check:
    """A promise and what was measured."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def kept(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        relation = "at least" if self.at_least else "at most"
        return f"{'kept' if self.kept else 'MISSED'}: {self.what} {relation} {self.limit:g}: {self.value:.3g}"


@dataclass
class Result:
    """What one benchmark found."""

    name: str
    tables: dict[str, list[list[Any]]] = field(default_factory=dict)
    """By title: rows of cells, the first the heading."""
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def text(self) -> str:
        """Everything, for people."""
        parts = [f"{title}\n\n{table(rows)}" for title, rows in self.tables.items()]
        parts.append("\n".join([*self.notes, *map(str, self.checks)]))
        return "\n\n".join(part for part in parts if part)

    def keep(self) -> Path:
        """Write it to ``results/NAME.json`` with what it was measured on."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        versions = {name: _version(name) for name in _PACKAGES}
        ground = {"cores": CORES, "python": platform.python_version(), "at": time.strftime("%FT%T%z"), **versions}
        content = {"measured_on": ground, **asdict(self)}
        for each, check in zip(content["checks"], self.checks, strict=True):
            each["kept"] = check.kept
        path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2))
        return path


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "from its source folder"


def load(target: Target, populations: list[Population], seconds: float) -> Report:
    """These populations on a target, from a process of their own."""
    return run_apart(Spec("127.0.0.1", target.port, populations, seconds))


def closed(target: Target, agent: str, body: str, clients: int, seconds: float) -> Report:
    """A closed loop on one agent."""
    return load(target, [Population("closed", [Kind(agent, body)], clients=clients)], seconds)


def present(measure: Callable[[float], Result], scale: float) -> Result:
    """Measure, print, and write the file."""
    begun = time.monotonic()
    result = measure(scale)
    path = result.keep()
    print(f"{result.text()}\n({time.monotonic() - begun:.0f} s; {path.parent.name}/{path.name})\n", flush=True)
    return result


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--scale", type=float, default=1.0, help="factor on the length of all runs")
    return made


def command(measure: Callable[[float], Result], doc: str | None) -> int:
    """A benchmark as a program without further options."""
    present(measure, parser(doc).parse_args().scale)
    return 0
