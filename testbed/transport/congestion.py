"""Congestion control of TCP connections: which there are, which one a connection uses.

It is set on each connection and not in a namespace, where the kernel takes only those that the
host's administrator allows to everybody: whoever may administer a connection's namespace, and a
run made them all, may give it any that the kernel has.
"""

import os
import socket
import sys
from pathlib import Path

from testbed.config_error import ConfigError

_AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
_NAME_BYTES = 16


def check(name: str, links: str) -> None:
    """Refuse a congestion control that connections over ``links`` cannot have.

    Raises:
        ConfigError: with those that they can.
    """
    if links == "loopback":
        raise ConfigError(
            f"congestion = {name!r}: over loopback links a relay stands in for TCP; take others"
        )
    known = _AVAILABLE.read_text().split()
    if name not in known:
        raise ConfigError(
            f"congestion = {name!r}: this kernel has {', '.join(known)}; "
            f"others are modules, as root: modprobe tcp_{name}"
        )


def set_on(descriptor: int, name: str) -> None:
    """Give a TCP socket its congestion control; what a listening one accepts has it too.

    Raises:
        OSError: the kernel refuses it.
    """
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
