"""UDP probes as bodies of processes that stand in a node's namespaces: send, take, ping, echo.

Every packet has a checksum of its own, so that one with a flipped bit can be counted where UDP's is
off. The sender's stamp and the kernel's time of arrival are of one clock.
"""

import contextlib
import ctypes
import select
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from testbed.calibration.probes import Pings, Stream
from testbed.calibration.sizing import PROBE_BYTES
from testbed.links.interface import Network
from testbed.network.topology import Node
from testbed.probing.timestamps import leave_unchecked, open_datagrams, timestamp_ns
from testbed.processes.channel import Channel
from testbed.processes.worker import Ready

Body = Callable[[Channel], dict[str, Any]]

UDP_IP_BYTES = 28
ANY_PORT = 0
BEHIND_S = 0.05
"""How much a sender that keeps a line full may catch up."""
BATCHES_PER_S = 1000.0
_CHECKSUM = struct.Struct("!I")
_STAMP = struct.Struct("!HIQq")
"""Tag, number, when it was sent, and in an answer how long the question took; all times in ns."""
_SO_RXQ_OVFL = 40
_UDP_SEGMENT = 103
_MOST_SEGMENTS = 64
_MOST_UDP_BYTES = 65_507
_PR_SET_TIMERSLACK = 29
_MOST_BYTES = 2048
_ANCILLARY_BYTES = 128


def sender(network: Network, node: Node, to: tuple[str, int], tag: int, stream: Stream) -> Body:
    """Send ``stream`` when told to; returns how many packets were "sent"."""

    def body(channel: Channel) -> dict[str, Any]:
        sock = _open(network, node, ANY_PORT, stream.unchecked)
        sock.setblocking(True)
        padding = bytes(stream.packet_bytes - PROBE_BYTES)
        at_once = _segments(sock, stream)
        _sleep_precisely()
        channel.send(Ready())
        channel.receive()
        number = 0
        for batch in _batches(stream):
            for start in range(number, number + batch, at_once):
                numbers = range(start, min(start + at_once, number + batch))
                sock.sendto(b"".join([_packet(tag, one, 0, padding) for one in numbers]), to)
            number += batch
        return {"sent": number}

    return body


def _segments(sock: socket.socket, stream: Stream) -> int:
    """How many packets the kernel makes of what is sent at once: a call a packet would be too slow
    to fill a fast line. The kernel wants UDP's checksum for it."""
    payload = stream.packet_bytes - UDP_IP_BYTES
    if stream.unchecked:
        return 1
    try:
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, payload)
    except OSError:
        return 1
    return max(1, min(_MOST_SEGMENTS, _MOST_UDP_BYTES // payload))


def _batches(stream: Stream) -> Iterator[int]:
    """How many packets to send next, each time that it is time."""
    due = time.monotonic()
    if stream.fill:
        yield stream.fill
    # Packets to be counted come one by one and never closer than planned: they would meet in the
    # line. What keeps a line full may come in lumps, and make up for a pause.
    size, behind_s = 1, 0.0
    if stream.purpose != "shares":
        size, behind_s = max(1, round(stream.per_second / BATCHES_PER_S)), BEHIND_S
    for sent in range(0, stream.paced, size):
        due = max(due, time.monotonic() - behind_s) + size / stream.per_second
        time.sleep(max(0.0, due - time.monotonic()))
        yield min(size, stream.paced - sent)


def receiver(network: Network, node: Node, port: int, tag: int) -> Body:
    """Take what arrives with ``tag`` until told to stop.

    Returns the packets in the order of their arrival: "numbers", "delays_ns" and "arrived_ns"; and
    how many were "corrupt", and how many "overflowed" this socket.
    """

    def body(channel: Channel) -> dict[str, Any]:
        sock = _open(network, node, port)
        channel.send(Ready())
        numbers, delays, times = [], [], []
        corrupt = overflowed = 0
        for data, ancillary, _ in _arriving(channel, sock):
            arrived_ns = timestamp_ns(ancillary)
            overflowed = max(overflowed, _overflowed(ancillary))
            found = _read(data)
            if found is None:
                corrupt += 1
            elif found[0] == tag:
                numbers.append(found[1])
                delays.append(arrived_ns - found[2])
                times.append(arrived_ns)
        return {
            "numbers": numbers,
            "delays_ns": delays,
            "arrived_ns": times,
            "corrupt": corrupt,
            "overflowed": overflowed,
        }

    return body


def echo(network: Network, node: Node, port: int, tag: int) -> Body:
    """Answer pings until told to stop; returns nothing."""

    def body(channel: Channel) -> dict[str, Any]:
        sock = _open(network, node, port)
        _sleep_precisely()
        channel.send(Ready())
        for data, ancillary, asker in _arriving(channel, sock):
            found = _read(data)
            if found is not None and found[0] == tag:
                took_ns = timestamp_ns(ancillary) - found[2]
                sock.sendto(_packet(tag, found[1], took_ns, b""), asker)
        return {}

    return body


def pinger(network: Network, node: Node, to: tuple[str, int], tag: int, pings: Pings) -> Body:
    """Send ``pings`` when told to.

    Returns how many were "sent", how many answers "came", and of each that was answered the time
    up and down: [up_ns, down_ns]. The time that the other end took to answer is in neither.
    """

    def body(channel: Channel) -> dict[str, Any]:
        sock = _open(network, node, ANY_PORT)
        _sleep_precisely()
        channel.send(Ready())
        channel.receive()
        trips: dict[int, tuple[int, int]] = {}
        came = 0
        poller = select.poll()
        poller.register(sock, select.POLLIN)

        def listen(until_s: float) -> None:
            nonlocal came
            while (left_s := until_s - time.monotonic()) > 0:
                # poll counts in milliseconds; what is left of one is slept.
                if not poller.poll(int(1000 * left_s)):
                    time.sleep(max(0.0, min(0.001, until_s - time.monotonic())))
                    continue
                with contextlib.suppress(BlockingIOError):
                    data, ancillary, _, _ = sock.recvmsg(_MOST_BYTES, _ANCILLARY_BYTES)
                    found = _read(data)
                    if found is not None and found[0] == tag:
                        came += 1
                        trips.setdefault(found[1], (found[3], timestamp_ns(ancillary) - found[2]))

        for number in range(pings.count):
            sock.sendto(_packet(tag, number, 0, b""), to)
            listen(time.monotonic() + pings.gap_s)
        ends_s = time.monotonic() + pings.settle_s
        while len(trips) < pings.count and time.monotonic() < ends_s:
            listen(min(ends_s, time.monotonic() + 0.05))
        return {"sent": pings.count, "came": came, "trips_ns": list(trips.values())}

    return body


def _open(network: Network, node: Node, port: int, unchecked: bool = False) -> socket.socket:
    sock = open_datagrams(network, node, port)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
    leave_unchecked(sock, unchecked)
    return sock


def _sleep_precisely() -> None:
    """The kernel's default has sleeps end up to 50 µs late."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def _packet(tag: int, number: int, took_ns: int, padding: bytes) -> bytes:
    body = _STAMP.pack(tag, number, time.time_ns(), took_ns) + padding
    return _CHECKSUM.pack(zlib.crc32(body)) + body


def _read(data: bytes) -> tuple[int, int, int, int] | None:
    """Tag, number, when it was sent and how long its question took; None where a bit flipped."""
    if len(data) < PROBE_BYTES - UDP_IP_BYTES:
        return None
    if zlib.crc32(memoryview(data)[_CHECKSUM.size :]) != _CHECKSUM.unpack_from(data)[0]:
        return None
    tag, number, sent_ns, took_ns = _STAMP.unpack_from(data, _CHECKSUM.size)
    return tag, number, sent_ns, took_ns


def _arriving(
    channel: Channel, sock: socket.socket
) -> Iterator[tuple[bytes, list[tuple[int, int, bytes]], Any]]:
    """Each datagram; ends once told to stop, with what is there by then."""
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    poller.register(sock, select.POLLIN)
    stopping = False
    while not stopping:
        stopping = channel.fileno() in [descriptor for descriptor, _ in poller.poll()]
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, asker = sock.recvmsg(_MOST_BYTES, _ANCILLARY_BYTES)
                yield data, ancillary, asker


def _overflowed(ancillary: list[tuple[int, int, bytes]]) -> int:
    """How many packets this socket has had no room for."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_RXQ_OVFL:
            return int(struct.unpack("@I", data[:4])[0])
    return 0
