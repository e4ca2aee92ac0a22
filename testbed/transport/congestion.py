"""Congestion control of TCP connections: which a run's have, and which one a connection uses.

A run pins it, for hosts differ in their default and methods would be ranked by it. Where nodes have
namespaces, their routes say it: a namespace's own default takes only what the host's administrator
allows to everybody, and so does a connection of a node, which has no rights any more.
"""

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from testbed.config_error import ConfigError

DEFAULT = "cubic"
"""What most hosts have."""

_KERNEL = Path("/proc/sys/net/ipv4")
_OPEN = Path("/proc/self/fd")
_NAME_BYTES = 16


def available() -> list[str]:
    """All that this kernel has at present; none where it does not tell."""
    try:
        return (_KERNEL / "tcp_available_congestion_control").read_text().split()
    except OSError:
        return []


def check(name: str, links: str) -> None:
    """Refuse a congestion control that connections over ``links`` cannot have.

    Raises:
        ConfigError: with those that they can.
    """
    if links == "loopback":
        raise ConfigError(
            f"congestion = {name!r}: over loopback links a relay stands in for TCP; take others"
        )
    known = available()
    if name not in known:
        raise ConfigError(
            f"congestion = {name!r}: this kernel has {', '.join(known) or 'none to choose from'}; "
            f"others are modules, as root: modprobe tcp_{name}"
        )


def default() -> tuple[str | None, str | None]:
    """Congestion control where none is asked for, and, where that is not DEFAULT, why."""
    if DEFAULT in available():
        return DEFAULT, None
    try:
        own = (_KERNEL / "tcp_congestion_control").read_text().strip()
    except OSError:
        return None, f"congestion control: this system's own, for it has no choice of {DEFAULT}"
    why = f"this kernel has no {DEFAULT} (as root: modprobe tcp_{DEFAULT})"
    return own, f"congestion control: {own}, the host's own: {why}"


def set_on(descriptor: int, name: str) -> None:
    """Give a TCP socket its congestion control; what a listening one accepts has it too.

    Raises:
        OSError: the kernel refuses it, and the socket has another.
    """
    if used_by(descriptor) == name:
        return
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def used_by(descriptor: int) -> str | None:
    """The congestion control of a TCP socket; None where the system does not tell.

    Raises:
        OSError: the socket is closed.
    """
    if sys.platform != "linux":
        return None
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        name = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_BYTES)
    return name.split(b"\0")[0].decode()


def connections() -> Iterator[int]:
    """Descriptors of this process's TCP connections, whichever library has made them."""
    for descriptor in map(int, os.listdir(_OPEN)):
        # One may close meanwhile.
        with contextlib.suppress(OSError):
            if _is_connection(descriptor):
                yield descriptor


def _is_connection(descriptor: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as found:
        if (found.family, found.type) != (socket.AF_INET, socket.SOCK_STREAM):
            return False
        found.getpeername()
        return True
