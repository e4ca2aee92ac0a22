"""Gates of a line that is kept full: rate, packets' gaps, queue, goodput, two clients at once.

Rate and goodput within 2 %, two at once within 3 %, 95 of 100 gaps and the queue within 10 %.
"""

import math
import statistics

import msgspec

from testbed.calibration import statistics as figures
from testbed.calibration.gates import Row
from testbed.calibration.link_timing import frame_ms, queue_ms
from testbed.calibration.observations import Arrived
from testbed.calibration.probes import Stream
from testbed.calibration.side import NO_PACKETS, Side
from testbed.calibration.sizing import CLIENTS, PROBE_BYTES
from testbed.fidelity.checks import RATE_TOLERANCE
from testbed.network.direction import FRAME_BYTES, MTU_BYTES, SEGMENT_BYTES
from testbed.network.profiles import LinkProfile
from testbed.network.tcp_cap import caps_kbit
from testbed.probing.probeable import (
    is_too_fast,
    lost_share,
    lost_words,
    why_not_followed,
    why_not_gaps,
    why_not_queue,
    why_not_stream,
    why_not_tcp,
)

TOGETHER_TOLERANCE = 0.03
QUEUE_TOLERANCE = 0.1
GAP_TOLERANCE_PERCENT = 10.0
GAP_SHARE = 0.95
GAPS_UP_TO_KBIT = 100_000.0
LEAST_CAME = 10
"""Packets of a full line that tell anything of it."""
MOST_TRIPS_LOST = 0.1
"""With fewer a connection is made within a few tries, and something comes of it."""


def full_line(side: Side) -> list[Row]:
    """One direction's gates; none where it has no rate."""
    if side.direction.line_kbit is None:
        return []
    first = [side.unmeasured("queue", NO_PACKETS)] if side.schedule.streams else _full(side)
    return [*first, _goodput(side), _together(side)]


def _full(side: Side) -> list[Row]:
    reason = side.why_not("rate") or why_not_followed(side.direction)
    if reason:
        return [side.unmeasured(name, reason) for name in ("rate", "packet gap", "queue")]
    stream, arrived = side.filled("rate")
    few = len(arrived.numbers) < LEAST_CAME
    reason = side.why_none(arrived.sent, least=LEAST_CAME) if few else None
    if reason:
        return [side.unmeasured(name, reason) for name in ("rate", "packet gap", "queue")]
    rate = _rate(side, "rate", RATE_TOLERANCE, stream, arrived)
    return [rate, _gaps(side, arrived), _queue(side, arrived)]


def _rate(side: Side, name: str, share: float, stream: Stream, arrived: Arrived) -> Row:
    direction = side.direction
    assert direction.line_kbit is not None
    note = "of frames"
    if direction.trace is not None:
        measured, n = figures.trace_rate_kbit(direction, stream, arrived)
    else:
        gaps = figures.gaps(direction, arrived)
        measured, n = figures.rate_kbit(gaps.telling), len(gaps.telling)
        note += "" if gaps.kept_full else "; the line was not always full"
    expected = direction.line_kbit
    return side.gate(name, expected, measured, "kbit/s", share * expected, n, note)


def _gaps(side: Side, arrived: Arrived) -> Row:
    direction, name = side.direction, "packet gap"
    reason = why_not_gaps(direction)
    if reason is not None:
        return side.unmeasured(name, reason)
    assert direction.line_kbit is not None
    if direction.line_kbit > GAPS_UP_TO_KBIT:
        return side.unmeasured(name, f"no gate above {GAPS_UP_TO_KBIT / 1000:g} Mbit/s")
    frame = frame_ms(direction, MTU_BYTES)
    gaps_ms = [gap_ns / 1e6 for gap_ns in figures.gaps(direction, arrived).telling]
    found = [100 * abs(gap_ms / frame - 1) for gap_ms in gaps_ms]
    measured = figures.quantile(found, GAP_SHARE) if found else None
    note = f"95 of 100 are so near to {frame:.3g} ms"
    return side.gate(name, 0.0, measured, "%", GAP_TOLERANCE_PERCENT, len(found), note)


def _queue(side: Side, arrived: Arrived) -> Row:
    direction, name = side.direction, "queue"
    reason = why_not_queue(direction)
    if reason is not None:
        return side.unmeasured(name, reason)
    expected, frame = queue_ms(direction), frame_ms(direction, MTU_BYTES)
    # Of a packet and its copy the second goes in though the queue may be full.
    frames = 2 if direction.duplicate_percent else 1
    tolerance = max(QUEUE_TOLERANCE * expected, frames * frame)
    # The delay as it was measured, so that a wrong one is not charged to the queue.
    idle_ms = direction.delay_ms
    if side.delays_ms:
        idle_ms = statistics.median(side.delays_ms) - frame_ms(direction, PROBE_BYTES)
    idle_ms += direction.jitter_ms
    measured = figures.full_delay_ms(arrived, idle_ms)
    if measured is not None:
        measured -= idle_ms + frame
        if measured < expected - tolerance and len(arrived.numbers) >= arrived.sent:
            return side.unmeasured(name, "was never full: this machine sends too slowly")
    note = "when full, beyond delay and jitter"
    n = len(arrived.numbers)
    return side.gate(name, expected, measured, "ms", tolerance, n, note)


def _goodput(side: Side) -> Row:
    reason = side.why_not("goodput")
    if reason:
        return side.unmeasured("goodput", reason)
    return _unless_bounded(side, _carried(side, "goodput", side.index, RATE_TOLERANCE))


def _unless_bounded(side: Side, row: Row) -> Row:
    """The row, not judged where something else than the line bounds what is carried."""
    if side.schedule.streams:
        reason = why_not_stream(side.direction)
    else:
        reason = why_not_tcp(side.direction, side.back)
    if reason is None:
        return row
    if row.measured is not None:
        return msgspec.structs.replace(row, ok=None, tolerance=None, note=f"{row.note}; {reason}")
    ways = (side.direction, side.back)
    lost = 1 - math.prod(1 - lost_share(way, checked=True) for way in ways)
    if not side.schedule.streams and lost > MOST_TRIPS_LOST:
        return side.unmeasured(row.name, f"{lost_words(ways, checked=True)}, and {reason}")
    return row


def _together(side: Side) -> Row:
    """The client that is further off its own rate, of two that fill their lines at once."""
    name = "two at once"
    reason = side.why_not("together")
    if reason:
        return side.unmeasured(name, reason)
    by_tcp = side.schedule.streams or is_too_fast(side.direction, CLIENTS)
    reason = None if by_tcp else why_not_followed(side.direction)
    if reason:
        return side.unmeasured(name, reason)
    if by_tcp:
        rows = [_carried(side, "together", one, TOGETHER_TOLERANCE) for one in range(CLIENTS)]
    else:
        rows = [
            _rate(side, name, TOGETHER_TOLERANCE, *side.filled("together", client))
            for client in range(CLIENTS)
        ]
    worst = msgspec.structs.replace(max(rows, key=lambda row: row.off), name=name)
    if side.schedule.streams:
        return _unless_bounded(side, worst)
    sent = side.filled("together")[1].sent if worst.measured is None and not by_tcp else 0
    reason = side.why_none(sent, least=LEAST_CAME)
    return side.unmeasured(name, reason) if reason else worst


def _carried(side: Side, purpose: str, client: int, share: float) -> Row:
    """One transfer's goodput against the most that TCP can carry; where links carry streams,
    against what they leave it under loss."""
    transfer = side.schedule.transfer(purpose, client, side.way)
    moved = side.seen.moved[purpose, client, side.way]
    measured, size = figures.goodput_kbit(transfer, moved)
    kbit, note = side.direction.carried_kbit, f"of payload; {moved.congestion or 'TCP'}"
    assert kbit is not None
    if side.schedule.streams:
        cap = caps_kbit(LinkProfile(name="server"), side.schedule.profile)[side.index]
        note += f"; at most {cap:.0f} of frames, for its loss" if cap < kbit else ""
        kbit = min(kbit, cap)
    expected = kbit * SEGMENT_BYTES / FRAME_BYTES
    n = size // SEGMENT_BYTES
    return side.gate("goodput", expected, measured, "kbit/s", share * expected, n, note)
