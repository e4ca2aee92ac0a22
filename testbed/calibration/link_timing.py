"""Timing of probes in a direction: on the line, in the delay, in the queue. Pure."""

import itertools
import math

from testbed.network.direction import FRAME_BYTES, FRAME_OVERHEAD_BYTES, Direction

LAST_S = 0.3
"""Allowed beyond what the profile says for the last packet: a busy host is late."""


def frame_ms(direction: Direction, packet_bytes: int) -> float:
    """Time of one IP packet on the line: none where there is no rate; a trace's mean."""
    rate_kbit = direction.line_kbit
    return 8 * (packet_bytes + FRAME_OVERHEAD_BYTES) / rate_kbit if rate_kbit else 0.0


def longest_gap_ms(direction: Direction) -> float:
    """The longest that a trace lets a packet wait for its turn."""
    if direction.chances is None:
        return 0.0
    times = direction.chances.opportunities_ms
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return float(max([times[0], *gaps]))


def idle_s(direction: Direction, packet_bytes: int) -> float:
    """The longest that a packet takes through an idle line."""
    waits_ms = frame_ms(direction, packet_bytes) + longest_gap_ms(direction)
    return (direction.delay_ms + direction.jitter_ms + waits_ms) / 1000


def full_s(direction: Direction) -> float:
    """The longest that a full frame takes through a line that was idle before and is now full."""
    limit = direction.limit_packets or 0
    backlog_ms = limit * frame_ms(direction, FRAME_BYTES - FRAME_OVERHEAD_BYTES)
    return idle_s(direction, FRAME_BYTES - FRAME_OVERHEAD_BYTES) + backlog_ms / 1000


def queue_ms(direction: Direction) -> float:
    """Greatest queueing delay of a full frame behind others, beyond the delay and its jitter.

    The packet limit counts whole frames, so that this is ``queue_ms`` and up to two frames.
    """
    assert direction.limit_packets is not None
    frame = frame_ms(direction, FRAME_BYTES - FRAME_OVERHEAD_BYTES)
    return (direction.limit_packets - 1) * frame - direction.delay_ms - direction.jitter_ms


def peak_kbit(direction: Direction) -> float:
    """The line's rate, of a trace the greatest; infinite where it has none."""
    return direction.peak_kbit or math.inf
