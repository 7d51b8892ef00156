"""CPU and memory limits of this process's control group, and the resources that workers need.

`os.cpu_count`, and `os.process_cpu_count` of Python 3.13, ignore the CPU quota: in a container limited to 2 of 64
cores, each of them returns 64. This module reads the limits of cgroup v2 and cgroup v1; see
https://docs.kernel.org/admin-guide/cgroup-v2.html (`cpu.max`, `memory.max`) and
https://docs.kernel.org/scheduler/sched-bwc.html (`cpu.cfs_quota_us`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from tasks.settings import Settings
from tasks.units import MiB

# Flush tasks mostly wait. One hanging sink must not occupy every process before its breaker opens.
PROCESSES_MIN = 8
# Measured under load (docs/decisions/023-prefork.md): 64 processes took 1,791 MiB, of which their parent took
# about 100.
PARENT_BYTES = 100 * MiB
PROCESS_BYTES = 28 * MiB
# cgroup v1 represents "no limit" as the largest multiple of the page size.
UNLIMITED_BYTES = 1 << 60


def processes(settings: Settings, root: Path = Path("/")) -> int:
    """Returns the number of processes of a flush worker: `worker_processes` if it is set, otherwise one per core,
    but at least PROCESSES_MIN and at most `worker_processes_max`.
    """
    if settings.worker_processes:
        return settings.worker_processes
    return min(max(PROCESSES_MIN, cores(root)), settings.worker_processes_max)


def memory_needed_bytes(process_count: int) -> int:
    """Returns the memory that is needed by a worker with this many pool processes under load."""
    return PARENT_BYTES + process_count * PROCESS_BYTES


def cores(root: Path = Path("/")) -> int:
    """Returns the number of cores that this process may use, at least 1: its CPU affinity or its quota, whichever
    is less.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_cores(root)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def quota_cores(root: Path = Path("/")) -> float | None:
    """Returns the smallest CPU quota of the cgroups that contain this process, in cores. None: no quota."""
    quotas = []
    for group in _groups(root, "cpu"):
        quota, period = [*_read(group / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Returns the smallest memory limit of the cgroups that contain this process, in bytes. None: no limit."""
    limits = []
    for group in _groups(root, "memory"):
        text = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        if text.isdigit() and 0 < int(text) < UNLIMITED_BYTES:
            limits.append(int(text))
    return min(limits, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yields the directories of this process's cgroups, v1 and v2, the innermost first.

    Inside a container, the path in /proc/self/cgroup may be the host's, which is not mounted. In that case, only
    the mount point itself is yielded, which is the container's own group.
    """
    mounts = root / "sys" / "fs" / "cgroup"
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if not controllers:
            mount = mounts
        elif controller in controllers.split(","):
            found = [mounts / controllers, mounts / controller]
            mount = next((place for place in found if place.is_dir()), mounts)
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:depth])


def _read(path: Path) -> str:
    """Returns the file's text; empty if it is missing or unreadable."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
