"""Sockets for probes, in any node's namespace and with the kernel's arrival times."""

import contextlib
import os
import socket
import struct
import sys
import time

from testbed.links.interface import Endpoint, Network
from testbed.network.topology import Node

BUFFER_BYTES = 8 << 20
TIMESTAMP_SPACE = 64
"""Bytes of ancillary data that ``recvmsg`` needs for ``timestamp_ns``."""
_SO_TIMESTAMPNS = 35
_SO_NO_CHECK = 11


def listen(server: Endpoint) -> socket.socket:
    """A socket that listens where clients call the server, rid of calls that nobody has taken."""
    if server.listener is None:
        return socket.create_server((server.host, server.port))
    found = socket.socket(fileno=os.dup(server.listener))
    found.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            found.accept()[0].close()
    return found


def enter(endpoint: Endpoint) -> None:
    """Move this process into an endpoint's namespaces, if it has any, from those of another."""
    if not endpoint.namespaces:
        return
    from testbed.links.linux import namespaces

    user, here = endpoint.namespaces[:-1], endpoint.namespaces[-1:]
    if user and os.readlink(f"/proc/self/fd/{user[0]}") != os.readlink("/proc/self/ns/user"):
        namespaces.enter(user)
    namespaces.enter(here)


def open_datagrams(network: Network, node: Node, port: int) -> socket.socket:
    """A non-blocking UDP socket of ``node``; this process moves into the node's namespaces.

    Raises:
        OSError: the port is taken.
    """
    enter(network.endpoint(node))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    stamp_arrivals(sock)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    sock.bind((node.address, port))
    return sock


def leave_unchecked(sock: socket.socket, unchecked: bool = True) -> None:
    """Send without UDP's checksum: packets with a flipped bit arrive, and can be counted."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, unchecked)


def stamp_arrivals(sock: socket.socket) -> None:
    """Have ``recvmsg`` say when the kernel took in what it returns, of a stream the last of it."""
    if sys.platform == "linux":
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def timestamp_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    """When the kernel took data in, on the clock of ``time.time_ns``; now if it does not tell."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("@qq", data[:16])
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return time.time_ns()
