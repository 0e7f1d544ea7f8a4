"""Processes in a real control group, or a container, that leaves them a part of the processors."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest

from tests.fix_cgroup import real_group
from tests.fix_daemon import DaemonFactory, eventually

PROGRAM = """
import json, os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
from penstock.daemon.config.sources import load
from penstock.daemon.host.cgroups import processors
pool = load(None, [], {"PENSTOCK_CONFIG": os.devnull, "HOME": "/"}).pools["default"]
print(json.dumps([processors(), pool.workers]))
"""


@pytest.mark.parametrize("quota", [0.5, 1.5])
def test_a_real_group_of_this_host(quota: float) -> None:
    ours = len(os.sched_getaffinity(0))
    with real_group(quota) as group:
        done = subprocess.run([sys.executable, "-c", PROGRAM, group], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [min(ours, quota), 2 * math.ceil(min(ours, quota))]


def test_half_a_processor_means_two_workers(fresh: DaemonFactory) -> None:
    """Two for each, rounded up."""
    with real_group(0.5) as group:
        daemon = fresh.prepare("basic", settings={"pools.default.workers": 0}, shell=f"echo $$ > {group}/cgroup.procs;")
        daemon.start()
        eventually(lambda: "listening on" in daemon.log, "it listens")
        assert "the control group's quota leaves 0.5 of" in daemon.log
        eventually(lambda: "is ready with" in daemon.log, "a worker is there", 120.0)
        assert [each["name"] for each in daemon.workers()] == ["default:0", "default:1"]
        daemon.end()
