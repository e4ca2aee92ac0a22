"""Saturation of lines too fast to be filled packet by packet, by one TCP connection. Pure.

A connection that never has more in flight than the line, its delay and a part of its queue hold
loses nothing, and keeps the line busy whatever its congestion control does later. What arrives then
comes at the line's rate: late for a moment where the host is busy, and never early.
"""

import math
from typing import NamedTuple

from testbed.network.direction import FRAME_BYTES, SEGMENT_BYTES, Direction
from testbed.probing.probeable import MOST_WINDOW_BYTES, flying_frames, queue_frames

QUEUE_USED = 0.8
"""Of the queue, what a connection fills."""
LEAD_TRIPS = 12
"""Idle round trips until a connection has grown from ten packets to any window."""
LEAST_LEAD_S = 0.01
WINDOW_S, LEAST_WINDOW_S = 0.1, 0.02
ALL_WINDOWS_S = 1.0
"""For all lines of a network together, as long as that leaves each its least."""

Note = tuple[int, int]
"""When, in ns, and how many bytes of payload had arrived by then."""


class Fill(NamedTuple):
    """How to fill a direction."""

    window_bytes: int
    """Most payload that is sent and has not arrived."""
    lead_s: float
    """Until the line is full for good."""
    window_s: float
    """How long it is watched from then on."""

    @property
    def seconds(self) -> float:
        return self.lead_s + self.window_s


def fill(direction: Direction, back: Direction, lines: int = 1) -> Fill:
    """The transfer that fills a line of which ``why_not_tcp`` says nothing, one of so many."""
    frames = flying_frames(direction, back) + QUEUE_USED * queue_frames(direction)
    trip_s = (direction.delay_ms + direction.jitter_ms + back.delay_ms + back.jitter_ms) / 1000
    return Fill(
        min(math.ceil(frames) * SEGMENT_BYTES, MOST_WINDOW_BYTES),
        LEAST_LEAD_S + LEAD_TRIPS * trip_s,
        max(LEAST_WINDOW_S, min(WINDOW_S, ALL_WINDOWS_S / lines)),
    )


def rate_kbit(direction: Direction, notes: list[Note]) -> float | None:
    """Rate in frames of a full line: payload between two moments when it arrived on time.

    On time is what came least late in the first third, and in the last. None where too little
    came.
    """
    assert direction.line_kbit is not None
    if len(notes) < 2:
        return None
    began_ns, ended_ns = notes[0][0], notes[-1][0]
    third_ns = (ended_ns - began_ns) / 3
    byte_ns = 8e6 / (direction.line_kbit * SEGMENT_BYTES / FRAME_BYTES)

    def late_ns(note: Note) -> float:
        return note[0] - byte_ns * note[1]

    first_ns, first = min((n for n in notes if n[0] <= began_ns + third_ns), key=late_ns)
    last_ns, last = min((n for n in notes if n[0] >= ended_ns - third_ns), key=late_ns)
    if last_ns <= first_ns:
        return None
    return round((last - first) * 8e6 / (last_ns - first_ns) * FRAME_BYTES / SEGMENT_BYTES, 3)
