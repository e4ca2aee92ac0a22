"""Control groups that this process is in, of either version, from its own one to the topmost."""

from pathlib import Path
from typing import NamedTuple

from testbed import files

ROOT = Path("/sys/fs/cgroup")


class Group(NamedTuple):
    """A control group."""

    folder: Path
    """Where its files are, if they are where usual."""
    older: bool
    """Whether it is of version 1."""


def of(controller: str, proc: Path = Path("/proc"), root: Path = ROOT) -> list[Group]:
    """Groups that may limit what ``controller`` controls; none where the system does not tell."""
    found: list[Group] = []
    try:
        lines = files.system_lines(proc / "self/cgroup")
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        folder = top / path.lstrip("/")
        # A container may show its own group as the topmost one.
        above = [each for each in folder.parents if each == top or top in each.parents]
        found += [Group(each, bool(controllers)) for each in (folder, *above)]
    return found
