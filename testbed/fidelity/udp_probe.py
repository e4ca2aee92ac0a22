"""Probing with UDP from inside the nodes' namespaces.

One process enters every node's namespace in turn and opens a socket there; a socket stays in the
namespace where it was made, so one loop can speak for all nodes. Arrival times are the kernel's
(SO_TIMESTAMPNS), so that a busy host delays the prober and not the measurement.
"""

import contextlib
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


def probe(plan: Plan, network: Network, paths: list[Path]) -> list[Arrivals]:
    """Ping over every path, then fill it both ways; what came through each, in their order."""
    server = open_datagrams(network, plan.server, PORT)
    clients = [open_datagrams(network, path.client, PORT) for path in paths]
    address = (plan.server.address, PORT)
    trips: dict[int, list[float]] = defaultdict(list)
    bursts: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    sent_ns: dict[tuple[int, int], int] = {}
    at_once_ns: dict[tuple[int, str], list[int]] = defaultdict(list)
    index_of = {path.client.address: index for index, path in enumerate(paths)}
    index_at = {id(sock): index for index, sock in enumerate(clients)}
    lines = [dict(path.here.ways) for path in paths]

    def take(sock: socket.socket) -> None:
        data, ancillary, _, (host, _) = sock.recvmsg(2048, 64)
        kind, index, number = _HEADER.unpack_from(data)
        arrived_ns = timestamp_ns(ancillary)
        if kind == _PING and sock is server:
            server.sendto(_HEADER.pack(_PONG, index, number), (host, PORT))
        elif kind == _PONG and (index, number) in sent_ns:
            trips[index].append((arrived_ns - sent_ns.pop((index, number))) / 1e6)
        elif kind == _BURST:
            # A flipped bit may have hit the header: whose it is the addresses tell.
            way = "up" if sock is server else "down"
            index = index_of.get(host, -1) if sock is server else index_at[id(sock)]
            sent = at_once_ns[index, way]
            if index >= 0 and _is_served(lines[index][way], number, arrived_ns, sent):
                bursts[index][way].append(arrived_ns)

    def drain(until_s: float, finished: Callable[[], bool]) -> None:
        poller = select.epoll()
        by_descriptor = {sock.fileno(): sock for sock in (server, *clients)}
        for descriptor in by_descriptor:
            poller.register(descriptor, select.EPOLLIN)
        while not finished() and (left_s := until_s - time.monotonic()) > 0:
            for descriptor, _ in poller.poll(left_s):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        take(by_descriptor[descriptor])
        poller.close()

    # 1. Pings: what comes back later than its time is lost.
    gap_s = max(probe_paths.ping_gap_s(path) for path in paths)
    for number in range(probe_paths.pings(gap_s)):
        for index, sock in enumerate(clients):
            sent_ns[index, number] = time.time_ns()
            sock.sendto(_HEADER.pack(_PING, index, number), address)
        drain(time.monotonic() + gap_s, lambda: False)
    longest_s = max(probe_paths.round_trip_s(path) for path in paths)
    drain(time.monotonic() + longest_s + LAST_PACKET_S, lambda: not sent_ns)
    # 2. Bursts, of as many paths at once as the machine can carry packet by packet.
    for path, sock in zip(paths, clients, strict=True):
        for one, (_, line) in ((sock, path.ways[0]), (server, path.ways[1])):
            if line.corrupt_percent:
                leave_unchecked(one)
    padding = bytes(_UDP_PAYLOAD_BYTES - _HEADER.size)
    expected: dict[tuple[int, str], int] = {}

    def all_came() -> bool:
        for index, way in [
            (index, way)
            for (index, way), count in expected.items()
            if len(bursts[index][way]) >= count
        ]:
            del expected[index, way]
        return not expected

    for group in probe_paths.groups(paths):
        for index in group:
            path, sock = paths[index], clients[index]
            ends = {"up": (sock, address), "down": (server, (path.client.address, PORT))}
            for way, count in path.bursts().items():
                sender, target = ends[way]
                expected[index, way] = count
                for number in range(count):
                    at_once_ns[index, way].append(time.time_ns())
                    sender.sendto(_HEADER.pack(_BURST, index, number) + padding, target)
        # Lost packets are not waited for: should one only be late, it is taken in all the same.
        longest_s = max(probe_paths.burst_s(paths[index]) for index in group)
        drain(time.monotonic() + longest_s, all_came)
    drain(time.monotonic() + LAST_PACKET_S, all_came)
    for sock in (server, *clients):
        sock.close()
    return [Arrivals(trips[index], dict(bursts[index])) for index in range(len(paths))]


def _is_served(line: Direction, number: int, arrived_ns: int, sent_ns: list[int]) -> bool:
    """Whether a packet has waited its turn on the line, and not skipped it."""
    if not line.reorder_percent:
        return True
    if number >= len(sent_ns):
        return False
    return arrived_ns - sent_ns[number] >= 1e6 * (line.delay_ms - line.jitter_ms) / 2
