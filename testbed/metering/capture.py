"""Packet capture at nodes' own interfaces, into one pcap file a node.

One process opens a packet socket in every such node's namespace, where a socket stays once it is
made, and writes what they see, with the kernel's times, until it is told to stop.
"""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from testbed import files
from testbed.config_error import in_words
from testbed.links.interface import LinkError, Network
from testbed.metering.pcap import SNAP_BYTES, Writer, packets
from testbed.network.topology import Node
from testbed.probing.timestamps import TIMESTAMP_SPACE, enter, stamp_arrivals, timestamp_ns
from testbed.processes import confinement
from testbed.processes.channel import Channel
from testbed.processes.confinement import Reach
from testbed.processes.worker import Go, NoAnswer, Ready, Worker

FOLDER = "captures"
"""Of a run's folder; a resumed run's has another beside it each time."""
START_LIMIT_S, STOP_LIMIT_S = 30.0, 10.0
FLUSH_S = 1.0
"""A capture that is cut short lacks at most as much."""
BUFFER_BYTES = 32 << 20
"""What the kernel keeps of one interface while this process is busy; beyond it drops packets."""
_MOST_AT_ONCE = 64
"""Packets of one interface before the others have their turn."""
_ETH_P_ALL, _ETH_P_IP = 3, 0x0800
_ARPHRD_ETHER, _ETHERNET_BYTES = 1, 14
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_VNET_HDR = 263, 6, 15
_SO_RCVBUFFORCE = 33
_VNET_BYTES = 10
_READ_BYTES = _VNET_BYTES + _ETHERNET_BYTES + SNAP_BYTES


Opened = Callable[[Sequence[Node]], list[BinaryIO]]


class Captured(msgspec.Struct):
    """The result of a capture."""

    packets: list[int] = []
    """Written, one figure a node."""
    dropped: list[int] = []
    """Seen by the kernel and not written, for want of room; of a burst, once for all of it."""
    failure: str | None = None
    """Why it ended early."""


class Capture:
    """Owns the capturing process. Captures nothing until ``start``."""

    def __init__(
        self, nodes: Sequence[Node], network: Network, opened: Opened, shift_ns: int = 0
    ) -> None:
        """``opened`` opens a file a node, in the capturing process; raises OSError.

        ``shift_ns``: what is added to the machine's time. Forks, so the caller may not have
        threads yet.
        """

        def serve(channel: Channel) -> dict[str, Any]:
            return _serve(nodes, network, opened, shift_ns, channel)

        self._worker = Worker("capture", serve, LinkError)

    def start(self) -> None:
        """Capture from now on.

        Raises:
            LinkError: no packet socket can be had, or no file be written.
        """
        try:
            self._worker.ask(Go(), Ready, START_LIMIT_S)
        except NoAnswer as error:
            raise LinkError(f"capture packets: {error}") from None

    def stop(self) -> Captured:
        """Write what has been seen, end the process and say what there is. Bounded."""
        try:
            return msgspec.convert(self._worker.stop(STOP_LIMIT_S), Captured)
        except NoAnswer as error:
            return Captured(failure=f"the capturing process did not end well: {error}")

    def close(self) -> None:
        """Idempotent."""
        self._worker.close()


class _Tap:
    """One node's packet socket and its file."""

    def __init__(self, network: Network, node: Node, file: BinaryIO, shift_ns: int) -> None:
        from testbed.links.linux.namespaces import INTERFACE

        enter(network.endpoint(node))
        self.writer = Writer(file)
        self._shift_ns = shift_ns
        # Of no protocol, it sees nothing before it is bound.
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setblocking(False)
        self.socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        stamp_arrivals(self.socket)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.socket.bind((INTERFACE, _ETH_P_ALL))

    def take(self, most: int) -> bool:
        """Write at most ``most`` packets or bursts; whether there may be more."""
        for _ in range(most):
            try:
                data, ancillary, _, sender = self.socket.recvmsg(_READ_BYTES, TIMESTAMP_SPACE)
            except BlockingIOError:
                return False
            _, protocol, _, hardware, _ = sender
            if protocol != _ETH_P_IP:
                continue
            time_ns = timestamp_ns(ancillary) + self._shift_ns
            if hardware == _ARPHRD_ETHER:
                data = _without_ethernet(data)
            for packet in packets(data):
                self.writer.write(time_ns, packet)
        return True

    def dropped(self) -> int:
        """Since the beginning; the kernel's own figure begins anew with each reading."""
        statistics = self.socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        _, drops = struct.unpack("=II", statistics)
        return int(drops)


def unused(folder: Path) -> Path:
    """captures, or captures-2 and so on beside those of the parts before a run was resumed."""
    taken = len(list(folder.glob(f"{FOLDER}*")))
    return folder / (f"{FOLDER}-{taken + 1}" if taken else FOLDER)


def in_folder(folder: Path) -> Opened:
    """A file a node in a new folder."""

    def opened(nodes: Sequence[Node]) -> list[BinaryIO]:
        folder.mkdir()
        return [files.created(folder / f"{node.name}.pcap") for node in nodes]

    return opened


def _without_ethernet(data: bytes) -> bytes:
    """A virtio-net header and what follows it, the offsets in it from the IP header on."""
    flags, kind, length, size, start, offset = struct.unpack_from("=BBHHHH", data)
    lengths = (max(0, part - _ETHERNET_BYTES) for part in (length, start))
    length, start = lengths
    header = struct.pack("=BBHHHH", flags, kind, length, size, start, offset)
    return header + data[_VNET_BYTES + _ETHERNET_BYTES :]


def _serve(
    nodes: Sequence[Node], network: Network, opened: Opened, shift_ns: int, channel: Channel
) -> dict[str, Any]:
    """The capturing process, from its start to its end."""
    channel.receive()
    taps: list[_Tap] = []
    try:
        for node, file in zip(nodes, opened(nodes), strict=True):
            taps.append(_Tap(network, node, file, shift_ns))
    except (OSError, LinkError) as error:
        whose = f"{nodes[len(taps)].name}: " if nodes else ""
        raise LinkError(f"{whose}{in_words(error)}") from error
    # A packet socket that is open asks for no capability any more.
    confinement.confine(Reach())
    channel.send(Ready())
    failure = None
    try:
        _capture(taps, channel)
    except OSError as error:
        failure = f"write {FOLDER}: {os.strerror(error.errno or 0)}"
    for tap in taps:
        with contextlib.suppress(OSError):
            tap.writer.close()
    counts = {"packets": [tap.writer.packets for tap in taps]}
    counts["dropped"] = [tap.dropped() for tap in taps]
    if failure is not None:
        # Asked to stop only later; what is not taken until then is no concern of the kernel's.
        for tap in taps:
            tap.socket.close()
        channel.receive()
    return {**counts, "failure": failure}


def _capture(taps: list[_Tap], channel: Channel) -> None:
    """Until told to stop, and then what is there still."""
    poller = select.epoll()
    poller.register(channel.fileno(), select.EPOLLIN)
    by_descriptor = {tap.socket.fileno(): tap for tap in taps}
    for descriptor in by_descriptor:
        poller.register(descriptor, select.EPOLLIN)
    flushed_s = time.monotonic()
    stopping = False
    while not stopping:
        for descriptor, _ in poller.poll(FLUSH_S):
            if descriptor == channel.fileno():
                stopping = True
            else:
                by_descriptor[descriptor].take(_MOST_AT_ONCE)
        if time.monotonic() - flushed_s > FLUSH_S:
            for tap in taps:
                tap.writer.flush()
            flushed_s = time.monotonic()
    deadline_s = time.monotonic() + STOP_LIMIT_S / 2
    for tap in taps:
        while tap.take(_MOST_AT_ONCE) and time.monotonic() < deadline_s:
            pass
