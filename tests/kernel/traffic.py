"""Traffic between two nodes of a network, timed by the kernel and not by a slow interpreter.

A socket stays in the namespace where it was made, so one process sends and receives for all nodes;
arrival times are SO_TIMESTAMPNS, on the clock of ``time.time_ns``.
"""

import contextlib
import os
import select
import socket
import struct
import time
from typing import Any, NamedTuple

from stations import READY, Station

from testbed.links.interface import Network
from testbed.links.linux import namespaces
from testbed.network.topology import Node
from testbed.processes.channel import Channel

LIMIT_S = 30.0
SKIP_S, WINDOW_S = 0.6, 1.8
"""TCP is measured over a window that begins when it has filled the line."""
QUIET_S = 0.4
"""Nothing is waited for longer than this after the last packet."""
UDP_PORT, TCP_PORT = 7100, 7200
RECEIVE_WINDOW_BYTES = 1 << 16
"""Less than any queue here holds: TCP fills the line and loses nothing."""
_STAMP_NS = 35
_NO_CHECK = 11
_RCVBUFFORCE = 33
_BYTES_RECEIVED = 128
"""Where struct tcp_info has them."""
_NUMBER = struct.Struct("!I")
_FILLING = 0x5A


class Arrival(NamedTuple):
    number: int
    delay_ms: float
    at_ms: float
    intact: bool


def udp(network: Network, node: Node, port: int = UDP_PORT) -> socket.socket:
    """A socket of ``node`` that is sent without checksum, so that damage can be seen."""
    namespaces.enter(network.endpoint(node).namespaces)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, _STAMP_NS, 1)
    sock.setsockopt(socket.SOL_SOCKET, _NO_CHECK, 1)
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 16 << 20)
    sock.bind((node.address, port))
    sock.setblocking(False)
    return sock


class Flow:
    """Numbered datagrams from one node to another."""

    def __init__(
        self, network: Network, sender: Node, receiver: Node, port: int = UDP_PORT
    ) -> None:
        self._out = udp(network, sender, port)
        self._in = udp(network, receiver, port)
        self._to = (receiver.address, port)
        self._sent_ns: list[int] = []
        self.arrivals: list[Arrival] = []

    def send(self, count: int, size: int = 1500, gap_s: float = 0.0) -> None:
        """Send IP packets of ``size`` bytes, one every ``gap_s``."""
        filling = bytes([_FILLING]) * (size - 28 - _NUMBER.size)
        began = time.monotonic()
        for number in range(count):
            if gap_s:
                left = began + number * gap_s - time.monotonic()
                if left > 0:
                    time.sleep(left)
            packet = _NUMBER.pack(len(self._sent_ns)) + filling
            self._sent_ns.append(time.time_ns())
            self._out.sendto(packet, self._to)
            if number % 64 == 63:
                self.take()

    def take(self) -> bool:
        """Read what is there; whether something was."""
        before = len(self.arrivals)
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, _ = self._in.recvmsg(2048, 64)
                self.arrivals.append(self._arrival(data, ancillary))
        return len(self.arrivals) > before

    def settle(self, quiet_s: float = QUIET_S) -> list[Arrival]:
        """Every arrival, once nothing has come for ``quiet_s`` or nothing is missing."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            missing = len(self.arrivals) < len(self._sent_ns)
            if not select.select([self._in], [], [], quiet_s if missing else QUIET_S / 4)[0]:
                break
            self.take()
        self._out.close()
        self._in.close()
        return self.arrivals

    def _arrival(self, data: bytes, ancillary: Any) -> Arrival:
        seconds, nanoseconds = struct.unpack("@qq", ancillary[0][2][:16])
        at_ns = seconds * 1_000_000_000 + nanoseconds
        (number,) = _NUMBER.unpack_from(data)
        damaged = number >= len(self._sent_ns) or data.count(_FILLING, _NUMBER.size) != (
            len(data) - _NUMBER.size
        )
        delay_ns = 0 if damaged else at_ns - self._sent_ns[number]
        return Arrival(number, delay_ns / 1e6, at_ns / 1e6, not damaged)


def burst(
    network: Network, sender: Node, receiver: Node, count: int, size: int = 1500, gap_s: float = 0.0
) -> list[Arrival]:
    """What arrives of ``count`` packets."""
    flow = Flow(network, sender, receiver)
    flow.send(count, size, gap_s)
    return flow.settle()


def rate_kbit(arrivals: list[Arrival], frame_bytes: int = 1514) -> float:
    """The line's rate, from the first arrival to the last."""
    return 8 * frame_bytes * (len(arrivals) - 1) / (arrivals[-1].at_ms - arrivals[0].at_ms)


def echo_ms(network: Network, client: Node, server: Node, times: int, gap_s: float) -> list[float]:
    """Round trips of ICMP echoes, which the server's kernel answers."""
    namespaces.enter(network.endpoint(client).namespaces)
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _STAMP_NS, 1)
        sock.settimeout(LIMIT_S)
        for number in range(times):
            head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, number)
            summed = sum(struct.unpack("!4H", head))
            checksum = ~(summed + (summed >> 16)) & 0xFFFF
            sent_ns = time.time_ns()
            sock.sendto(head[:2] + struct.pack("!H", checksum) + head[4:], (server.address, 0))
            _, ancillary, _, _ = sock.recvmsg(2048, 64)
            seconds, nanoseconds = struct.unpack("@qq", ancillary[0][2][:16])
            found.append((seconds * 1_000_000_000 + nanoseconds - sent_ns) / 1e6)
            time.sleep(gap_s)
    return found


def streams(network: Network, pairs: list[tuple[Node, Node]]) -> list[float]:
    """TCP from each pair's first node to its second, all at once; each one's goodput in kbit/s."""
    receivers, senders = [], []
    try:
        for number, (_, receiver) in enumerate(pairs):
            body = _receive(receiver.address, TCP_PORT + number)
            receivers.append(Station(network, receiver, body).ready())
        for number, (sender, receiver) in enumerate(pairs):
            body = _send(receiver.address, TCP_PORT + number)
            senders.append(Station(network, sender, body))
        for station in senders:
            station.ready()
        began_s = time.monotonic() + SKIP_S
        time.sleep(SKIP_S + WINDOW_S)
        for station in receivers:
            station.stop()
        arrivals = [station.result() for station in receivers]
    finally:
        for station in (*senders, *receivers):
            station.close()
    return [_between(seen, began_s, began_s + WINDOW_S) for seen in arrivals]


def _between(progress: list[tuple[float, int]], from_s: float, to_s: float) -> float:
    """kbit/s of what was received between two times."""
    first, last = (
        max(size for at_s, size in progress if at_s < until_s) for until_s in (from_s, to_s)
    )
    return 8e-3 * (last - first) / (to_s - from_s)


def _receive(address: str, port: int) -> Any:
    """How many bytes the kernel had received when, until told to stop."""

    def body(channel: Channel) -> list[tuple[float, int]]:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_WINDOW_BYTES)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.settimeout(LIMIT_S)
            listener.bind((address, port))
            listener.listen()
            channel.send(READY)
            connection, _ = listener.accept()
            connection.settimeout(LIMIT_S)
        found = []
        with connection:
            while not select.select([channel], [], [], 0)[0]:
                connection.recv(1 << 16)
                state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                found.append((time.monotonic(), *struct.unpack_from("=Q", state, _BYTES_RECEIVED)))
        return found

    return body


def _send(address: str, port: int) -> Any:
    def body(channel: Channel) -> None:
        block = bytes(1 << 14)
        with socket.create_connection((address, port), LIMIT_S) as connection:
            channel.send(READY)
            with contextlib.suppress(ConnectionError):
                while True:
                    connection.sendall(block)

    return body
