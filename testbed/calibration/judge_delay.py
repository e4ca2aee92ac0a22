"""Gates of an idle link: round trip, each direction's delay, and its jitter.

Medians within 1 ms or 2 %, standard deviations within 10 %.
"""

import math
import statistics

from testbed.calibration.confidence import Z
from testbed.calibration.gates import Row
from testbed.calibration.link_timing import frame_ms
from testbed.calibration.plan import PINGS_WITH_JITTER
from testbed.calibration.side import NO_PACKETS, Side
from testbed.calibration.sizing import PROBE_BYTES
from testbed.network.direction import Direction
from testbed.probing.probeable import why_not_exact_delay

DELAY_TOLERANCE = 0.02
LEAST_TOLERANCE_MS = 1.0
JITTER_TOLERANCE = 0.1
NO_JITTER_MS = 1.0
"""Standard deviation that a busy host alone may cause."""
ENOUGH_TRIPS = 0.75 * PINGS_WITH_JITTER
"""The deviation of fewer uniform delays is off by more than 10 % too often."""
_TRIP_BYTES = 53
"""IP packet of one byte over TCP."""


def round_trip(side: Side) -> Row:
    """The median round trip, against the sum of both directions' delays."""
    schedule, seen = side.schedule, side.seen
    ways = (schedule.profile.up, schedule.profile.down)
    if schedule.streams:
        trips, size = [trip / 1e6 for trip in seen.trips_ns or ()], _TRIP_BYTES
    else:
        pinged = seen.pinged.trips_ns if seen.pinged else ()
        trips, size = [(up + down) / 1e6 for up, down in pinged], PROBE_BYTES
    reason = side.why_not("delay") or _why_not(side, ways, len(trips))
    if reason:
        return side.unmeasured("round trip", reason)
    expected = sum(direction.delay_ms + frame_ms(direction, size) for direction in ways)
    jitter_ms = max(direction.jitter_ms for direction in ways)
    return _median(side, "round trip", expected, jitter_ms, trips)


def one_way(side: Side) -> list[Row]:
    """One direction's median delay, and its standard deviation against jitter / sqrt(3)."""
    direction = side.direction
    if side.schedule.streams:
        return [side.unmeasured("jitter", NO_PACKETS)] if direction.jitter_ms else []
    reason = side.why_not("delay") or _why_not(side, (direction,), len(side.delays_ms))
    if reason:
        return [side.unmeasured(name, reason) for name in ("delay", "jitter")]
    expected = direction.delay_ms + frame_ms(direction, PROBE_BYTES)
    delay = _median(side, "delay", expected, direction.jitter_ms, side.delays_ms)
    return [delay, _jitter(side, direction)]


def _why_not(side: Side, ways: tuple[Direction, ...], came: int) -> str | None:
    """Why the median of what came of the pings is not the delay of ``ways``."""
    if came or side.schedule.streams:
        return why_not_exact_delay(ways, came)
    sent = side.seen.pinged.sent if side.seen.pinged else 0
    return why_not_exact_delay(ways, sent) or side.why_none(sent, trips=True)


def _median(side: Side, name: str, expected: float, jitter_ms: float, delays: list[float]) -> Row:
    """The median of n uniform delays scatters by jitter / sqrt(n) around the middle; that of a sum
    of two by as much of the wider one."""
    tolerance = max(LEAST_TOLERANCE_MS, DELAY_TOLERANCE * expected)
    note = ""
    if jitter_ms and delays:
        scatter = Z * jitter_ms / math.sqrt(len(delays))
        note = f"allowed: {tolerance:.3g}, and {scatter:.2g} for the sample's own scatter"
        tolerance += scatter
    measured = statistics.median(delays) if delays else None
    return side.gate(name, expected, measured, "ms", tolerance, len(delays), note)


def _jitter(side: Side, direction: Direction) -> Row:
    delays = side.delays_ms
    if direction.reorder_percent:
        return side.unmeasured("jitter", "packets that skip the delay stand among the others")
    if direction.jitter_ms and 0 < len(delays) < ENOUGH_TRIPS:
        reason = f"{len(delays)} round trips are too few; give more --seconds"
        return side.unmeasured("jitter", reason)
    expected = direction.jitter_ms / math.sqrt(3)
    measured = statistics.stdev(delays) if len(delays) > 1 else None
    tolerance = JITTER_TOLERANCE * expected if expected else NO_JITTER_MS
    return side.gate(
        "jitter", expected, measured, "ms", tolerance, len(delays), "standard deviation"
    )
