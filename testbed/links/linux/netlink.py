"""The two netlink messages that are sent often: dumps, and a change of a class.

pyroute2 builds a network and needs half a millisecond a message for it; counters are read of every
link at once, and a trace changes a rate ten times a second.
"""

import os
import socket
import struct
from collections.abc import Iterator

LIMIT_S = 10.0
"""The kernel answers in milliseconds; a wait beyond this is an error."""

_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_BUFFER_BYTES = 1 << 16


def open_route() -> socket.socket:
    """A netlink socket; it belongs to the present network namespace wherever it is used from."""
    route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    route.bind((0, 0))
    return adopt(route.detach())


def adopt(descriptor: int) -> socket.socket:
    """The socket that another process opened."""
    route = socket.socket(fileno=descriptor)
    route.settimeout(LIMIT_S)
    return route


def attribute(kind: int, *payload: bytes) -> bytes:
    """One attribute, padded; several payloads are nested attributes."""
    data = b"".join(payload)
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def nest(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, *attributes)


def attributes(data: memoryview) -> dict[int, memoryview]:
    """The attributes that ``data`` is made of, by their type."""
    found: dict[int, memoryview] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def dump(route: socket.socket, kind: int, body: bytes) -> Iterator[memoryview]:
    """Every answer's body to a dump of ``kind``.

    Raises:
        OSError: the kernel refuses, or does not answer (TimeoutError).
    """
    sequence = _send(route, kind, _REQUEST | _DUMP, body)
    while True:
        for answered, number, message in _receive(route):
            if number != sequence:
                continue
            if answered == _DONE:
                return
            if answered == _ERROR:
                _check(message)
            yield message


def change(route: socket.socket, kind: int, flags: int, body: bytes) -> None:
    """Send a request and wait for its acknowledgement.

    Raises:
        OSError: as the kernel gave it.
    """
    sequence = _send(route, kind, _REQUEST | _ACK | flags, body)
    while True:
        for answered, number, message in _receive(route):
            if answered == _ERROR and number == sequence:
                return _check(message)


_sequence = 0


def _send(route: socket.socket, kind: int, flags: int, body: bytes) -> int:
    global _sequence
    _sequence = (_sequence + 1) & 0x7FFFFFFF
    route.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, _sequence, 0) + body)
    return _sequence


def _receive(route: socket.socket) -> Iterator[tuple[int, int, memoryview]]:
    """Type, sequence number and body of each message of one datagram."""
    data = memoryview(route.recv(_BUFFER_BYTES))
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, number, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, number, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _check(message: memoryview) -> None:
    (number,) = struct.unpack_from("=i", message)
    if number:
        raise OSError(-number, os.strerror(-number))
