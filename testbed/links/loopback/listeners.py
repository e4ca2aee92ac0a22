"""The relay's ports, one for each client to call."""

import contextlib
import errno
import math
import resource
import selectors
import socket
import time
from selectors import EVENT_READ

from testbed import clock
from testbed.links.interface import LinkError
from testbed.links.loopback.connection import Connection, Flow
from testbed.links.loopback.hop import Hop
from testbed.links.loopback.stream import Streams

HOST = "127.0.0.1"
MAX_CONNECTIONS = 16
"""Open at once from one client; more wait to be accepted."""
SILENT_S, CROWDED_S = 30.0, 1.0
"""How long a caller may take to say something, in seconds of the run's clock: a client of the run
does at once. While others wait for its place it may take less."""
LOOK_S = 0.5
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
        self.strangers = self.strangers_bytes = 0
        """Connections that were ended, and what crossed the client's link for them."""
        self._silent: list[tuple[float, int, Connection]] = []
        """Since when, which client's, and the connection."""
        self._look_at = math.inf
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

        connection = self._streams.open(node, client, self._server, ended)
        now = time.monotonic()
        self._silent.append((now, node, connection))
        self._look_at = min(self._look_at, now + LOOK_S)

    def facts(self) -> dict[str, object]:
        """Connections that were taken, and those of them that were nobody's of the run."""
        return {
            "connections": self.opened,
            "strangers": self.strangers,
            "strangers_bytes": self.strangers_bytes,
        }

    def wait_s(self) -> float:
        """Seconds of the machine's until ``look`` is wanted."""
        return self._look_at - time.monotonic()

    def look(self) -> None:
        """End connections that say nothing: whoever may reach a port could fill its places."""
        now = time.monotonic()
        if now < self._look_at:
            return
        left = []
        for since, node, connection in self._silent:
            if connection.closed or connection.up.sent_bytes:
                continue
            crowded = self._open[node] >= self._most_connections
            if now - since < clock.host_s(CROWDED_S if crowded else SILENT_S):
                left.append((since, node, connection))
            elif _has_said(connection):
                # What it says is not read yet, as in an outage.
                left.append((now, node, connection))
            else:
                self.strangers += 1
                self.strangers_bytes += connection.down.sent_bytes
                self._streams.cut(connection)
        self._silent = left
        self._look_at = now + LOOK_S if left else math.inf


def _has_said(connection: Connection) -> bool:
    try:
        return bool(connection.up.source.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


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
