"""Messages of a tunnel as bytes: frames with their times, and what clocks and rates are told by.

Each has a head, its kind and how many bytes follow, in network order. Times are seconds of the
sender's monotonic clock. What comes from the other host is checked before it is used.
"""

import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

from testbed.links.userspace.bursts import MAX_READ_BYTES, VNET_BYTES

MOST_FILLING_BYTES = 1 << 15
_HEAD = struct.Struct("!BI")
_FRAME, _ASK, _TELL, _RATE = (struct.Struct(form) for form in ("!dd", "!d", "!ddd", "!d"))
_KIND_FRAME, _KIND_ASK, _KIND_TELL, _KIND_FILLING, _KIND_RATE, _KIND_LEAVE = range(1, 7)
_LONGEST_STEP_S = 3600.0
_LEAST_PACKET_BYTES = VNET_BYTES + 20
_LENGTHS = {
    _KIND_FRAME: (_FRAME.size + _LEAST_PACKET_BYTES, _FRAME.size + MAX_READ_BYTES),
    _KIND_ASK: (_ASK.size, _ASK.size),
    _KIND_TELL: (_TELL.size, _TELL.size),
    _KIND_FILLING: (0, MOST_FILLING_BYTES),
    _KIND_RATE: (_RATE.size, _RATE.size),
    _KIND_LEAVE: (0, 0),
}
"""Least and most bytes that follow a head of each kind."""


class Malformed(ValueError):
    """Bytes that are no message; the text says what is wrong."""


class Frame(NamedTuple):
    """A packet that has entered its sender's line, or a burst of them."""

    release: float
    """When the line lets the first one go."""
    step: float
    """Seconds from one segment's release to the next one's."""
    data: bytes
    """As a device hands it over, with its virtio-net header (``bursts``)."""


class Ask(NamedTuple):
    """A question for the other's clock."""

    asked: float


class Tell(NamedTuple):
    """The answer to it: when it was asked by the one's clock, heard and answered by the other's."""

    asked: float
    heard: float
    answered: float


class Filling(NamedTuple):
    """Bytes that only measure a rate; none is the last."""

    bytes: int


class Rate(NamedTuple):
    """Bytes a second at which filling came."""

    bytes_per_s: float


class Leave(NamedTuple):
    """The last word of a host that ends as it should."""


Message = Frame | Ask | Tell | Filling | Rate | Leave


def frame(release: float, step: float, data_bytes: int) -> bytes:
    """Bytes before a frame's data."""
    return _HEAD.pack(_KIND_FRAME, _FRAME.size + data_bytes) + _FRAME.pack(release, step)


def ask(asked: float) -> bytes:
    return _HEAD.pack(_KIND_ASK, _ASK.size) + _ASK.pack(asked)


def tell(asked: float, heard: float, answered: float) -> bytes:
    return _HEAD.pack(_KIND_TELL, _TELL.size) + _TELL.pack(asked, heard, answered)


def filling(count: int) -> bytes:
    return _HEAD.pack(_KIND_FILLING, count) + bytes(count)


def rate(bytes_per_s: float) -> bytes:
    return _HEAD.pack(_KIND_RATE, _RATE.size) + _RATE.pack(bytes_per_s)


def leave() -> bytes:
    return _HEAD.pack(_KIND_LEAVE, 0)


class Decoder:
    """Messages out of a stream of bytes; holds less than one of them."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that end in ``data``, to be taken before the next call.

        Raises:
            Malformed: nothing that follows can be trusted either.
        """
        data = self._partial + data if self._partial else data
        at, end = 0, len(data)
        while end - at >= _HEAD.size:
            kind, length = _HEAD.unpack_from(data, at)
            least, most = _LENGTHS.get(kind, (1, 0))
            if not least <= length <= most:
                raise Malformed(f"a message of kind {kind} and {length} bytes")
            begin = at + _HEAD.size
            if end - begin < length:
                break
            at = begin + length
            yield _message(kind, data, begin, at)
        self._partial = data[at:]


def _message(kind: int, data: bytes, begin: int, end: int) -> Message:
    if kind == _KIND_FILLING:
        return Filling(end - begin)
    if kind == _KIND_LEAVE:
        return Leave()
    if kind == _KIND_FRAME:
        release, step = _FRAME.unpack_from(data, begin)
        if not math.isfinite(release) or not 0 <= step <= _LONGEST_STEP_S:
            raise Malformed(f"a frame released at {release}, its segments {step} s apart")
        return Frame(release, step, data[begin + _FRAME.size : end])
    if kind == _KIND_ASK:
        numbers = _ASK.unpack_from(data, begin)
    elif kind == _KIND_TELL:
        numbers = _TELL.unpack_from(data, begin)
    else:
        numbers = _RATE.unpack_from(data, begin)
    if not all(map(math.isfinite, numbers)):
        raise Malformed(f"a message of kind {kind} with {numbers}")
    if kind == _KIND_ASK:
        return Ask(*numbers)
    return Tell(*numbers) if kind == _KIND_TELL else Rate(*numbers)
