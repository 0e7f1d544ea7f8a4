"""A real control group with a CPU quota, where this host lets us make one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def real_group(quota: float) -> Iterator[Path]:
    """A control group of this host with that quota; skips where we may make none."""
    made = None
    for top, files in (
        ("/sys/fs/cgroup/cpu", {"cpu.cfs_quota_us": f"{int(quota * 100_000)}"}),
        ("/sys/fs/cgroup/cpu,cpuacct", {"cpu.cfs_quota_us": f"{int(quota * 100_000)}"}),
        ("/sys/fs/cgroup", {"cpu.max": f"{int(quota * 100_000)} 100000"}),
    ):
        made = Path(top, f"penstock-test-{os.getpid()}")
        try:
            made.mkdir()
        except OSError:
            continue
        try:
            for name, text in files.items():
                (made / name).write_text(text)
            yield made
            return
        except OSError:
            continue
        finally:
            for pid in (made / "cgroup.procs").read_text().split():
                (made.parent / "cgroup.procs").write_text(pid)
            made.rmdir()
    pytest.skip("no control group with a quota can be made here")
