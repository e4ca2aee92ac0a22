"""Sizes of a profile's probes: how many packets, how far apart, for how long. Pure."""

import math

from testbed.calibration.confidence import bursts
from testbed.calibration.link_timing import LAST_S, frame_ms, full_s, idle_s, peak_kbit, queue_ms
from testbed.calibration.probes import Pings, Stream, Transfer
from testbed.network.direction import FRAME_BYTES, MTU_BYTES, WAYS, Direction
from testbed.network.profiles import LinkProfile
from testbed.probing.probeable import entering, why_not_full, why_not_tcp
from testbed.probing.saturation import LEAD_TRIPS, QUEUE_USED

PROBE_BYTES = 54
"""IP packet of a ping and of a packet that is only counted."""
CHECKED_BYTES = 500
"""The same where bits flip: headers are then a small part of what may be hit."""
PING_GAP_S = 0.01
APART = 1.1
"""Of the time that jitter can take: probes so far apart never wait for each other."""

CLIENTS = 2
"""Of a profile that are measured at once."""

COUNTED = 10_000
"""Packets for a share (loss, duplicates, ...) where the time allows."""
LEAST_COUNTED = 1000
"""With fewer a fault that should not be there shows nothing: half a percent of loss would stay
unseen once in 150 times."""
LEAST_EVENTS = 20
"""Fewer losses, say, cannot tell a share from its half."""
COUNTED_PER_S = 4000.0
HEADROOM = 0.5
"""Of the line's rate, and of the packets that it may hold: what is counted must not be dropped."""

SATURATED_S = 2.0
"""How long a line is kept full."""
FILL, OVERFILL = 1.1, 1.5
"""Of what line and queue hold, sent at once; and of the rate, to keep them full."""
FAST_KBIT = 100_000.0
"""What fills a faster line at once would wait outside it until it is read, and look like queueing:
such a line is filled by its overload alone."""
FAST_OVERFILL = 1.25
FAST_SATURATED_S = 0.5
MOST_FILL = 8000
"""Packets at once; devices and sockets hold no more."""
WATCHED_FRAMES = 4
"""How long a full line is watched at least."""

LEAST_LEAD_S = 1.0
WINDOW_TRIPS = 2
"""Round trips over the full queue."""
LEAST_WINDOW_S = 2.5
MOST_ABOVE, LEAST_ABOVE = 0.05, 0.03
"""How far above the line TCP is paced: so much that a line that is too fast shows; the lesser where
the queue may overflow, since it is long enough for Reno to go on filling the line."""


def pings(profile: LinkProfile, count: int) -> Pings:
    """Round trips so far apart that none waits for another, whatever jitter does to them."""
    up, down = profile.up, profile.down
    shaken_s = 2 * (up.jitter_ms + down.jitter_ms) / 1000
    line_s = sum(frame_ms(direction, PROBE_BYTES) for direction in (up, down)) / 1000
    trip_s = idle_s(up, PROBE_BYTES) + idle_s(down, PROBE_BYTES)
    gap_s = max(PING_GAP_S, APART * (shaken_s + line_s))
    return Pings(count=count, gap_s=gap_s, settle_s=trip_s + LAST_S)


def saturating(purpose: str, client: int, way: str, direction: Direction) -> Stream:
    """More packets than the line takes, until it has shown its rate and its queue.

    The first ones fill line and queue at once and the rest keep them full; on a line faster than
    FAST_KBIT the rest does both.
    """
    assert direction.limit_packets is not None
    limit, frame_s = direction.limit_packets, frame_ms(direction, MTU_BYTES) / 1000
    surviving = min(1.0, entering(direction))
    if peak_kbit(direction) > FAST_KBIT:
        overfill, fill = FAST_OVERFILL, 0
        paced_s = limit * frame_s / (overfill - 1) + FAST_SATURATED_S
    else:
        overfill, fill = OVERFILL, min(MOST_FILL, math.ceil(FILL * limit / surviving) + 8)
        paced_s = max(
            SATURATED_S - limit * frame_s,
            idle_s(direction, MTU_BYTES) + WATCHED_FRAMES * frame_s,
            max(0, limit - fill) * frame_s / (overfill - 1),
        )
    if direction.chances is not None:
        period_s = direction.chances.period_ms / 1000
        paced_s = period_s * math.ceil(SATURATED_S / period_s)
    per_second = overfill / surviving * peak_kbit(direction) * 1000 / (8 * FRAME_BYTES)
    return Stream(
        purpose=purpose,
        client=client,
        way=way,
        packet_bytes=MTU_BYTES,
        fill=fill,
        paced=math.ceil(paced_s * per_second),
        per_second=per_second,
        unchecked=direction.corrupt_percent > 0,
        settle_s=full_s(direction) + LAST_S,
    )


def transfer(
    way: str, profile: LinkProfile, streams: bool, least_above: float = LEAST_ABOVE
) -> Transfer:
    """One connection for a direction, once slow start is over; of a trace, whole periods.

    It is paced a little above what the line can carry: so it keeps the line full and does not
    overrun the queue, whatever congestion control does about losses and jitter. Streams that are
    relayed lose nothing, and what is not judged is left to TCP.
    """
    direction: Direction = getattr(profile, way)
    trip_s = sum(idle_s(one, MTU_BYTES) for one in (profile.up, profile.down))
    queue_s = queue_ms(direction) / 1000
    window_s = max(LEAST_WINDOW_S, WINDOW_TRIPS * (trip_s + queue_s))
    if direction.chances is not None:
        period_s = direction.chances.period_ms / 1000
        window_s = period_s * math.ceil(window_s / period_s)
    lead_s = max(LEAST_LEAD_S, LEAD_TRIPS * trip_s)
    pace_kbit = None
    back: Direction = getattr(profile, WAYS[1 - WAYS.index(way)])
    if not streams and why_not_tcp(direction, back) is None:
        above = min(MOST_ABOVE, QUEUE_USED * queue_s / (lead_s + window_s))
        if queue_s >= trip_s:
            above = max(above, least_above)
        pace_kbit = (1 + above) * (direction.ideal_goodput_kbit or 0)
    return Transfer(
        purpose="goodput",
        client=WAYS.index(way),
        way=way,
        pace_kbit=pace_kbit,
        lead_s=lead_s,
        window_s=window_s,
        settle_s=full_s(direction) + LAST_S,
    )


def why_not_filled(direction: Direction) -> str | None:
    """Why a direction has no rate, queue or goodput to measure, or None where it has."""
    reason = why_not_full(direction)
    if reason is not None:
        return reason
    if queue_ms(direction) < frame_ms(direction, MTU_BYTES):
        return (
            f"max_packets = {direction.max_packets} are fewer than the delay holds, so that the "
            "line is never full"
        )
    if direction.trace is not None and peak_kbit(direction) > FAST_KBIT:
        return f"the trace has moments above {FAST_KBIT / 1000:g} Mbit/s"
    return None


def counted_per_s(direction: Direction, packet_bytes: int) -> float:
    """How fast packets can be sent that are to be counted, so that none waits or is dropped."""
    found = COUNTED_PER_S
    if direction.line_kbit:
        found = min(found, HEADROOM * 1000 / frame_ms(direction, packet_bytes))
    if direction.limit_packets is not None:
        held_s = idle_s(direction, packet_bytes)
        found = min(found, HEADROOM * direction.limit_packets / held_s) if held_s else found
    return found


def counting(way: str, direction: Direction, seconds: float = 0.0) -> Stream:
    """Small packets, one by one: as many as can be sent in that time, from ``least_counted`` to
    COUNTED."""
    size = CHECKED_BYTES if direction.corrupt_percent else PROBE_BYTES
    per_second = counted_per_s(direction, size)
    least = least_counted(direction)
    count = max(least, min(COUNTED, int(seconds * per_second)))
    return Stream(
        purpose="shares",
        client=0,
        way=way,
        packet_bytes=size,
        paced=count,
        per_second=per_second,
        unchecked=True,
        settle_s=idle_s(direction, size) + LAST_S,
    )


def least_counted(direction: Direction) -> int:
    """The least packets of which a share can be told."""
    shares = (
        direction.mean_loss_percent,
        direction.duplicate_percent,
        direction.reorder_percent,
        direction.corrupt_percent,
    )
    count = max(math.ceil(100 * LEAST_EVENTS / share) if share else 0 for share in shares)
    if direction.gilbert_elliott is not None:
        count = max(count, math.ceil(LEAST_EVENTS / bursts(1, direction.gilbert_elliott)))
    return max(count, LEAST_COUNTED)
