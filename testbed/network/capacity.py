"""Capacity of a direction: the one bound on how quick a transfer can be."""

from typing import NamedTuple

from testbed.network.direction import FRAME_BYTES, SEGMENT_BYTES, Direction

_PAYLOAD = SEGMENT_BYTES / FRAME_BYTES


class Line(NamedTuple):
    """One direction of an access link, as far as it bounds a transfer."""

    goodput_kbit: float | None
    """Most that TCP delivers in the long run, in kbit/s of payload; None is unlimited."""
    delay_ms: float
    window_bytes: int | None = None
    """Payload that may be under way at once, where that bounds the goodput and not the rate."""
    rate_kbit: float | None = None
    """Of payload, at which one such window goes out; None is at once."""

    def sending_s(self, payload_bytes: int) -> float:
        """The time from the first byte's arrival to the last one's."""
        if not self.goodput_kbit:
            return 0.0
        if self.window_bytes is None:
            return 8 * payload_bytes / (1000 * self.goodput_kbit)
        # The next window follows when the delay has let the one before it out.
        whole = max(0, payload_bytes - 1) // self.window_bytes
        rest_bytes = payload_bytes - whole * self.window_bytes
        rest_s = 8 * rest_bytes / (1000 * self.rate_kbit) if self.rate_kbit else 0.0
        return 8 * whole * self.window_bytes / (1000 * self.goodput_kbit) + rest_s

    def transfer_s(self, payload_bytes: int) -> float:
        """The time from sending to arrival: no transfer is quicker."""
        return self.delay_ms / 1000 + self.sending_s(payload_bytes)

    def then(self, other: "Line") -> "Line":
        """Both, one after the other."""
        limited = [line for line in (self, other) if line.goodput_kbit is not None]
        slower = min(limited, key=lambda line: line.goodput_kbit or 0.0, default=self)
        return slower._replace(delay_ms=self.delay_ms + other.delay_ms)


class Access(NamedTuple):
    """A node's link: ``up`` is what it sends."""

    up: Line
    down: Line


UNLIMITED = Line(None, 0.0)


def line(direction: Direction) -> Line:
    goodput_kbit, rate_kbit = direction.ideal_goodput_kbit, direction.line_kbit
    limit = direction.limit_packets
    if goodput_kbit is None or limit is None or direction.carried_kbit == rate_kbit:
        return Line(goodput_kbit, direction.delay_ms)
    window_bytes = limit * SEGMENT_BYTES
    at_once_kbit = None if rate_kbit is None else rate_kbit * _PAYLOAD
    return Line(goodput_kbit, direction.delay_ms, window_bytes, at_once_kbit)
