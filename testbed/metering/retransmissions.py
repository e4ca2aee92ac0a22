"""Retransmissions and receptions of a namespace's TCP connections, as the kernel counts them."""

import socket
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_INET_DIAG_INFO = 2
_REQUEST = struct.Struct("=BBBBI48x")
_EXTENSION = 1 << (_INET_DIAG_INFO - 1)
_CONNECTED = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11
"""States: established, FIN_WAIT 1 and 2, CLOSE_WAIT, LAST_ACK, CLOSING."""
_PEER_AT, _COOKIE_AT, _MESSAGE_BYTES = 24, 44, 72
_SEGMENTS_AT, _BYTES_AT = 100, 208
"""tcpi_total_retrans and tcpi_bytes_retrans (Linux 4.19 and later) in struct tcp_info."""
_RECEIVED_AT = 128
"""tcpi_bytes_received (Linux 4.1 and later)."""


class Connection(NamedTuple):
    """One of a node's namespace, as the kernel tells of it."""

    cookie: bytes
    """No other connection of this kernel has it, nor will have."""
    peer: str
    """The address."""
    information: bytes
    """struct tcp_info."""


class _Counts(NamedTuple):
    peer: str
    segments: int
    bytes: int
    received: int


_seen: dict[bytes, _Counts] = {}
"""Of each connection that this process has seen, as it was last: one that has closed since still
counts."""


def by_peer() -> dict[str, list[int]] | None:
    """Peer's address to [segments, payload bytes] that connections to it have sent again.

    Of each connection that this process has ever seen here, so that nothing in it becomes less.
    Peers to which nothing was sent again are left out. None where this process stands in no
    node's namespace, whose connections alone are meant, or the kernel does not tell.
    """
    if not _look():
        return None
    found: dict[str, list[int]] = {}
    for counts in _seen.values():
        if counts.segments:
            sums = found.setdefault(counts.peer, [0, 0])
            sums[0] += counts.segments
            sums[1] += counts.bytes
    return found


def received() -> dict[str, int] | None:
    """Peer's address to the bytes that TCP has delivered over connections with it.

    Of the streams: no headers, and nothing twice. Otherwise as ``by_peer``.
    """
    if not _look():
        return None
    found: dict[str, int] = {}
    for counts in _seen.values():
        found[counts.peer] = found.get(counts.peer, 0) + counts.received
    return found


def _look() -> bool:
    """Take in how the open connections are now; whether the kernel tells."""
    try:
        for cookie, peer, information in connections():
            (segments,) = struct.unpack_from("=I", information, _SEGMENTS_AT)
            (size,) = struct.unpack_from("=Q", information, _BYTES_AT)
            (taken,) = struct.unpack_from("=Q", information, _RECEIVED_AT)
            _seen[cookie] = _Counts(peer, segments, size, taken)
    except OSError:
        return False
    return True


def connections() -> Iterator[Connection]:
    """The open connections of a node's namespace.

    Raises:
        OSError: this process stands in no node's namespace, or the kernel does not tell.
    """
    if sys.platform != "linux":
        raise OSError("asks the Linux kernel")
    from testbed.links.linux import namespaces, netlink

    socket.if_nametoindex(namespaces.INTERFACE)
    raw = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    )
    with netlink.adopt(raw.detach()) as diagnosis:
        request = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, _EXTENSION, 0, _CONNECTED)
        for message in netlink.dump(diagnosis, _SOCK_DIAG_BY_FAMILY, request):
            information = netlink.attributes(message[_MESSAGE_BYTES:]).get(_INET_DIAG_INFO)
            if information is not None and len(information) >= _BYTES_AT + 8:
                peer = socket.inet_ntoa(bytes(message[_PEER_AT : _PEER_AT + 4]))
                cookie = bytes(message[_COOKIE_AT : _COOKIE_AT + 8])
                yield Connection(cookie, peer, bytes(information))
