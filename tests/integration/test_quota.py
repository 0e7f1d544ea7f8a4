"""A daemon in a container that leaves it a part of the processors."""

from __future__ import annotations

from tests.fix_cgroup import real_group
from tests.fix_daemon import DaemonFactory


def test_half_a_processor_means_two_workers(fresh: DaemonFactory) -> None:
    with real_group(0.5) as group:
        daemon = fresh("basic", settings={"pools.default.workers": 0}, shell=f"echo $$ > {group}/cgroup.procs;")
        assert "the control group's quota leaves 0.5 of" in daemon.log
        assert len(daemon.wait_workers(2)) == 2, "two for each processor, rounded up"
        assert daemon.call("spin", 0.05).status == 200
        daemon.end()
