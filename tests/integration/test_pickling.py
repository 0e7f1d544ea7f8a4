"""Functions that are sent to workers: they come back with what they use, whoever calls whom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dill
import dill.detect
import pytest

from penstock.workers.pickling import pickled

SCRIPT = """
import functools, msgspec, sys, threading
from penstock.workers.serve import dump

def even(n: int) -> bool:
    return True if n == 0 else odd(n - 1)

def odd(n: int) -> bool:
    return False if n == 0 else even(n - 1)

def closures():
    def ping(n: int) -> str:
        return "ping" if n == 0 else pong(n - 1)
    def pong(n: int) -> str:
        return "pong" if n == 0 else ping(n - 1)
    return ping

def one(n: int) -> int:
    return two(n)

def two(n: int) -> int:
    return three(n)

def three(n: int) -> int:
    return n if n < 3 else one(n - 1) + helper.total(n)

class Helper:
    def total(self, n: int) -> int:
        return 0 if n == 0 else Helper().total(n - 1) + (even(n) and 1)

helper = Helper()

def around(function):
    @functools.wraps(function)
    def call(n: int) -> int:
        return function(n)
    return call

@around
def down(n: int) -> int:
    return 0 if n == 0 else 1 + again(n - 1)

@around
def again(n: int) -> int:
    return 0 if n == 0 else 1 + down(n - 1)

factorial = lambda n: 1 if n < 2 else n * factorial(n - 1)
unused = threading.Lock()   # no function uses it, and it cannot be sent

dump({"even": even, "ping": closures(), "one": one, "down": down, "factorial": factorial}, sys.argv[1])
"""

LOAD = """
import sys
from penstock.workers.serve import undump

print({name: function(6) for name, (function, hints) in undump(sys.argv[1]).items()})
"""


def test_functions_that_call_each_other_come_back_whole(tmp_path: Path) -> None:
    script, made = tmp_path / "script.py", tmp_path / "agents.dill"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, str(script), str(made)], check=True, timeout=60)
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, str(made)], check=True, timeout=60, capture_output=True, text=True
    ).stdout
    assert loaded.strip() == str({"even": True, "ping": "ping", "one": 10, "down": 6, "factorial": 720})


def test_dill_is_as_it_was_afterwards() -> None:
    before = dill.detect.globalvars
    assert dill.loads(pickled(lambda: 3))() == 3
    with pytest.raises(Exception, match="cannot pickle"):
        pickled({"a": (each for each in [1])})
    assert dill.detect.globalvars is before
