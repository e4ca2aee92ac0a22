"""Bursts as a TUN device with offload hands packets over and takes them.

The kernel puts a virtio-net header (struct virtio_net_hdr, 10 bytes) before each packet. It says
whether the checksum is still to be completed, and of a burst how much payload each segment has. On
a network every segment of a burst has Ethernet, IP and TCP headers of its own, so each counts as a
frame with its headers.
"""

import struct
from random import Random

from testbed.network.direction import FRAME_OVERHEAD_BYTES

VNET_BYTES = 10
"""Before every packet that a device hands over or takes."""
MAX_READ_BYTES = VNET_BYTES + 65_535
DESTINATION = slice(VNET_BYTES + 16, VNET_BYTES + 20)
"""The receiver's IPv4 address."""
PACKET_TO_FRAME_BYTES = FRAME_OVERHEAD_BYTES - VNET_BYTES
"""From the length of what a device hands over to that of its frame, where it is no burst."""
GSO_TYPE = 1
"""Where the virtio-net header says that this is a burst: other than 0."""

_VNET = struct.Struct("=BBHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, in the machine's byte order."""
_NEEDS_CHECKSUM, _TCP4 = 1, 1
_TCP_CHECKSUM_AT = 16
"""In the TCP header."""
_TCP = 6
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_SHORT, _SHORTS, _LONG = struct.Struct("!H"), struct.Struct("!HH"), struct.Struct("!I")


class Burst:
    """Segments of one TCP connection that follow each other, all full except maybe the last."""

    __slots__ = (
        "_payload_at",
        "_segment_bytes",
        "_sums",
        "_tcp_at",
        "data",
        "destination",
        "frame_bytes",
        "frames",
        "last_frame_bytes",
    )

    def __init__(self, data: bytes) -> None:
        """``data`` is what a device has handed over, with its GSO_TYPE set."""
        self.data = data
        self.destination = data[DESTINATION]
        self._segment_bytes = segment_bytes = _VNET.unpack_from(data)[3]
        self._tcp_at = tcp_at = VNET_BYTES + 4 * (data[VNET_BYTES] & 15)
        self._payload_at = payload_at = tcp_at + 4 * (data[tcp_at + 12] >> 4)
        payload_bytes = len(data) - payload_at
        self.frames = -(-payload_bytes // segment_bytes)
        headers_bytes = payload_at + PACKET_TO_FRAME_BYTES
        self.frame_bytes = headers_bytes + segment_bytes
        """Of every frame but the last."""
        self.last_frame_bytes = headers_bytes + payload_bytes - (self.frames - 1) * segment_bytes
        self._sums: tuple[int, int] | None = None

    def buffers(self, first: int, count: int) -> list[bytes | bytearray | memoryview]:
        """``count`` segments from number ``first`` on, for one write to a device."""
        if count == self.frames:
            return [self.data]
        start = self._payload_at + first * self._segment_bytes
        payload = memoryview(self.data)[start : start + count * self._segment_bytes]
        return [self._headers(first, count, len(payload)), payload]

    def single(self, number: int) -> bytes:
        """One segment as a packet of its own."""
        return b"".join(self.buffers(number, 1))

    def _headers(self, first: int, count: int, payload_bytes: int) -> bytearray:
        """Headers as the kernel's segmentation (tcp_gso_segment, inet_gso_segment) makes them.

        The TCP checksum is left at the sum of the pseudo-header: the receiving kernel knows by the
        virtio-net header that it is not complete.
        """
        data, tcp_at, payload_at = self.data, self._tcp_at, self._payload_at
        if self._sums is None:
            self._sums = self._constant_sums()
        ip_sum, pseudo_sum = self._sums
        tcp_bytes = payload_at - tcp_at + payload_bytes
        ip_bytes = tcp_at - VNET_BYTES + tcp_bytes
        (identification,) = _SHORT.unpack_from(data, VNET_BYTES + 4)
        identification = (identification + first) & 0xFFFF
        (sequence,) = _LONG.unpack_from(data, tcp_at + 4)
        flags = data[tcp_at + 13]
        if first:
            flags &= ~_CWR
        if first + count < self.frames:
            flags &= ~(_FIN | _PSH)

        headers = bytearray(data[:payload_at])
        kind, segment_bytes = (_TCP4, self._segment_bytes) if count > 1 else (0, 0)
        length, checksum_from = payload_at - VNET_BYTES, tcp_at - VNET_BYTES
        _VNET.pack_into(
            headers,
            0,
            _NEEDS_CHECKSUM,
            kind,
            length,
            segment_bytes,
            checksum_from,
            _TCP_CHECKSUM_AT,
        )
        _SHORTS.pack_into(headers, VNET_BYTES + 2, ip_bytes, identification)
        checksum = 0xFFFF - (ip_sum + ip_bytes + identification) % 0xFFFF
        _SHORT.pack_into(headers, VNET_BYTES + 10, checksum)
        sequence = (sequence + first * self._segment_bytes) & 0xFFFFFFFF
        _LONG.pack_into(headers, tcp_at + 4, sequence)
        headers[tcp_at + 13] = flags
        _SHORT.pack_into(headers, tcp_at + 16, (pseudo_sum + tcp_bytes) % 0xFFFF)
        return headers

    def _constant_sums(self) -> tuple[int, int]:
        """Sums over what all segments share: IP header, TCP pseudo-header."""
        header = bytearray(self.data[VNET_BYTES : self._tcp_at])
        header[2:6], header[10:12] = bytes(4), bytes(2)
        return _sum(header), _sum(header[12:20]) + _TCP


def with_checksum(data: bytes) -> bytearray:
    """A packet whose TCP or UDP checksum is complete, and says so."""
    packet = bytearray(data)
    flags, _, _, _, start, offset = _VNET.unpack_from(packet)
    if flags & _NEEDS_CHECKSUM:
        start += VNET_BYTES
        _SHORT.pack_into(packet, start + offset, _checksum(packet[start:]))
    packet[0] = 0
    return packet


def with_flipped_bit(data: bytes, random: Random) -> bytes:
    """A packet with one random bit of it flipped, its checksums complete and so wrong."""
    packet = with_checksum(data)
    packet[random.randrange(VNET_BYTES, len(packet))] ^= 1 << random.randrange(8)
    return bytes(packet)


def _checksum(data: bytes | bytearray) -> int:
    """RFC 1071, over data whose checksum field holds the sum of a pseudo-header.

    Never 0, which means none to UDP (RFC 768) and the same as 0xFFFF to TCP.
    """
    return 0xFFFF - _sum(data)


def _sum(data: bytes | bytearray) -> int:
    """Ones' complement sum of 16-bit words, from 0 to 0xFFFE."""
    # 65536 leaves 1 on division by 65535, so a number leaves the sum of its 16-bit digits.
    return int.from_bytes(data + b"\0" * (len(data) % 2), "big") % 0xFFFF
