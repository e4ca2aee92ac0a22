"""Probing with UDP from inside the nodes' namespaces.

One process of a host enters each of its nodes' namespaces in turn and opens a socket there; it
stays in the namespace where it was made, so one loop can speak for all of them. Arrival times are
the kernel's (SO_TIMESTAMPNS), so that a busy host delays the prober and not the measurement. Of two
ends no times are held against each other but where both are here: a ping has its sender's clock, a
burst its taker's.
"""

import contextlib
import math
import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Callable

from testbed.fidelity import paths as probe_paths
from testbed.fidelity.paths import Arrivals, Path
from testbed.links.interface import Network
from testbed.network.direction import MTU_BYTES, Direction
from testbed.network.topology import Plan
from testbed.probing.timestamps import leave_unchecked, open_datagrams, timestamp_ns

PORT = 9
LAST_PACKET_S = 0.3
"""Allowed beyond what the profiles say: lost packets are not waited for longer."""
_UDP_PAYLOAD_BYTES = MTU_BYTES - 28
_HEADER = struct.Struct("!BHI")
_PING, _PONG, _BURST = range(3)


class Ends:
    """Sockets of a host's nodes on some paths, and what has come to them.

    Where a run has one host, that is all of them.
    """

    def __init__(self, plan: Plan, network: Network, paths: list[Path], host: str = "") -> None:
        """Open them. ``paths`` and their order are the same on all hosts."""
        self._paths = paths
        self._server: socket.socket | None = None
        if plan.server.host == host:
            self._server = open_datagrams(network, plan.server, PORT)
        self._clients = {
            index: open_datagrams(network, path.client, PORT)
            for index, path in enumerate(paths)
            if path.client.host == host
        }
        own = [] if self._server is None else [self._server]
        self._sockets = {sock.fileno(): sock for sock in (*own, *self._clients.values())}
        self._address = (plan.server.address, PORT)
        self._index_of = {path.client.address: index for index, path in enumerate(paths)}
        self._index_at = {id(sock): index for index, sock in self._clients.items()}
        self._lines = [dict(path.here.ways) for path in paths]
        self._trips: dict[int, list[float]] = defaultdict(list)
        self._bursts: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        self._sent_ns: dict[tuple[int, int], int] = {}
        self._at_once_ns: dict[tuple[int, str], list[int]] = defaultdict(list)
        self._expected: dict[tuple[int, str], int] = {}

    def ping(self) -> None:
        """Have each client here ping; what comes back later than its time is lost."""
        if not self._clients:
            return
        gap_s = max(probe_paths.ping_gap_s(path) for path in self._paths)
        for number in range(probe_paths.pings(gap_s)):
            for index, sock in self._clients.items():
                self._sent_ns[index, number] = time.time_ns()
                sock.sendto(_HEADER.pack(_PING, index, number), self._address)
            self._drain(gap_s, lambda: False)
        longest_s = max(probe_paths.round_trip_s(path) for path in self._paths)
        self._drain(longest_s + LAST_PACKET_S, lambda: not self._sent_ns)

    def burst(self, group: list[int]) -> None:
        """Send what is sent from here of the bursts of some paths, and take what comes of them.

        Lost packets are not waited for: should one only be late, it is taken in all the same.
        """
        padding = bytes(_UDP_PAYLOAD_BYTES - _HEADER.size)
        for index in group:
            path = self._paths[index]
            client, target = self._clients.get(index), (path.client.address, PORT)
            ends = {"up": (client, self._server, self._address)}
            ends["down"] = (self._server, client, target)
            for way, count in path.bursts().items():
                sender, taker, address = ends[way]
                if taker is not None:
                    self._expected[index, way] = count
                if sender is None:
                    continue
                if dict(path.ways)[way].corrupt_percent:
                    leave_unchecked(sender)
                for number in range(count):
                    self._at_once_ns[index, way].append(time.time_ns())
                    sender.sendto(_HEADER.pack(_BURST, index, number) + padding, address)
        longest_s = max(probe_paths.burst_s(self._paths[index]) for index in group)
        self._drain(longest_s, self._all_came)

    def wait(self) -> None:
        """Take what is still on its way."""
        self._drain(LAST_PACKET_S, self._all_came)

    def serve(self, descriptor: int) -> None:
        """Answer pings, and take what comes, until there is something to read there."""
        self._drain(math.inf, lambda: False, descriptor)

    def arrivals(self) -> list[Arrivals]:
        """Arrivals at the ends here, by path."""
        places = range(len(self._paths))
        return [Arrivals(self._trips[index], dict(self._bursts[index])) for index in places]

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()

    def _drain(self, limit_s: float, finished: Callable[[], bool], also: int | None = None) -> None:
        until_s = time.monotonic() + limit_s
        with contextlib.closing(select.epoll()) as poller:
            for descriptor in self._sockets:
                poller.register(descriptor, select.EPOLLIN)
            if also is not None:
                poller.register(also, select.EPOLLIN)
            while not finished() and (left_s := until_s - time.monotonic()) > 0:
                for descriptor, _ in poller.poll(None if math.isinf(left_s) else left_s):
                    if descriptor == also:
                        return
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            self._take(self._sockets[descriptor])

    def _take(self, sock: socket.socket) -> None:
        data, ancillary, _, (host, _) = sock.recvmsg(2048, 64)
        kind, index, number = _HEADER.unpack_from(data)
        arrived_ns = timestamp_ns(ancillary)
        if kind == _PING and sock is self._server:
            sock.sendto(_HEADER.pack(_PONG, index, number), (host, PORT))
        elif kind == _PONG and (index, number) in self._sent_ns:
            self._trips[index].append((arrived_ns - self._sent_ns.pop((index, number))) / 1e6)
        elif kind == _BURST:
            # A flipped bit may have hit the header: whose it is the addresses tell.
            at_server = sock is self._server
            way = "up" if at_server else "down"
            index = self._index_of.get(host, -1) if at_server else self._index_at[id(sock)]
            sent = self._at_once_ns[index, way]
            if index >= 0 and _is_served(self._lines[index][way], number, arrived_ns, sent):
                self._bursts[index][way].append(arrived_ns)

    def _all_came(self) -> bool:
        for index, way in [
            (index, way)
            for (index, way), count in self._expected.items()
            if len(self._bursts[index][way]) >= count
        ]:
            del self._expected[index, way]
        return not self._expected


def probe(plan: Plan, network: Network, paths: list[Path]) -> list[Arrivals]:
    """Ping over every path, then fill it both ways; what came through each, in their order."""
    with contextlib.closing(Ends(plan, network, paths)) as ends:
        ends.ping()
        # Of as many paths at once as the machine can carry packet by packet.
        for group in probe_paths.groups(paths):
            ends.burst(group)
        ends.wait()
        return ends.arrivals()


def _is_served(line: Direction, number: int, arrived_ns: int, sent_ns: list[int]) -> bool:
    """Whether a packet has waited its turn on the line, and not skipped it."""
    if not line.reorder_percent:
        return True
    if number >= len(sent_ns):
        return False
    return arrived_ns - sent_ns[number] >= 1e6 * (line.delay_ms - line.jitter_ms) / 2
