"""Memory that new processes can have here: what is free, within the limits of control groups."""

import contextlib
from pathlib import Path

import psutil

from testbed.processes import control_groups

_PROC = Path("/proc")


def usable_bytes(proc: Path = _PROC, cgroup: Path = control_groups.ROOT) -> int:
    """How much there is, with what holds files and is given back when it is asked for."""
    found: list[int] = [psutil.virtual_memory().available]
    for group in control_groups.of("memory", proc, cgroup):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found.append(_left(*group))
    return max(0, min(found))


def _left(group: Path, older: bool) -> int:
    """Memory that one group has left; ``older``: of version 1.

    Raises ValueError where it has no limit.
    """
    names = ("limit_in_bytes", "usage_in_bytes") if older else ("max", "current")
    most, taken = (int((group / f"memory.{name}").read_text()) for name in names)
    lines = (group / "memory.stat").read_text().splitlines()
    figures = dict(line.split(maxsplit=1) for line in lines)
    # Of the groups below it too, as the others are.
    files = int(figures["total_inactive_file" if older else "inactive_file"])
    return most - taken + files
