"""The CPU quota of control groups, read from trees of files as Linux shows them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from penstock.daemon.host import cgroups
from penstock.daemon.host.cgroups import Groups

V2 = "29 23 0:26 {within} {top} rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:28 {within} {top} rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
OTHERS = "23 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n24 23 0:22 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"


class Tree:
    """A root directory with ``/proc/self`` and a hierarchy of groups."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)

    def tell(self, membership: str, *mounts: str) -> None:
        (self.root / "proc/self/cgroup").write_text(f"{membership}\n9:pids:/elsewhere\n1:name=systemd:/elsewhere\n")
        (self.root / "proc/self/mountinfo").write_text(OTHERS + "\n".join(mounts) + "\n")

    def put(self, directory: str, **files: str) -> None:
        place = self.root / directory.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name.replace("__", ".")).write_text(text + "\n")

    def quota(self) -> float:
        return Groups(self.root).quota()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("said", "processors"),
    [
        ("50000 100000", 0.5),
        ("150000 100000", 1.5),
        ("max 100000", math.inf),
        ("1000 100000", 0.01),
        ("", math.inf),
        ("nonsense 100000", math.inf),
        ("50000 0", math.inf),
        ("50000", math.inf),
    ],
)
def test_what_cgroup_v2_says(tree: Tree, said: str, processors: float) -> None:
    """As a container with its own namespace sees it: its group is the root."""
    tree.tell("0::/", V2.format(within="/", top="/sys/fs/cgroup"))
    tree.put("/sys/fs/cgroup", cpu__max=said)
    assert tree.quota() == processors


@pytest.mark.parametrize(
    ("quota", "period", "processors"),
    [("50000", "100000", 0.5), ("-1", "100000", math.inf), ("25000", "10000", 2.5), ("0", "0", math.inf)],
)
def test_what_cgroup_v1_says(tree: Tree, quota: str, period: str, processors: float) -> None:
    """As Docker shows it: the path is the host's, and what is mounted begins there."""
    tree.tell("3:cpu,cpuacct:/docker/abc", V1.format(within="/docker/abc", top="/sys/fs/cgroup/cpu,cpuacct"))
    tree.put("/sys/fs/cgroup/cpu,cpuacct", cpu__cfs_quota_us=quota, cpu__cfs_period_us=period)
    assert tree.quota() == processors


def test_the_least_of_our_own_and_of_those_above_counts(tree: Tree) -> None:
    tree.tell("0::/system.slice/penstock.service", V2.format(within="/", top="/sys/fs/cgroup"))
    tree.put("/sys/fs/cgroup/system.slice/penstock.service", cpu__max="max 100000")
    tree.put("/sys/fs/cgroup/system.slice", cpu__max="250000 100000")
    tree.put("/sys/fs/cgroup")  # the topmost has no such file
    assert tree.quota() == 2.5
    tree.put("/sys/fs/cgroup/system.slice/penstock.service", cpu__max="75000 100000")
    assert tree.quota() == 0.75
    tree.put("/sys/fs/cgroup/other.service", cpu__max="1000 100000")
    assert tree.quota() == 0.75, "a neighbour's is not ours"


def test_both_versions_side_by_side(tree: Tree) -> None:
    tree.tell(
        "4:cpu,cpuacct:/box\n0::/box",
        V1.format(within="/", top="/sys/fs/cgroup/cpu"),
        V2.format(within="/", top="/sys/fs/cgroup/unified"),
    )
    tree.put("/sys/fs/cgroup/cpu/box", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    tree.put("/sys/fs/cgroup/unified/box")
    assert tree.quota() == 0.5


@pytest.mark.parametrize("path", ["/../beside", "/not/shown", "/docker/abcd"])
def test_a_path_that_the_mount_does_not_show_is_taken_for_its_root(tree: Tree, path: str) -> None:
    tree.tell(f"0::{path}", V2.format(within="/docker/abc", top="/sys/fs/cgroup"))
    tree.put("/sys/fs/cgroup", cpu__max="50000 100000")
    assert tree.quota() == 0.5


def test_a_mount_below_a_name_with_spaces(tree: Tree) -> None:
    tree.tell("0::/a", V2.format(within="/", top="/control\\040groups"))
    tree.put("/control groups/a", cpu__max="50000 100000")
    assert tree.quota() == 0.5


def test_no_groups_no_quota(tree: Tree, tmp_path: Path) -> None:
    tree.tell("0::/")
    assert tree.quota() == math.inf
    assert Groups(tmp_path / "nothing").quota() == math.inf
    assert Groups(tmp_path / "nothing").used() is None


def test_what_the_group_of_the_quota_has_used(tree: Tree) -> None:
    tree.tell("0::/a/b", V2.format(within="/", top="/sys/fs/cgroup"))
    tree.put("/sys/fs/cgroup/a", cpu__max="50000 100000", cpu__stat="usage_usec 2500000\nuser_usec 1")
    tree.put("/sys/fs/cgroup/a/b", cpu__max="max 100000", cpu__stat="usage_usec 1\nuser_usec 1")
    assert Groups(tree.root).used() == 2.5
    tree.put("/sys/fs/cgroup/a", cpu__max="max 100000")
    assert Groups(tree.root).used() is None


def test_a_quota_that_changes_is_read_again(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.tell("0::/", V2.format(within="/", top="/sys/fs/cgroup"))
    tree.put("/sys/fs/cgroup", cpu__max="50000 100000")
    groups = Groups(tree.root)
    assert groups.quota() == 0.5
    tree.put("/sys/fs/cgroup", cpu__max="150000 100000")
    assert groups.quota() == 0.5, "not at every look"
    monkeypatch.setattr(cgroups, "AGAIN", 0.0)
    assert groups.quota() == 1.5
