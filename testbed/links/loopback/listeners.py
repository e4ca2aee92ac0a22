"""The relay's ports, one for each client to call."""

import contextlib
import errno
import resource
import selectors
import socket
from selectors import EVENT_READ

from testbed.links.interface import LinkError
from testbed.links.loopback.connection import Flow
from testbed.links.loopback.hop import Hop
from testbed.links.loopback.stream import Streams

HOST = "127.0.0.1"
MAX_CONNECTIONS = 16
"""Open at once from one client; more wait to be accepted."""
SPARE_DESCRIPTORS = 256


class Listeners:
    """Takes each client's connections and calls the server for them."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        streams: Streams,
        hops: list[list[Hop[Flow]]],
        server: tuple[str, int],
    ) -> None:
        """``server``: where it listens."""
        self._selector, self._streams, self._hops = selector, streams, hops
        self._most_connections = allowed_connections(len(hops) - 1)
        self.opened = 0
        self._open = [0 for _ in hops]
        self._server = server
        self._listeners: dict[int, socket.socket] = {}
        self._listening = [False for _ in hops]
        for node in range(1, len(hops)):
            self._listeners[node] = socket.create_server((HOST, 0))
            self._listeners[node].setblocking(False)
            self.listen(node)

    @property
    def ports(self) -> list[int]:
        """The ports that clients call."""
        return [sock.getsockname()[1] for sock in self._listeners.values()]

    def listen(self, node: int) -> None:
        """Take a client's connections while it may have more and no outage is on their way.

        Until then they wait in the kernel, as a connection does whose SYN finds no way through.
        """
        outage = any(hop.outage for hop in (*self._hops[0], *self._hops[node]))
        wanted = self._open[node] < self._most_connections and not outage
        if wanted and not self._listening[node]:
            self._selector.register(self._listeners[node], EVENT_READ, node)
        elif self._listening[node] and not wanted:
            self._selector.unregister(self._listeners[node])
        self._listening[node] = wanted

    def accept(self, node: int) -> None:
        """Take a client's connection and begin its counterpart to the server."""
        try:
            client, _ = self._listeners[node].accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise LinkError(f"accept a connection of node {node}: {error.strerror}") from error
            return  # It has gone again.
        self.opened += 1
        self._open[node] += 1
        self.listen(node)

        def ended() -> None:
            self._open[node] -= 1
            self.listen(node)

        self._streams.open(node, client, self._server, ended)


def least_descriptors(clients: int) -> int:
    """Open files that the relay needs: a port and one connection's two ends for each client."""
    return SPARE_DESCRIPTORS + 3 * clients


def most_clients(descriptors: int) -> int:
    return (descriptors - SPARE_DESCRIPTORS) // 3


def allowed_connections(clients: int) -> int:
    """Connections at once for each client that the limit on open files leaves, once raised.

    Raises:
        LinkError: not even one.
    """
    wanted = SPARE_DESCRIPTORS + clients * (1 + 2 * MAX_CONNECTIONS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MAX_CONNECTIONS
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit of its own.
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    allowed = ((soft - SPARE_DESCRIPTORS) // clients - 1) // 2
    if allowed < 1:
        needed = least_descriptors(clients)
        raise LinkError(f"relay {clients} clients: {needed} open files needed, {soft} allowed")
    return min(MAX_CONNECTIONS, allowed)
