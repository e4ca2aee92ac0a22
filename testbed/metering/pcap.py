"""pcap files of IP packets, as Wireshark and tcpdump open them, and packets as they are on a wire.

The format is that of draft-ietf-opsawg-pcap, with times in nanoseconds and link type RAW: each
packet begins with its IP header.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from testbed.links.userspace.bursts import GSO_TYPE, VNET_BYTES, Burst, with_checksum

SNAP_BYTES = 65_535
"""Greatest packet that can be in a file."""
_MAGIC_NS, _VERSION = 0xA1B23C4D, (2, 4)
_LINKTYPE_RAW = 101
_FILE = struct.Struct("=IHHiIII")
_RECORD = struct.Struct("=IIII")


class Writer:
    """Owns the open file of one capture, of which nothing is written yet."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(_FILE.pack(_MAGIC_NS, *_VERSION, 0, 0, SNAP_BYTES, _LINKTYPE_RAW))
        self.packets = 0

    def write(self, time_ns: int, packet: bytes) -> None:
        """Append one IP packet. ``time_ns``: since 1970."""
        seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
        length = len(packet)
        self._file.write(_RECORD.pack(seconds, nanoseconds, length, length))
        self._file.write(packet)
        self.packets += 1

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def packets(data: bytes) -> Iterator[bytes]:
    """The IP packets that a virtio-net header and what follows it stand for.

    A TCP burst is cut into its segments, and what was left to a device is done: each has the
    headers and the checksum that it has on a wire.
    """
    if not data[GSO_TYPE]:
        yield bytes(with_checksum(data)[VNET_BYTES:])
        return
    burst = Burst(data)
    for number in range(burst.frames):
        yield bytes(with_checksum(burst.single(number))[VNET_BYTES:])
