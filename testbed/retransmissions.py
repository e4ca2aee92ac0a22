"""What TCP has sent again and received, as the kernel tells of a namespace's connections."""

import socket
import struct
import sys
from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_INET_DIAG_INFO = 2
_REQUEST = struct.Struct("=BBBBI48x")
_EXTENSION = 1 << (_INET_DIAG_INFO - 1)
_ESTABLISHED = 1 << 1
_CONNECTED = _ESTABLISHED | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11
"""States: established, FIN_WAIT 1 and 2, CLOSE_WAIT, LAST_ACK, CLOSING."""
_PEER_AT, _MESSAGE_BYTES = 24, 72
_SEGMENTS_AT, _BYTES_AT = 100, 208
"""tcpi_total_retrans and tcpi_bytes_retrans (Linux 4.19 and later) in struct tcp_info."""
_RECEIVED_AT = 128
"""tcpi_bytes_received (Linux 4.1 and later)."""


def by_peer() -> dict[str, list[int]] | None:
    """Peer's address to [segments, payload bytes] that its open connections have sent again.

    Peers to which nothing was sent again are left out. None where this process stands in no
    node's namespace, whose connections alone are meant, or the kernel does not tell.
    """
    found: dict[str, list[int]] = {}
    try:
        for peer, information in connections(_CONNECTED):
            (segments,) = struct.unpack_from("=I", information, _SEGMENTS_AT)
            (size,) = struct.unpack_from("=Q", information, _BYTES_AT)
            if segments:
                sums = found.setdefault(peer, [0, 0])
                sums[0] += segments
                sums[1] += size
    except OSError:
        return None
    return found


def received() -> dict[str, int] | None:
    """Peer's address to the bytes that TCP has delivered over the connections open to it.

    Of the streams: no headers, and nothing twice. None as for ``by_peer``.
    """
    found: dict[str, int] = {}
    try:
        for peer, information in connections(_ESTABLISHED):
            (size,) = struct.unpack_from("=Q", information, _RECEIVED_AT)
            found[peer] = found.get(peer, 0) + size
    except OSError:
        return None
    return found


def connections(states: int) -> Iterator[tuple[str, bytes]]:
    """Peer's address and struct tcp_info of each connection of a node's namespace.

    Raises:
        OSError: this process stands in no node's namespace, or the kernel does not tell.
    """
    if sys.platform != "linux":
        raise OSError("asks the Linux kernel")
    from testbed.links import namespaces, netlink

    socket.if_nametoindex(namespaces.INTERFACE)
    raw = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    )
    with netlink.adopt(raw.detach()) as diagnosis:
        request = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, _EXTENSION, 0, states)
        for message in netlink.dump(diagnosis, _SOCK_DIAG_BY_FAMILY, request):
            information = netlink.attributes(message[_MESSAGE_BYTES:]).get(_INET_DIAG_INFO)
            if information is not None and len(information) >= _BYTES_AT + 8:
                peer = socket.inet_ntoa(bytes(message[_PEER_AT : _PEER_AT + 4]))
                yield peer, bytes(information)
