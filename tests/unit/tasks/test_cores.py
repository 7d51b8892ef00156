"""The cores and memory that a container may use are read from cgroup files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks import cores
from tasks.configuration import configuration
from tasks.settings import Settings
from tasks.units import GiB, MiB

CPUS = 64


def tree(root: Path, membership: str, **files: str) -> Path:
    """Creates a root directory that contains /proc/self/cgroup and the given files under /sys/fs/cgroup; `__` in a
    file name stands for a slash.
    """
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(membership)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a node with 64 cores, all of which are available to this process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CPUS)), raising=False)


CGROUP_V1 = "5:cpu,cpuacct:/docker/c0ffee\n4:memory:/docker/c0ffee\n1:name=systemd:/docker/c0ffee\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000"}, 3),
        ("0::/\n", {"cpu.max": "5000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, CPUS),
        ("0::/\n", {"cpu.max": "6400000 50000"}, CPUS),
        ("0::/\n", {}, CPUS),
        ("", {}, CPUS),
        # The pod's limit applies to its containers, wherever this process is in the cgroup tree.
        ("0::/pod/ours\n", {"pod__cpu.max": "300000 100000", "pod__ours__cpu.max": "max 100000"}, 3),
        ("0::/pod/ours\n", {"pod__cpu.max": "300000 100000", "pod__ours__cpu.max": "100000 100000"}, 1),
        ("0::/../../kubepods/pod1/c1\n", {"cpu.max": "400000 100000"}, 4),
        (CGROUP_V1, {"cpu,cpuacct__cpu.cfs_quota_us": "150000", "cpu,cpuacct__cpu.cfs_period_us": "100000"}, 2),
        (CGROUP_V1, {"cpu__cpu.cfs_quota_us": "400000", "cpu__cpu.cfs_period_us": "100000"}, 4),
        (CGROUP_V1, {"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"}, CPUS),
        (CGROUP_V1 + "0::/\n", {"cpu__cpu.cfs_quota_us": "500000", "cpu__cpu.cfs_period_us": "100000"}, 5),
        ("0::/\n", {"cpu.max": "nonsense"}, CPUS),
        ("0::/\n", {"cpu.max": "100000 0"}, CPUS),
    ],
)
def test_the_cores_of_a_container_are_its_quota(
    membership: str, files: dict[str, str], expected: int, tmp_path: Path
):
    """The number of cores in a container is its CPU quota (cgroup v2 or v1), rounded up to whole cores."""
    assert cores.cores(tree(tmp_path, membership, **files)) == expected


def test_an_affinity_below_the_quota_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """If the CPU affinity allows fewer CPUs than the quota, the affinity determines the number of cores: a process
    that is pinned to one CPU has one core.
    """
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)

    assert cores.cores(tree(tmp_path, "0::/\n", **{"cpu.max": "200000 100000"})) == 1


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"memory.max": str(GiB)}, GiB),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/pod/ours\n", {"pod__memory.max": str(GiB), "pod__ours__memory.max": str(2 * GiB)}, GiB),
        (CGROUP_V1, {"memory__memory.limit_in_bytes": str(512 * MiB)}, 512 * MiB),
        (CGROUP_V1, {"memory__memory.limit_in_bytes": "9223372036854771712"}, None),
        ("", {}, None),
    ],
)
def test_the_memory_limit_is_read(membership: str, files: dict[str, str], expected: int | None, tmp_path: Path):
    assert cores.memory_limit_bytes(tree(tmp_path, membership, **files)) == expected


@pytest.mark.parametrize(
    ("quota", "settings", "expected"),
    [
        ("200000 100000", {}, 8),
        ("1200000 100000", {}, 12),
        ("max 100000", {}, 16),
        ("max 100000", {"worker_processes_max": 32}, 32),
        ("200000 100000", {"worker_processes_max": 4}, 4),
        ("200000 100000", {"worker_processes": 40}, 40),
    ],
)
def test_processes_follow_the_quota_within_bounds(
    quota: str, settings: dict[str, int], expected: int, tmp_path: Path
):
    """A worker has at least 8 and at most `worker_processes_max` processes, unless their number is configured."""
    root = tree(tmp_path, "0::/\n", **{"cpu.max": quota})

    assert cores.processes(Settings(**settings), root) == expected


def test_the_default_fits_the_memory_of_the_manifests(tmp_path: Path):
    """The default number of processes fits in the memory limit of the manifests: 1 GiB, without a CPU limit, on a
    node with 64 cores.
    """
    root = tree(tmp_path, "0::/\n")

    assert cores.memory_needed_bytes(cores.processes(Settings(), root)) < GiB
    assert configuration(Settings())["worker_concurrency"] <= 16
