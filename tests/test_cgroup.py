from pathlib import Path

import pytest

from kaas import cgroup, machine

V1_MOUNTS = (
    "32 31 0:29 {root} {top}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:3 {root} {top}/memory rw - cgroup cgroup rw,memory\n"
)
V2_MOUNTS = "41 31 0:38 {root} {top} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_GROUPS = "4:memory:{group}\n1:cpu,cpuacct:{group}\n0::/\n"
V2_GROUPS = "0::{group}\n"


class Process:
    """What the kernel tells of a process's groups, made up."""

    def __init__(self, folder: Path, mounts: str, groups: str, group: str = "/run/task", root: str = "/") -> None:
        self.proc, self.top = folder / "proc", folder / "cgroups"
        self.proc.mkdir()
        (self.proc / "mountinfo").write_text(mounts.format(top=self.top, root=root))
        (self.proc / "cgroup").write_text(groups.format(group=group))

    def set(self, path: str, text: str) -> None:
        file = self.top / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_the_least_quota_of_a_group_and_those_above_it_counts(tmp_path: Path) -> None:
    process = Process(tmp_path, V2_MOUNTS, V2_GROUPS)
    process.set("run/task/cpu.max", "max 100000\n")
    assert cgroup.cpu_quota(process.proc) is None
    process.set("run/cpu.max", "150000 100000\n")
    assert cgroup.cpu_quota(process.proc) == 1.5
    process.set("run/task/cpu.max", "20000 100000\n")
    assert cgroup.cpu_quota(process.proc) == 0.2


def test_version_1_of_cgroups_is_read_too(tmp_path: Path) -> None:
    process = Process(tmp_path, V1_MOUNTS, V1_GROUPS)
    process.set("cpu/run/task/cpu.cfs_quota_us", "-1\n")
    process.set("cpu/run/task/cpu.cfs_period_us", "100000\n")
    process.set("memory/run/task/memory.limit_in_bytes", "9223372036854771712\n")
    assert (cgroup.cpu_quota(process.proc), cgroup.memory_limit(process.proc)) == (None, None)
    process.set("cpu/run/task/cpu.cfs_quota_us", "50000\n")
    process.set("memory/run/memory.limit_in_bytes", "4096\n")
    process.set("cpu/run/task/cpu.stat", "nr_periods 375\nnr_throttled 351\nthrottled_time 3\n")
    assert (cgroup.cpu_quota(process.proc), cgroup.memory_limit(process.proc)) == (0.5, 4096)
    assert cgroup.throttled(process.proc) == (351, 375)


@pytest.mark.parametrize(("group", "root"), [("/docker/12ab", "/docker/12ab"), ("/../../outside", "/"), ("/", "/")])
def test_in_a_container_what_is_mounted_is_its_own_group(tmp_path: Path, group: str, root: str) -> None:
    process = Process(tmp_path, V2_MOUNTS, V2_GROUPS, group, root)
    process.set("cpu.max", "200000 100000\n")
    process.set("memory.max", "1073741824\n")
    process.set("cpu.stat", "usage_usec 7\nnr_periods 10\nnr_throttled 4\n")
    assert cgroup.cpu_quota(process.proc) == 2.0
    assert cgroup.memory_limit(process.proc) == 2**30
    assert cgroup.throttled(process.proc) == (4, 10)


def test_without_cgroups_nothing_is_limited(tmp_path: Path) -> None:
    assert cgroup.cpu_quota(tmp_path) is None
    assert cgroup.memory_limit(tmp_path) is None
    assert cgroup.throttled(tmp_path) == (0, 0)


def test_a_quota_makes_fewer_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: 0.2)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 2**30)
    facts = machine.describe()
    assert cgroup.cores() == 0.2
    assert facts["CPU usable"] == "0.2 threads' worth (a quota of 0.2 is set)"
    assert facts["Memory"].endswith("limited to 1.0 GiB")
