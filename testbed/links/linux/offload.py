"""Segmentation and receive offloads of a network device, by ethtool's ioctl.

netem delays, drops and counts what it is given; with offloads on that is a super-packet of up to
64 KiB, and one loss takes forty packets.
"""

import array
import fcntl
import socket
import struct

from testbed.links.interface import LinkError

_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_FEATURE_SET = 4
_NAME_BYTES = 32
_AGGREGATING = ("segmentation", "gso", "gro", "lro")
_HARMLESS = ("tx-gso-robust",)
"""Says whether packets of other machines are trusted."""


def feature_names(control: socket.socket, device: str) -> list[str]:
    """Names of the feature bits; the same for every device of a kernel.

    ``control`` is an IPv4 socket of the device's network namespace, here and below.

    Raises:
        LinkError: the kernel does not tell.
    """
    try:
        answer = _ethtool(control, device, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << 4, 0))
        (count,) = struct.unpack_from("=I", answer, 16)
        head = struct.pack("=III", _GSTRINGS, _FEATURE_SET, count)
        names = _ethtool(control, device, head + bytes(count * _NAME_BYTES))[len(head) :]
    except OSError as error:
        raise LinkError(f"read the features of {device}: {error.strerror}") from error
    return [
        names[at : at + _NAME_BYTES].split(b"\0")[0].decode()
        for at in range(0, count * _NAME_BYTES, _NAME_BYTES)
    ]


def switch_off(control: socket.socket, device: str, names: list[str]) -> None:
    """Switch off everything by which ``device`` joins packets, and look whether it is off.

    Raises:
        LinkError: naming the device and what stays on.
    """
    joining = {i for i, name in enumerate(names) if aggregates(name)}
    try:
        words = -(-len(names) // 32)
        active = joining & _active(control, device, words)
        if active:
            _clear(control, device, words, active)
            active = joining & _active(control, device, words)
    except OSError as error:
        raise LinkError(f"switch off the offloads of {device}: {error.strerror}") from error
    if active:
        left = ", ".join(names[i] for i in sorted(active))
        raise LinkError(f"switch off the offloads of {device}: {left} stays on")


def aggregates(feature: str) -> bool:
    """Whether packets are joined, or split late, by this feature."""
    return any(word in feature for word in _AGGREGATING) and feature not in _HARMLESS


def _active(control: socket.socket, device: str, words: int) -> set[int]:
    """The bits that are on."""
    head = struct.pack("=II", _GFEATURES, words)
    answer = _ethtool(control, device, head + bytes(16 * words))
    found = set()
    for word in range(words):
        (active,) = struct.unpack_from("=I", answer, len(head) + 16 * word + 8)
        found |= {32 * word + bit for bit in range(32) if active >> bit & 1}
    return found


def _clear(control: socket.socket, device: str, words: int, bits: set[int]) -> None:
    masks = [sum(1 << bit % 32 for bit in bits if bit // 32 == word) for word in range(words)]
    blocks = b"".join(struct.pack("=II", mask, 0) for mask in masks)
    _ethtool(control, device, struct.pack("=II", _SFEATURES, words) + blocks)


def _ethtool(control: socket.socket, device: str, request: bytes) -> bytes:
    """One ioctl on a buffer that the kernel reads and overwrites."""
    buffer = array.array("B", request)
    address, _ = buffer.buffer_info()
    fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", device.encode(), address))
    return buffer.tobytes()
