"""Limits of this machine against the needs of a run of many processes."""

import os
import resource
import sys
from pathlib import Path

from testbed.config_error import ConfigError
from testbed.links.loopback import listeners
from testbed.processes import control_groups

DESCRIPTORS_PER_NODE = 4
SPARE_DESCRIPTORS = 100
TASKS_PER_NODE = 3
"""Its one thread and ZeroMQ's two; the kernel counts each as a process."""
SPARE_TASKS = 100
PORTS_PER_CLIENT = 3
"""Over loopback: the relay's for it, and both ends of a connection that are not a server's."""
SPARE_PORTS = 1000
_CGROUP = control_groups.ROOT


def allow(
    nodes: int, *, streams: bool, what: str | None = None, proc: Path = Path("/proc")
) -> None:
    """Raise this process's limit of open files to what ``nodes`` nodes need, and check the rest.

    Args:
        streams: over loopback, where all nodes share the machine's ports.
        what: asked for them, where it is not a number of clients; a refusal begins with it.
        proc: where the kernel tells its limits.

    Raises:
        ConfigError: a limit is lower than what is needed; which, and how to raise it.
    """
    what = what or f"clients = {nodes - 1}"
    _allow_descriptors(what, nodes, streams)
    _check_tasks(what, nodes, proc)
    if streams:
        _check_ports(what, nodes, proc)


def require_proc(proc: Path = Path("/proc")) -> None:
    """Raises ConfigError: Linux without what it tells of itself and its own processes."""
    if sys.platform != "linux":
        return
    wrong = None
    if not (proc / "self/status").exists():
        wrong = "is not there, or hidden"
    elif os.path.islink(proc / "self") and os.readlink(proc / "self") != str(os.getpid()):
        # A number would be that of a process which nobody has meant.
        wrong = "tells of another namespace's processes"
    if wrong is not None:
        raise ConfigError(f"{proc} {wrong}; mount it with: mount -t proc proc {proc}")


def descriptors(nodes: int, *, streams: bool) -> int:
    """Open files that a run's processes need at most, each."""
    needed = nodes * DESCRIPTORS_PER_NODE + SPARE_DESCRIPTORS
    return max(needed, listeners.least_descriptors(nodes - 1)) if streams else needed


def most_clients(hard: int, *, streams: bool) -> int:
    """The number of clients for which a limit of open files is enough."""
    most = (hard - SPARE_DESCRIPTORS) // DESCRIPTORS_PER_NODE - 1
    if streams:
        most = min(most, listeners.most_clients(hard))
    return max(0, most)


def _allow_descriptors(what: str, nodes: int, streams: bool) -> None:
    needed = descriptors(nodes, streams=streams)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigError(
            f"{what}: needs {needed} open files, the limit here is {hard}; "
            f"raise it with: ulimit -Hn {needed}"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_tasks(what: str, nodes: int, proc: Path) -> None:
    needed = nodes * TASKS_PER_NODE + SPARE_TASKS
    there = _tasks(proc)
    limits = [
        (_number(proc / "sys/kernel/pid_max"), there, "sysctl -w kernel.pid_max={}"),
        (_number(proc / "sys/kernel/threads-max"), there, "sysctl -w kernel.threads-max={}"),
        *_of_cgroups(proc),
    ]
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    for own, remedy in ((hard, "ulimit -Hu {}"), (soft, "ulimit -Su {}")):
        if own != resource.RLIM_INFINITY and os.geteuid() != 0:
            # Of the user's own, whose number is not known: at least these.
            limits.append((own, 0, remedy))
    for limit, used, remedy in limits:
        if limit is not None and used + needed > limit:
            how = remedy.format(used + needed)
            raise ConfigError(
                f"{what}: needs {needed} processes and threads beside the {used} "
                f"there are, the limit here is {limit}; raise it with: {how}"
            )


def _of_cgroups(proc: Path) -> list[tuple[int | None, int, str]]:
    """Limits of the control groups that this process is in."""
    found: list[tuple[int | None, int, str]] = []
    for folder, _ in control_groups.of("pids", proc, _CGROUP):
        if (limit := _number(folder / "pids.max")) is not None:
            used = _number(folder / "pids.current") or 0
            found.append((limit, used, f"echo {{}} > {folder / 'pids.max'}"))
    return found


def _check_ports(what: str, nodes: int, proc: Path) -> None:
    try:
        text = (proc / "sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        return
    first, last = map(int, text.split())
    needed = nodes * PORTS_PER_CLIENT + SPARE_PORTS
    if needed > last - first + 1:
        raise ConfigError(
            f"{what}: needs {needed} ports of 127.0.0.1, the range here has "
            f"{last - first + 1}; widen it with: sysctl -w net.ipv4.ip_local_port_range='1024 "
            f"{min(65535, 1024 + needed)}', or take links with namespaces"
        )


def _tasks(proc: Path) -> int:
    """How many processes and threads the machine has."""
    try:
        return int((proc / "loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, IndexError, ValueError):
        return 0


def _number(file: Path) -> int | None:
    """The number in a file of the kernel; None where there is none, or no limit ("max")."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
