"""Gates of a line that is kept full: rate, packets' gaps, queue, goodput, two clients at once.

Rate and goodput within 2 %, two at once within 3 %, 95 of 100 gaps and the queue within 10 %.
"""

import statistics

import msgspec

from testbed.calibration import figures
from testbed.calibration.line import frame_ms, queue_ms
from testbed.calibration.probes import Stream
from testbed.calibration.row import Row
from testbed.calibration.seen import Arrived
from testbed.calibration.side import NO_PACKETS, Side
from testbed.calibration.sizing import CLIENTS, PROBE_BYTES, too_fast_together
from testbed.direction import FRAME_BYTES, MTU_BYTES, SEGMENT_BYTES
from testbed.filling import held_back
from testbed.links.mathis import caps_kbit
from testbed.profiles import LinkProfile

RATE_TOLERANCE = 0.02
TOGETHER_TOLERANCE = 0.03
QUEUE_TOLERANCE = 0.1
GAP_TOLERANCE_PERCENT = 10.0
GAP_SHARE = 0.95
GAPS_UP_TO_KBIT = 100_000.0


def full_line(side: Side) -> list[Row]:
    """One direction's gates; none where it has no rate."""
    if side.direction.line_kbit is None:
        return []
    first = [side.unmeasured("queue", NO_PACKETS)] if side.schedule.streams else _full(side)
    return [*first, _goodput(side), _together(side)]


def _full(side: Side) -> list[Row]:
    reason = side.why_not("rate")
    if reason:
        return [side.unmeasured(name, reason) for name in ("rate", "packet gap", "queue")]
    stream, arrived = side.filled("rate")
    rate = _rate(side, "rate", RATE_TOLERANCE, stream, arrived)
    return [rate, _gaps(side, arrived), _queue(side, arrived)]


def _rate(side: Side, name: str, share: float, stream: Stream, arrived: Arrived) -> Row:
    direction = side.direction
    assert direction.line_kbit is not None
    note = "of frames"
    if direction.trace is not None:
        measured, n = figures.trace_rate_kbit(direction.trace, stream, arrived)
    else:
        gaps = figures.gaps(direction, arrived)
        measured, n = figures.rate_kbit(gaps.telling, arrived), len(gaps.telling)
        note += "" if gaps.kept_full else "; the line was not always full"
    expected = direction.line_kbit
    return side.gate(name, expected, measured, "kbit/s", share * expected, n, note)


def _gaps(side: Side, arrived: Arrived) -> Row:
    direction, name = side.direction, "packet gap"
    if direction.trace is not None:
        return side.unmeasured(name, "a trace has no gap of its own")
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
    if direction.trace is not None:
        return side.unmeasured(name, "how long a full queue takes is the trace's own")
    expected, frame = queue_ms(direction), frame_ms(direction, MTU_BYTES)
    tolerance = max(QUEUE_TOLERANCE * expected, frame)
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
    row = _carried(side, "goodput", side.index, RATE_TOLERANCE)
    reason = None if side.schedule.streams else held_back(side.direction)
    if reason is None or row.measured is None:
        return row
    return msgspec.structs.replace(row, ok=None, tolerance=None, note=f"{row.note}; {reason}")


def _together(side: Side) -> Row:
    """The client that is further off its own rate, of two that fill their lines at once."""
    name = "two at once"
    reason = side.why_not("together")
    if reason:
        return side.unmeasured(name, reason)
    if side.schedule.streams or too_fast_together(side.direction):
        rows = [_carried(side, "together", one, TOGETHER_TOLERANCE) for one in range(CLIENTS)]
    else:
        rows = [
            _rate(side, name, TOGETHER_TOLERANCE, *side.filled("together", client))
            for client in range(CLIENTS)
        ]
    return msgspec.structs.replace(max(rows, key=lambda row: row.off), name=name)


def _carried(side: Side, purpose: str, client: int, share: float) -> Row:
    """One transfer's goodput against the most that TCP can carry; where links carry streams,
    against what they leave it under loss."""
    transfer = side.schedule.transfer(purpose, client, side.way)
    moved = side.seen.moved[purpose, client, side.way]
    measured, size = figures.goodput_kbit(transfer, moved)
    kbit, note = side.direction.line_kbit, f"of payload; {moved.congestion or 'TCP'}"
    assert kbit is not None
    if side.schedule.streams:
        cap = caps_kbit(LinkProfile(name="server"), side.schedule.profile)[side.index]
        note += f"; at most {cap:.0f} of frames, for its loss" if cap < kbit else ""
        kbit = min(kbit, cap)
    expected = kbit * SEGMENT_BYTES / FRAME_BYTES
    n = size // SEGMENT_BYTES
    return side.gate("goodput", expected, measured, "kbit/s", share * expected, n, note)
