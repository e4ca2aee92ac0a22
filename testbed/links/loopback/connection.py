"""A connection through the relay: its two sockets, and the flow in each direction."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable

from testbed.links.loopback.hop import Hop
from testbed.links.process import DOWN, UP

OPEN, FIN, RESET, DONE = range(4)
"""Of a flow's end: FIN or RESET when that word has come out of the path, DONE when passed on."""


class End:
    """One of a connection's two sockets, and what the selector watches it for."""

    __slots__ = ("inflow", "mask", "outflow", "socket")
    inflow: Flow
    """What is written to the socket."""
    outflow: Flow
    """What is read from it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.mask = 0
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # macOS refuses where the peer has gone again.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Flow:
    """One direction of a connection: from ``source`` over the hops of ``path`` to ``sink``."""

    def __init__(self, owner: Connection, source: End, sink: End, *path: Hop[Flow]) -> None:
        self.connection, self.source, self.sink, self.path = owner, source, sink, path
        source.outflow = sink.inflow = self
        self.unwritten: deque[memoryview] = deque()
        self.unwritten_bytes = 0
        self.segments = 0
        self.sent_bytes = 0
        """That have entered the path, with headers."""
        self.waiting = False
        """A hop has no room and will call."""
        self.ended = False
        """The source has sent its last byte."""
        self.ending = OPEN
        self.broken = False
        """The sink is gone: what still comes is thrown away."""

    def obstacle(self) -> Hop[Flow] | None:
        """A hop that takes nothing of this flow at present, if there is one."""
        for hop in self.path:
            if hop.room <= 0:
                return hop
        for hop in self.sink.outflow.path:
            if hop.outage:
                return hop  # No acknowledgement comes back.
        return None


class Connection:
    """A client's connection and its counterpart to the server; connected once that one is."""

    def __init__(
        self,
        client: End,
        server: End,
        clients: list[Hop[Flow]],
        servers: list[Hop[Flow]],
        ended: Callable[[], None],
    ) -> None:
        """``clients``, ``servers``: hops of the access link at each end; ``ended`` is for who
        wants to know."""
        self.ends, self.ended = (client, server), ended
        self.connected = self.closed = False
        self.up = Flow(self, client, server, clients[UP], servers[DOWN])
        self.down = Flow(self, server, client, servers[UP], clients[DOWN])
