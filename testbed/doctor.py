"""What this machine can do: link backends, privileges, limits; each gap with what closes it."""

import os
import resource
import sys
from pathlib import Path

import msgspec
import psutil
from rich.table import Table

from testbed import kernel_modules
from testbed.limits import DESCRIPTORS_PER_NODE, SPARE_DESCRIPTORS
from testbed.links import choice
from testbed.terminal import styled

RUN_MB = 400
CLIENT_MB = 18
"""Of the machine's memory: a run's own, and each client's; docs/benchmarking.md has the figures."""


class Finding(msgspec.Struct, frozen=True):
    """One line of the table."""

    what: str
    ok: bool
    found: str
    cure: str = ""


def examine() -> list[Finding]:
    """Probe everything; starts no more than the backends' own short probes."""
    return [
        *_backends(),
        *_modules(),
        *_privileges(),
        _congestion(),
        _cores(),
        _memory(),
        _descriptors(),
    ]


def table(findings: list[Finding]) -> Table:
    shown = Table("", "what", "found", "what to do", title="this machine", title_justify="left")
    for finding in findings:
        mark = styled("ok", "green") if finding.ok else styled("gap", "yellow")
        shown.add_row(mark, finding.what, finding.found, finding.cure)
    return shown


def _backends() -> list[Finding]:
    found = []
    for backend in choice.BACKENDS:
        reason = backend.probe()
        cure = "" if reason is None else "--links=auto takes the next that works"
        found.append(
            Finding(f"links: {backend.name}", reason is None, reason or "works here", cure)
        )
    return found


def _modules() -> list[Finding]:
    found = kernel_modules.states()
    if not found:
        return []
    missing = [name for name, state in found.items() if state == kernel_modules.MISSING]
    options = " and ".join(f"{kernel_modules.CONFIGURED_BY[name]}=m" for name in missing)
    cure = f"Ubuntu: apt install linux-modules-extra-$(uname -r); else a kernel with {options}"
    text = ", ".join(f"{name} {state}" for name, state in found.items())
    return [Finding("kernel modules", not missing, text, cure if missing else "")]


def _privileges() -> list[Finding]:
    if sys.platform != "linux":
        return [Finding("namespaces", False, f"{sys.platform} has none", "use --links=loopback")]
    tun = Path("/dev/net/tun")
    if not tun.exists():
        device = Finding(
            "/dev/net/tun",
            False,
            "is not there",
            "modprobe tun; in a container: --device /dev/net/tun",
        )
    else:
        usable = os.access(tun, os.R_OK | os.W_OK)
        device = Finding(
            "/dev/net/tun",
            usable,
            "readable and writable" if usable else "not yours to open",
            "" if usable else "chmod 666 /dev/net/tun, or run as root",
        )
    limit = _read("/proc/sys/user/max_user_namespaces")
    allowed = limit is None or int(limit) > 0
    for switch, refusing in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        if _read(f"/proc/sys/{switch}") == refusing and os.geteuid() != 0:
            name = switch.replace("/", ".")
            other = "1" if refusing == "0" else "0"
            text = f"{name} = {refusing}"
            return [device, Finding("user namespaces", False, text, f"sysctl {name}={other}")]
    namespaces = Finding(
        "user namespaces",
        allowed,
        f"user.max_user_namespaces = {limit or 'not limited'}",
        "" if allowed else "sysctl user.max_user_namespaces=10000",
    )
    return [device, namespaces]


def _congestion() -> Finding:
    default = _read("/proc/sys/net/ipv4/tcp_congestion_control")
    allowed = _read("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
    text = f"default {default}; allowed in a namespace: {allowed}" if default else "not told here"
    return Finding("TCP congestion control", True, text)


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    load = os.getloadavg()[0]
    busy = load > cores / 2
    return Finding(
        "cores",
        not busy,
        f"{cores}, load {load:.1f}",
        "wait until the machine is quieter: clients share its cores" if busy else "",
    )


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    clients = int((memory.available / 1e6 - RUN_MB) / CLIENT_MB)
    enough = memory.available > 1e9
    return Finding(
        "memory",
        enough,
        f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}: "
        f"about {max(0, clients):,} clients",
        "" if enough else f"a run wants about {RUN_MB} MB, and {CLIENT_MB} MB a client",
    )


def _descriptors() -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", True, "not limited")
    clients = (hard - SPARE_DESCRIPTORS) // DESCRIPTORS_PER_NODE - 1
    return Finding(
        "open files",
        clients >= 100,
        f"hard limit {hard}: up to {max(0, clients)} clients",
        "" if clients >= 100 else "ulimit -Hn 65536, as root",
    )


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
