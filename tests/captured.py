"""What is in a pcap file, read by the format's description and by nothing of the project's."""

import socket
import struct
from pathlib import Path
from typing import NamedTuple

ETHERNET_BYTES = 14
"""Which the links count and a file of IP packets lacks."""
FIN_OR_SYN, SYN = 0x03, 0x02


class Packet(NamedTuple):
    time_ns: int
    data: bytes

    @property
    def source(self) -> str:
        return socket.inet_ntoa(self.data[12:16])

    @property
    def destination(self) -> str:
        return socket.inet_ntoa(self.data[16:20])

    @property
    def transport(self) -> bytes:
        return self.data[4 * (self.data[0] & 15) :]

    @property
    def is_tcp(self) -> bool:
        return self.data[9] == 6

    @property
    def sequence(self) -> int:
        return int.from_bytes(self.transport[4:8], "big")

    @property
    def flags(self) -> int:
        return self.transport[13]

    @property
    def payload(self) -> bytes:
        return self.transport[4 * (self.transport[12] >> 4) :]


def read(path: Path) -> list[Packet]:
    """Every packet of a file, the format checked on the way."""
    text = path.read_bytes()
    magic, major, minor, _, _, snap, link = struct.unpack_from("<IHHiIII", text)
    assert (magic, major, minor, link) == (0xA1B23C4D, 2, 4, 101)
    found, at = [], 24
    while at < len(text):
        seconds, nanoseconds, kept, length = struct.unpack_from("<IIII", text, at)
        assert kept == length <= snap and nanoseconds < 1_000_000_000
        data = text[at + 16 : at + 16 + kept]
        assert len(data) == kept == int.from_bytes(data[2:4], "big") and data[0] >> 4 == 4
        found.append(Packet(seconds * 1_000_000_000 + nanoseconds, data))
        at += 16 + kept
    assert at == len(text)
    return found


def wire(packets: list[Packet], client: str) -> dict[str, tuple[int, int]]:
    """Frames and their bytes that the client with this address has sent (up) and received."""
    up = [packet for packet in packets if packet.source == client]
    down = [packet for packet in packets if packet.destination == client]
    assert len(up) + len(down) == len(packets)
    return {
        way: (len(some), sum(len(packet.data) + ETHERNET_BYTES for packet in some))
        for way, some in (("up", up), ("down", down))
    }


def sent_again(packets: list[Packet], sender: str) -> tuple[int, int]:
    """TCP segments, and bytes in them, whose sequence numbers the sender had sent before."""
    ends: dict[tuple[str, bytes], int] = {}
    segments = size = 0
    for packet in packets:
        payload = len(packet.payload) if packet.is_tcp else 0
        if packet.source != sender or not packet.is_tcp:
            continue
        connection = (packet.destination, packet.transport[:4])
        length = payload + bool(packet.flags & FIN_OR_SYN)
        if not length:
            continue
        begins = packet.sequence
        known = ends.get(connection, begins)
        # Sequence numbers wrap.
        ahead = (begins - known + (1 << 31)) % (1 << 32) - (1 << 31)
        if ahead < 0:
            segments += 1
            size += payload
        if ahead + length > 0:
            ends[connection] = (begins + length) % (1 << 32)
    return segments, size


def stream(packets: list[Packet], sender: str) -> bytes:
    """What the sender's only TCP connection carried, put together by sequence numbers."""
    own = [packet for packet in packets if packet.is_tcp and packet.source == sender]
    (first,) = {packet.sequence for packet in own if packet.flags & SYN}
    parts = {(p.sequence - first - 1) % (1 << 32): p.payload for p in own if p.payload}
    found = bytearray()
    for begins, payload in sorted(parts.items()):
        assert begins <= len(found), "a gap"
        found[begins : begins + len(payload)] = payload
    return bytes(found)


def checksums_hold(packet: Packet) -> bool:
    """IP's own (RFC 791) and TCP's with its pseudo-header (RFC 9293)."""
    header = packet.data[: 4 * (packet.data[0] & 15)]
    body = packet.transport
    pseudo = packet.data[12:20] + struct.pack("!HH", packet.data[9], len(body))
    return _sum(header) == 0xFFFF and _sum(pseudo + body + bytes(len(body) % 2)) == 0xFFFF


def _sum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total
