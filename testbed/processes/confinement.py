"""Confinement of a process once it is set up: it keeps the rights that its work needs, for good.

It gives up its capabilities and all ways to new ones, system calls that it has no use for, and
files and ports that are not its own. A kernel that lacks the one or the other has the rest, and
what it lacks is said.
"""

import contextlib
import ctypes
import os
import struct
import sys
from collections.abc import Collection
from pathlib import Path

import msgspec

from testbed import files
from testbed.processes import call_filter, landlock
from testbed.processes.child import die_with_parent

SYS_ADMIN, NET_ADMIN, NET_BIND_SERVICE = 21, 12, 10
_TO_BE_ANOTHER = 1 << 0 | 1 << 6 | 1 << 7
"""CAP_CHOWN, CAP_SETGID and CAP_SETUID."""
"""Capabilities (capability.h): to enter namespaces; to change links; to take ports below 1024."""
_NO_NEW_PRIVILEGES, _SECURE_BITS, _DROP_BOUND, _KEEP_THEM = 38, 28, 24, 8
_AMBIENT, _CLEAR_ALL = 47, 4
_ROOT_IS_NOBODY = 0xC3
"""SECBIT_NOROOT and NO_CAP_AMBIENT_RAISE, set and locked: nothing comes of being user 0."""
_VERSION_3 = 0x20080522
_SYSTEM = ("/usr", "/lib", "/lib64", "/proc", "/sys", "/etc/ld.so.cache", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

_SET_GROUPS = Path("/proc/self/setgroups")

_libc = ctypes.CDLL(None, use_errno=True)


class Reach(msgspec.Struct, frozen=True):
    """Files and TCP ports that a process has to do with, beside the interpreter's own."""

    reads: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    """Devices, or folders of such, that it reads, writes and calls."""
    folder: Path | None = None
    """Where it makes, changes and removes files. It stands in it: no other way there is needed."""
    listens: tuple[int, ...] | None = None
    """Ports that it takes; None: any."""
    calls: tuple[int, ...] | None = None
    """Ports that it connects to, likewise."""
    signals: bool = False
    """Whether it sends other processes signals."""


class Confined(msgspec.Struct, frozen=True):
    """The state that a process is in, as the kernel says."""

    capabilities: int
    """How many it holds or may be given."""
    no_new_privileges: bool
    seccomp: bool
    """Whether a filter of system calls is on it."""
    landlock: int | None
    """The version that holds it."""
    missing: list[str]
    """What could not be had here, and why."""

    def words(self) -> str:
        """ "no capability, no new privileges, seccomp, landlock 7" """
        count = self.capabilities
        parts = [f"{count or 'no'} {'capability' if count < 2 else 'capabilities'}"]
        parts += ["no new privileges"] if self.no_new_privileges else []
        parts += ["seccomp"] if self.seccomp else []
        parts += [f"landlock {self.landlock}"] if self.landlock else []
        return ", ".join([*parts, *(f"no {each}" for each in self.missing)])


def confine(reach: Reach, keep: Collection[int] = ()) -> Confined:
    """Leave this process, which has one thread, no more than that; what it is then held by.

    ``keep``: capabilities that it goes on to hold.
    """
    parent = os.getppid()
    if reach.folder is not None:
        # Lest what is named from here be looked for there.
        sys.path[:] = [os.path.abspath(each) for each in sys.path]
        os.chdir(reach.folder)
    missing = give_up_capabilities(keep, user())
    # The kernel forgets it with a change of user.
    die_with_parent(parent)
    version = None
    if sys.platform == "linux":
        try:
            reads = {*_interpreter(), *map(Path, _SYSTEM + _DEVICES), *reach.reads}
            writes = {Path("/dev/null"), *([] if reach.folder is None else [Path()])}
            version = landlock.restrict(
                *(reads, writes, reach.listens, reach.calls),
                devices=reach.devices,
                signals=reach.signals,
            )
        except landlock.Unavailable as error:
            missing.append(str(error))
        try:
            call_filter.install()
        except landlock.Unavailable as error:
            missing.append(str(error))
    return _found(version, missing)


def user() -> tuple[int, int] | None:
    """User and group that root, called by ``sudo``, becomes when it is confined; None: it stays.

    Root of a user's own namespace is that user, and can be no other.
    """
    found = files.caller()
    if found is None or _capabilities("CapEff") & _TO_BE_ANOTHER != _TO_BE_ANOTHER:
        return None
    return found if _SET_GROUPS.read_text().strip() == "allow" else None


def give_up_capabilities(
    keep: Collection[int] = (), owner: tuple[int, int] | None = None
) -> list[str]:
    """Hold no other capabilities than those, and gain none by whatever program; what is missing.

    ``owner``: a user and a group, who root is from then on.
    """
    if sys.platform != "linux":
        return [f"capabilities: {sys.platform} has none"]
    missing = []
    had = _capabilities("CapPrm")
    _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    # Refused to who has no CAP_SETPCAP, who has then nothing to give up either.
    _libc.prctl(_SECURE_BITS, _ROOT_IS_NOBODY, 0, 0, 0)
    for number in range(_last_capability() + 1):
        if number not in keep:
            _libc.prctl(_DROP_BOUND, number, 0, 0, 0)
    _libc.prctl(_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    if owner is not None:
        _libc.prctl(_KEEP_THEM, 1, 0, 0, 0)
        try:
            _become(*owner)
        except OSError as error:
            missing.append(f"change of user: {error.strerror}")
        _libc.prctl(_KEEP_THEM, 0, 0, 0, 0)
    held = had & sum(1 << number for number in keep)
    low, high = held & 0xFFFFFFFF, held >> 32
    # struct __user_cap_header_struct and two of __user_cap_data_struct
    header = struct.pack("=Ii", _VERSION_3, 0)
    if _libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)):
        missing.append(f"drop of capabilities: {os.strerror(ctypes.get_errno())}")
    return missing


def _become(owner: int, group: int) -> None:
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(owner, owner, owner)


def hold_only(kept: Collection[int]) -> None:
    """Leave this process no other descriptors than those, and its output.

    The rest, inherited from the process that it was forked from, read from and write to nothing
    from now on. They stay taken, so that an object that has one closes no other's.
    """
    if sys.platform != "linux":
        return
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in (1, 2, nothing) and descriptor not in kept:
            with contextlib.suppress(OSError):
                # The listing's own has gone.
                os.fstat(descriptor)
                os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


def _found(version: int | None, missing: list[str]) -> Confined:
    if sys.platform != "linux":
        return Confined(0, False, False, None, missing)
    gains_none = _status("NoNewPrivs") == "1"
    held = _capabilities("CapPrm") | _capabilities("CapInh") | _capabilities("CapAmb")
    if not gains_none:
        held |= _capabilities("CapBnd")
    return Confined(held.bit_count(), gains_none, _status("Seccomp") == "2", version, missing)


def _capabilities(name: str) -> int:
    return int(_status(name) or "0", 16)


def _status(name: str) -> str | None:
    for line in files.system_lines(Path("/proc/self/status")):
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return None


def _last_capability() -> int:
    try:
        return int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    except (OSError, ValueError):
        return 63


def _interpreter() -> set[Path]:
    """Files and folders of Python's and of all that it may import."""
    named = [*sys.path, sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
    return {Path(each or ".") for each in named}
