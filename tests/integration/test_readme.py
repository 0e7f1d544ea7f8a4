"""The README's agents in a daemon, called as it says and answered as it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.fix_daemon import Daemon, DaemonFactory

README = (Path(__file__).parents[2] / "README.rst").read_text()
SHOWN = re.findall(
    r"^    \$ curl --json '(.*)' http://127\.0\.0\.1:8080/v1/agents/(zones|primes)\n    (.*)$", README, re.M
)


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A daemon beside ``zones.py``, with its embedded PostgreSQL."""
    directory = tmp_path_factory.mktemp("readme")
    (code,) = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README, re.M)
    (directory / "zones.py").write_text(re.sub(r"^    ", "", code, flags=re.M))
    return daemons("zones", settings={"database.dsn": ""}, directory=directory)


def test_two_calls_are_shown() -> None:
    assert [agent for _, agent, _ in SHOWN] == ["zones", "primes"]


@pytest.mark.parametrize(("body", "agent", "answer"), SHOWN)
def test_a_call_is_answered_as_shown(daemon: Daemon, body: str, agent: str, answer: str) -> None:
    assert daemon.call(agent, json.loads(body)).body.decode() == answer
