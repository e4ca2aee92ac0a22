"""Abilities of this machine: link backends, privileges, limits; each gap with what closes it."""

import os
import resource
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec
import psutil
from rich.table import Table

from testbed import extras
from testbed.links import choice
from testbed.links.linux import namespaces
from testbed.machine import kernel_modules
from testbed.machine.limits import most_clients, require_proc
from testbed.processes import cores, free_memory
from testbed.report.terminal import styled
from testbed.transport import congestion

RUN_MB = 240
CLIENT_MB = 20
"""Of the machine's memory: a run's own, and each client's; docs/benchmarking.md has the figures."""

LEAST_NAMESPACES = {"user": 1, "net": 25}
"""For the default run."""


class Finding(msgspec.Struct, frozen=True):
    """One line of the table."""

    what: str
    ok: bool
    found: str
    cure: str = ""


def examine() -> list[Finding]:
    """Probe everything; starts no more than the backends' own short probes.

    Raises:
        ConfigError: this machine tells nothing at all.
    """
    require_proc()
    return [
        *_backends(),
        *_modules(),
        *_privileges(),
        _congestion(),
        _cores(),
        _memory(),
        _descriptors(),
        _training(),
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
    refused = _refusal(namespaces.TUN_PATH)
    device = Finding(
        namespaces.TUN_PATH,
        refused is None,
        refused or "readable and writable",
        ""
        if refused is None
        else "modprobe tun, and run as root or chmod 666 /dev/net/tun; "
        "in a container: --device /dev/net/tun",
    )
    for switch, refusing in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        if _read(f"/proc/sys/{switch}") == refusing and os.geteuid() != 0:
            name = switch.replace("/", ".")
            other = "1" if refusing == "0" else "0"
            text = f"{name} = {refusing}"
            return [device, Finding("user namespaces", False, text, f"sysctl {name}={other}")]
    return [device, _namespaces("user"), _namespaces("net")]


def _namespaces(kind: str) -> Finding:
    limit = _read(f"/proc/sys/user/max_{kind}_namespaces")
    enough = limit is None or int(limit) >= LEAST_NAMESPACES[kind]
    return Finding(
        {"user": "user namespaces", "net": "network namespaces"}[kind],
        enough,
        f"user.max_{kind}_namespaces = {limit or 'not limited'}",
        "" if enough else f"sysctl -w user.max_{kind}_namespaces=10000",
    )


def _congestion() -> Finding:
    known = congestion.available()
    if not known:
        return Finding("TCP congestion control", True, "not told here")
    own, _ = congestion.default()
    there = congestion.DEFAULT in known
    text = f"{', '.join(known)}; runs take {own}"
    cure = "" if there else f"modprobe tcp_{congestion.DEFAULT}, which runs take on other hosts"
    return Finding("TCP congestion control", there, text, cure)


def _cores() -> Finding:
    count = cores.usable()
    load = os.getloadavg()[0]
    busy = load > count / 2
    return Finding(
        "cores",
        not busy,
        f"{count}, load {load:.1f}",
        "wait until the machine is quieter: clients share its cores" if busy else "",
    )


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    free = free_memory.usable_bytes()
    clients = int((free / 1e6 - RUN_MB) / CLIENT_MB)
    enough = free > 1e9
    return Finding(
        "memory",
        enough,
        f"{free / 1e9:.1f} GB free of {memory.total / 1e9:.1f}: about {max(0, clients):,} clients",
        "" if enough else f"a run wants about {RUN_MB} MB, and {CLIENT_MB} MB a client",
    )


def _descriptors() -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", True, "not limited")
    most = {streams: most_clients(hard, streams=streams) for streams in (False, True)}
    enough = min(most.values()) >= 100
    return Finding(
        "open files",
        enough,
        f"hard limit {hard}: up to {most[False]} clients, {most[True]} over loopback",
        "" if enough else "ulimit -Hn 65536, as root",
    )


def _training() -> Finding:
    missing = extras.missing("train")
    found = f"without {', '.join(missing)}" if missing else f"torch {version('torch')}"
    return Finding("launch, bench", not missing, found, extras.install("train") if missing else "")


def _refusal(path: str) -> str | None:
    """Why a device cannot be opened, or None."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    except OSError as error:
        return error.strerror
    return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
