"""Cores that this process may keep busy: those it may run on, within its control groups' quotas."""

import contextlib
import os
import sys
from pathlib import Path

from testbed.processes import control_groups

_PROC = Path("/proc")


def usable(proc: Path = _PROC, cgroup: Path = control_groups.ROOT) -> int:
    """How many there are, at least 1: a container's quota of 1.5 cores is one."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    found = float(len(os.sched_getaffinity(0)))
    return max(1, int(min([found, *_quotas(proc, cgroup)])))


def words() -> str:
    """ "2 cores" """
    count = usable()
    return f"{count} core{'' if count == 1 else 's'}"


def _quotas(proc: Path, cgroup: Path) -> list[float]:
    """Cores that each control group of this process may use, where it is limited."""
    found: list[float] = []
    for group in control_groups.of("cpu", proc, cgroup):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            found.append(_quota(*group))
    return found


def _quota(group: Path, older: bool) -> float:
    """Cores of one group; ``older``: of version 1. Raises ValueError where it has no limit."""
    if older:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
    else:
        quota, period = map(int, (group / "cpu.max").read_text().split())
    if quota <= 0:
        raise ValueError("no limit")
    return quota / period
