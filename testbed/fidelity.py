"""Whether the links of a run are what was asked: probed before training, judged, certified.

One process enters every node's namespace in turn and opens a UDP socket there; a socket stays in
the namespace where it was made, so one loop can speak for all nodes. Pings give each link's round
trip, a burst that its queue can hold gives its rate in each direction. Arrival times are the
kernel's (SO_TIMESTAMPNS), so that a busy host delays the prober and not the measurement.
"""

import contextlib
import math
import os
import select
import socket
import statistics
import struct
import time
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from testbed.channel import Channel, ChannelClosed
from testbed.child import Child
from testbed.links import Network
from testbed.profiles import FRAME_BYTES, MTU_BYTES, Direction
from testbed.topology import Node, Plan

RATE_TOLERANCE = 0.02
"""Of the profile's rate: the gate that every link must keep."""
RTT_TOLERANCE_MS = 2.0
"""Beyond the profile's delays and their jitter."""

PORT = 9
PINGS = 9
PING_GAP_S = 0.02
BURST_S = 0.2
"""A burst is what the line carries in this time, if its queue can hold it."""
MOST_BURST_PACKETS = 2000
LEAST_BURST_PACKETS = 8
LAST_PACKET_S = 0.3
"""Allowed beyond that for the last packet: lost ones are not waited for longer."""
PATIENCE_S = 5.0
"""How long the prober waits beyond what the profiles say it should take."""

_UDP_PAYLOAD_BYTES = MTU_BYTES - 28
_HEADER = struct.Struct("!BHI")
_PING, _PONG, _BURST = range(3)
_PING_FRAME_BYTES = _HEADER.size + 28 + 14
_SO_TIMESTAMPNS = 35


class Check(msgspec.Struct, frozen=True):
    """One gate: an entry of the certificate."""

    name: str
    link: str
    direction: str
    expected: float
    measured: float | None
    """None where nothing came through."""
    unit: str
    tolerance: float
    """In the same unit."""
    ok: bool


class Arrivals(NamedTuple):
    """What one client's link let through."""

    round_trips_ms: list[float]
    bursts_ns: dict[str, list[int]]
    """By direction, arrival times of the packets of a burst, in order."""


class Certificate(msgspec.Struct, frozen=True):
    verdict: str
    """pass, fail or skipped."""
    reason: str
    checks: list[Check]


def burst_packets(direction: Direction) -> int:
    """How many full frames a burst has: none on an unlimited line."""
    if direction.rate_kbit is None or direction.limit_packets is None:
        return 0
    packets = math.ceil(direction.rate_kbit * BURST_S * 1000 / (8 * FRAME_BYTES))
    return max(
        min(packets + _shaken(direction), direction.limit_packets, MOST_BURST_PACKETS),
        min(LEAST_BURST_PACKETS, direction.limit_packets),
    )


def _shaken(direction: Direction) -> int:
    """Packets at the head of a burst whose spacing jitter may still show: until the backlog is
    longer than jitter can be."""
    assert direction.rate_kbit is not None
    return math.ceil(direction.rate_kbit * 2 * direction.jitter_ms / (8 * FRAME_BYTES))


def judge(node: Node, up: Direction, down: Direction, seen: Arrivals) -> list[Check]:
    """Hold what came through ``node``'s link against its profile. Pure."""
    checks = [_judge_round_trip(node, up, down, seen.round_trips_ms)]
    for name, direction in (("up", up), ("down", down)):
        if direction.rate_kbit is not None:
            checks.append(_judge_rate(node, name, direction, seen.bursts_ns.get(name, [])))
    return checks


def _judge_round_trip(node: Node, up: Direction, down: Direction, trips: list[float]) -> Check:
    serialising_ms = sum(
        8 * _PING_FRAME_BYTES / direction.rate_kbit
        for direction in (up, down)
        if direction.rate_kbit
    )
    expected = up.delay_ms + down.delay_ms + serialising_ms
    # A few uniform draws scatter around the middle by as much as the jitter itself.
    tolerance = RTT_TOLERANCE_MS + up.jitter_ms + down.jitter_ms
    measured = statistics.median(trips) if trips else None
    return Check(
        "round trip",
        node.name,
        "both",
        round(expected, 3),
        measured,
        "ms",
        tolerance,
        measured is not None and abs(measured - expected) <= tolerance,
    )


def _judge_rate(node: Node, name: str, direction: Direction, arrivals: list[int]) -> Check:
    assert direction.rate_kbit is not None
    expected, tolerance = direction.rate_kbit, direction.rate_kbit * RATE_TOLERANCE
    steady = arrivals[_shaken(direction) :]
    measured = None
    if len(steady) >= 2 and steady[-1] > steady[0]:
        # Lost packets take no time on the line, so those that came are those it served.
        bits = 8 * FRAME_BYTES * (len(steady) - 1)
        measured = round(bits * 1e6 / (steady[-1] - steady[0]), 3)
    return Check(
        "rate",
        node.name,
        name,
        expected,
        measured,
        "kbit/s",
        tolerance,
        measured is not None and abs(measured - expected) <= tolerance,
    )


def certify(checks: list[Check]) -> Certificate:
    """The verdict in words."""
    failed = [check for check in checks if not check.ok]
    if not checks:
        return Certificate("skipped", "no link has anything to check", [])
    if not failed:
        return Certificate("pass", f"all {len(checks)} checks hold", checks)
    worst = failed[0]
    return Certificate(
        "fail",
        f"{len(failed)} of {len(checks)} checks do not hold, first {worst.link} {worst.name} "
        f"{worst.direction}: {worst.measured} {worst.unit}, expected {worst.expected:g} "
        f"± {worst.tolerance:g}",
        checks,
    )


def reason_to_skip(plan: Plan, network: Network, asked: bool) -> str | None:
    """Why a run's links are not probed, or None where they can be."""
    if not asked:
        return "not asked for (--no-calibrate)"
    if not network.endpoint(plan.server).namespaces:
        return "links without namespaces carry only the nodes' own connections"
    if plan.server.profile is not None:
        return "the clients share the server's link, so that theirs cannot be probed one by one"
    return None


def skipped(reason: str) -> Certificate:
    return Certificate("skipped", reason, [])


class Prober:
    """A process that probes every link of a network; owns that process."""

    def __init__(self, plan: Plan, network: Network) -> None:
        """Start probing."""
        self._plan = plan
        self._channel, theirs = Channel.pair()
        self._limit_s = expected_s(plan) + 2 * PATIENCE_S

        def run() -> None:
            self._channel.close()
            _probe(plan, network, lambda node, seen: theirs.send({"node": node, **seen._asdict()}))

        self._child = Child("prober", run)
        theirs.close()

    def certificate(self) -> Certificate:
        """Wait for the prober to finish and judge what it saw; bounded."""
        seen = {node.index: Arrivals([], {}) for node in self._plan.clients}
        deadline = time.monotonic() + self._limit_s
        with contextlib.suppress(ChannelClosed, TimeoutError):
            while True:
                line = self._channel.receive(max(0.0, deadline - time.monotonic()))
                node = line.pop("node")
                seen[node] = Arrivals(**line)
        checks = []
        for node in self._plan.clients:
            assert node.profile is not None
            checks += judge(node, node.profile.up, node.profile.down, seen[node.index])
        return certify(checks)

    def close(self) -> None:
        self._child.kill()
        self._channel.close()


def expected_s(plan: Plan) -> float:
    """How long probing takes if every link is what was asked."""
    longest = 0.0
    for node in plan.clients:
        assert node.profile is not None
        for direction in (node.profile.up, node.profile.down):
            burst_s = 0.0
            if direction.rate_kbit:
                burst_s = 8 * FRAME_BYTES * burst_packets(direction) / (direction.rate_kbit * 1000)
            longest = max(longest, burst_s + 2 * node.profile.rtt_ms / 1000)
    return PINGS * PING_GAP_S + 2 * longest


def _probe(plan: Plan, network: Network, done: Callable[[int, Arrivals], None]) -> None:
    """Ping every client's link, then fill it both ways; report each client's arrivals."""
    sockets = [_open(network, node) for node in plan.nodes]
    server, clients = sockets[0], sockets[1:]
    address = (plan.server.address, PORT)
    trips: dict[int, list[float]] = defaultdict(list)
    bursts: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    nodes = {node.address: node.index for node in plan.clients}
    sent_ns: dict[tuple[int, int], int] = {}

    def take(sock: socket.socket) -> None:
        data, ancillary, _, (host, _) = sock.recvmsg(2048, 64)
        kind, index, number = _HEADER.unpack_from(data)
        arrived_ns = _timestamp_ns(ancillary)
        if kind == _PING and sock is server:
            server.sendto(_HEADER.pack(_PONG, index, number), (host, PORT))
        elif kind == _PONG and (index, number) in sent_ns:
            trips[index].append((arrived_ns - sent_ns.pop((index, number))) / 1e6)
        elif kind == _BURST:
            way = "up" if sock is server else "down"
            bursts[nodes[host] if way == "up" else index][way].append(arrived_ns)

    def drain(until_s: float, finished: Callable[[], bool]) -> None:
        poller = select.epoll()
        for sock in sockets:
            poller.register(sock.fileno(), select.EPOLLIN)
        by_descriptor = {sock.fileno(): sock for sock in sockets}
        while not finished() and (left_s := until_s - time.monotonic()) > 0:
            for descriptor, _ in poller.poll(left_s):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        take(by_descriptor[descriptor])
        poller.close()

    for number in range(PINGS):
        for node, sock in zip(plan.clients, clients, strict=True):
            sent_ns[node.index, number] = time.time_ns()
            sock.sendto(_HEADER.pack(_PING, node.index, number), address)
        drain(time.monotonic() + PING_GAP_S, lambda: False)
    longest_s = max(node.profile.rtt_ms for node in plan.clients if node.profile) / 1000
    drain(time.monotonic() + longest_s + LAST_PACKET_S, lambda: not sent_ns)

    padding = bytes(_UDP_PAYLOAD_BYTES - _HEADER.size)
    expected = {}
    for node, sock in zip(plan.clients, clients, strict=True):
        assert node.profile is not None
        ways = (
            ("up", node.profile.up, sock, address),
            ("down", node.profile.down, server, (node.address, PORT)),
        )
        for way, direction, sender, target in ways:
            expected[node.index, way] = count = burst_packets(direction)
            for number in range(count):
                sender.sendto(_HEADER.pack(_BURST, node.index, number) + padding, target)

    def all_came() -> bool:
        return all(len(bursts[index][way]) >= count for (index, way), count in expected.items())

    drain(time.monotonic() + expected_s(plan) + LAST_PACKET_S, all_came)
    for node in plan.clients:
        done(node.index, Arrivals(trips[node.index], dict(bursts[node.index])))


def _open(network: Network, node: Node) -> socket.socket:
    """A non-blocking UDP socket in the node's namespace, with arrival times."""
    from testbed.links.namespaces import enter

    user, here = network.endpoint(node).namespaces[:-1], network.endpoint(node).namespaces[-1:]
    if user and os.readlink(f"/proc/self/fd/{user[0]}") != os.readlink("/proc/self/ns/user"):
        enter(user)
    enter(here)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
    sock.bind((node.address, PORT))
    return sock


def _timestamp_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("@qq", data[:16])
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return time.time_ns()
