"""Lines too fast to be filled packet by packet, and how one TCP connection fills them. Pure.

A connection that never has more in flight than the line, its delay and a part of its queue hold
loses nothing, and keeps the line busy whatever its congestion control does later. What arrives then
comes at the line's rate: late for a moment where the host is busy, and never early.
"""

import math
from typing import NamedTuple

from testbed.direction import FRAME_BYTES, SEGMENT_BYTES, Direction

SINGLE_FRAMES_PER_S = 40_000.0
"""What can be sent, carried and taken one by one, of all lines that are filled at the same time.
The userspace links' process reads twice as many at most, on two cores that do nothing else. netem's
kernel carries more, but a process that sends and stamps each packet does not send more. A frame
of a TCP burst costs a fifth of that, and bursts are what a run sends."""

QUEUE_USED = 0.8
"""Of the queue, what a connection fills."""
MOST_WINDOW_BYTES = 3 << 20
"""In flight at once: Linux gives a connection 4 MB to send from and 6 MB to receive into."""
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


def frames_per_s(direction: Direction) -> float:
    """Full frames that the line carries; 0 where it has no rate."""
    return 1000 * (direction.line_kbit or 0.0) / (8 * FRAME_BYTES)


def is_too_fast(direction: Direction, lines: int = 1) -> bool:
    """Whether single packets cannot fill so many such lines at once, so that TCP must."""
    single = direction.trace is not None or direction.outage
    return not single and lines * frames_per_s(direction) > SINGLE_FRAMES_PER_S


def held_back(direction: Direction) -> str | None:
    """What keeps TCP from filling a line, which is not the line's fault; None for nothing."""
    if direction.mean_loss_percent:
        return "bounded by loss"
    if direction.reorder_percent or direction.corrupt_percent or direction.duplicate_percent:
        return "bounded by what befalls packets"
    if direction.trace is not None:
        return "bounded by the trace's changes"
    return None


def why_not(direction: Direction, back: Direction) -> str | None:
    """Why TCP cannot show the rate of a line that is too fast; ``back``: acknowledgements' way."""
    reason = held_back(direction)
    if reason is not None:
        return f"TCP is {reason}"
    if _queue_frames(direction) < 1:
        return "the queue has no room for a connection's bursts"
    if _flying_frames(direction, back) * SEGMENT_BYTES > MOST_WINDOW_BYTES:
        return "the delay holds more than a TCP connection's buffers"
    return None


def fill(direction: Direction, back: Direction, lines: int = 1) -> Fill:
    """For a line of which ``why_not`` says nothing, one of so many to be filled in turn."""
    frames = _flying_frames(direction, back) + QUEUE_USED * _queue_frames(direction)
    trip_s = (direction.delay_ms + direction.jitter_ms + back.delay_ms + back.jitter_ms) / 1000
    return Fill(
        min(math.ceil(frames) * SEGMENT_BYTES, MOST_WINDOW_BYTES),
        LEAST_LEAD_S + LEAD_TRIPS * trip_s,
        max(LEAST_WINDOW_S, min(WINDOW_S, ALL_WINDOWS_S / lines)),
    )


def _flying_frames(direction: Direction, back: Direction) -> float:
    """In both delays, while the line is full."""
    flying_ms = direction.delay_ms + direction.jitter_ms + back.delay_ms
    return frames_per_s(direction) * flying_ms / 1000


def _queue_frames(direction: Direction) -> float:
    assert direction.limit_packets is not None
    held_ms = direction.delay_ms + direction.jitter_ms
    return direction.limit_packets - frames_per_s(direction) * held_ms / 1000


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
