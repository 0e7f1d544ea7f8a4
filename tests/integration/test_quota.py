"""A daemon in a container that leaves it a part of the processors."""

from __future__ import annotations

from tests.fix_cgroup import real_group
from tests.fix_daemon import DaemonFactory, eventually


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
