"""Connections that have proved nothing yet, of which there may be so many: more end the oldest.

The one that ends is of the source that has most of them, so that no source takes another's place.
libzmq does not tell which connection has proved itself; the kernel does, by what was sent on it:
a server's greeting and its WELCOME are all that it says before a proof.
"""

import contextlib
import socket
import struct

from testbed.transport import connections
from testbed.transport.connections import Peer

SPARE = 64
"""Beside one for each caller."""
BEFORE_PROOF_BYTES = 64 + 170
"""Greeting, and the frame of a CURVE WELCOME (RFC 26)."""
_SENT, _SENT_AT = struct.Struct("=QQ"), 200
"""tcpi_bytes_sent and, of that, tcpi_bytes_retrans of Linux's struct tcp_info, from 4.19 on."""
_INFO_BYTES = 256


class Unproved:
    """Connections by their descriptors, which stay libzmq's; those that have proved themselves are
    among them until they are looked at."""

    def __init__(self, callers: int) -> None:
        self._most = callers + SPARE
        self._peers: dict[int, Peer] = {}
        self._by_source: dict[str, dict[int, None]] = {}
        """Descriptors in the order in which they came."""

    def add(self, descriptor: int) -> None:
        """One that was taken; one more than there may be ends another."""
        self.discard(descriptor)
        try:
            peer = connections.peer(descriptor)
        except OSError:
            return  # It has ended already.
        self._peers[descriptor] = peer
        self._by_source.setdefault(peer[0], {})[descriptor] = None
        while len(self._peers) > self._most:
            source = max(self._by_source.values(), key=len)
            oldest = next(iter(source))
            _end_unproved(oldest, self._peers[oldest])
            self.discard(oldest)

    def discard(self, descriptor: int) -> None:
        peer = self._peers.pop(descriptor, None)
        if peer is not None:
            own = self._by_source[peer[0]]
            del own[descriptor]
            if not own:
                del self._by_source[peer[0]]


def _end_unproved(descriptor: int, peer: Peer) -> None:
    """End that connection unless it has proved itself, or the descriptor is another's by now."""
    with (
        contextlib.suppress(OSError, ValueError, struct.error),
        connections.borrowed(descriptor) as connection,
    ):
        if connection.getpeername()[:2] != peer:
            return
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        sent, again = _SENT.unpack_from(info, _SENT_AT)
        if sent - again <= BEFORE_PROOF_BYTES:
            connection.shutdown(socket.SHUT_RDWR)
