"""Gates of impairments of single packets, and of the bytes that the link has counted.

Shares lie inside the 99 % interval of their sample, counted bytes within 0.5 %.
"""

from msgspec.structs import replace

from testbed.calibration import confidence, statistics
from testbed.calibration.gates import Row
from testbed.calibration.observations import Arrived
from testbed.calibration.probes import Stream
from testbed.calibration.side import NO_PACKETS, Side
from testbed.calibration.sizing import PROBE_BYTES
from testbed.network.direction import FRAME_OVERHEAD_BYTES
from testbed.probing.probeable import lost_share, payload_share, why_not_overtaken, why_not_share

BYTES_TOLERANCE = 0.005
MOST_DROPPED = 0.1
"""With more of the packets gone in a queue, the others say little of the line's losses."""
COUNTING_STAGE = "shares"


def shares(side: Side) -> list[Row]:
    """Loss, what skips the delay, comes twice or changed, where asked for; order; bytes."""
    direction = side.direction
    asked = {
        "reordering": direction.reorder_percent,
        "duplicates": direction.duplicate_percent,
        "flipped bits": direction.corrupt_percent,
    }
    names = ["loss", *(name for name, percent in asked.items() if percent)]
    if side.schedule.streams:
        names = [name for name in names if name != "loss" or direction.mean_loss_percent]
        return [side.unmeasured(name, NO_PACKETS) for name in names]
    found = []
    for name in names:
        reason = side.why_not("shares") or why_not_share(direction, name)
        if reason:
            found.append(side.unmeasured(name, reason))
        else:
            found.append(_GATES[name](side, *side.filled("shares")))
    if not (direction.outage or (direction.reorder_percent and direction.duplicate_percent)):
        found.append(_order(side))
    return [*found, _bytes(side)]


def _loss(side: Side, stream: Stream, arrived: Arrived) -> Row:
    """Packets that did not come. Of a packet and its copy both must be lost; a bit flipped in a
    header loses the packet, and one flipped unasked does so everywhere.

    What the link's own count says a full queue has refused is not lost: packets stand so far apart
    that they meet there only where this machine was held up.
    """
    direction = side.direction
    dropped = _dropped(side)
    sent = arrived.sent - dropped
    if dropped > MOST_DROPPED * arrived.sent:
        reason = f"this machine was held up: {dropped} of {arrived.sent} met a full queue"
        return side.unmeasured("loss", reason)
    if not (arrived.numbers or arrived.corrupt) and side.why_none(sent) is None:
        return side.gate("loss", direction.mean_loss_percent, None, "%", 0.0, sent)
    came = len(set(arrived.numbers)) + arrived.overflowed
    if direction.corrupt_percent:
        came += arrived.corrupt
    chance = direction.mean_loss_percent / 100 * (1 - direction.duplicate_percent / 100)
    headers = direction.corrupt_percent / 100 * (1 - payload_share(stream.packet_bytes))
    if direction.gilbert_elliott is not None:
        low, high = confidence.chain(sent, direction.gilbert_elliott)
        high += headers * sent
    else:
        low, _ = confidence.binomial(sent, chance)
        _, high = confidence.binomial(sent, chance + headers)
    notes = [f"{arrived.overflowed} overran the receiver's socket"] if arrived.overflowed else []
    notes += [f"{dropped} more met a full queue"] if dropped else []
    return _within(side, "loss", chance, sent - came, sent, (low, high), "; ".join(notes))


def _dropped(side: Side) -> int:
    """Packets to be counted that the link has counted as refused by a full queue."""
    counters = side.seen.counted.get(COUNTING_STAGE)
    return 0 if counters is None else int(getattr(counters, side.way).queue_drops)


def _reordered(side: Side, stream: Stream, arrived: Arrived) -> Row:
    """Packets that skipped the delay, and so overtook those in it."""
    reason = why_not_overtaken(side.direction, stream.per_second)
    if reason is None and not arrived.numbers:
        reason = side.why_none(arrived.sent)
    if reason is not None:
        return side.unmeasured("reordering", reason)
    chance, came = side.direction.reorder_percent / 100, len(set(arrived.numbers))
    limits = confidence.binomial(came, chance)
    count = len(statistics.overtaking(arrived.numbers))
    return _within(side, "reordering", chance, count, came, limits, "of those that came")


def _duplicates(side: Side, stream: Stream, arrived: Arrived) -> Row:
    """Packets that came twice: the copy goes the way of the other, and may be lost
    or hit by a flipped bit as well."""
    survives = 1 - lost_share(side.direction, checked=True)
    chance = side.direction.duplicate_percent / 100 * survives**2
    limits = confidence.binomial(arrived.sent, chance)
    return _within(side, "duplicates", chance, _twice(arrived), arrived.sent, limits)


def _flipped(side: Side, stream: Stream, arrived: Arrived) -> Row:
    """Packets whose payload has changed. What hits a header is lost, or in the source port unseen;
    netem counts the Ethernet header too, other links do not."""
    hit = side.direction.corrupt_percent / 100
    came = len(arrived.numbers) + arrived.corrupt
    if not came and (reason := side.why_none(arrived.sent)) is not None:
        return side.unmeasured("flipped bits", reason)
    # Of those that come, which are fewer by what hits a header.
    shares = (payload_share(stream.packet_bytes, more) for more in (FRAME_OVERHEAD_BYTES, 0))
    least, most = (hit * share / (1 - hit * (1 - share)) for share in shares)
    low, _ = confidence.binomial(came, least)
    _, high = confidence.binomial(came, most)
    note = "those in the payload, of those that came"
    return _within(side, "flipped bits", most, arrived.corrupt, came, (low, high), note)


_GATES = {
    "loss": _loss,
    "reordering": _reordered,
    "duplicates": _duplicates,
    "flipped bits": _flipped,
}


def _order(side: Side) -> Row:
    """Nothing overtakes and nothing comes twice, where neither was asked for."""
    streams = [
        arrived
        for (_, client, way), arrived in side.seen.streams.items()
        if (client, way) == (0, side.way)
    ]
    count, strays = 0, 0
    for arrived in streams:
        count += len(arrived.numbers)
        if not side.direction.reorder_percent:
            strays += len(statistics.overtaking(arrived.numbers))
        if not side.direction.duplicate_percent:
            strays += _twice(arrived)
    if not streams:
        return side.unmeasured("order", "no stream of packets was sent")
    reason = None if count else side.why_none(max(arrived.sent for arrived in streams))
    if reason is not None:
        return side.unmeasured("order", reason)
    note = "that came too early or twice"
    return side.gate("order", 0.0, float(strays) if count else None, "packets", 0.0, count, note)


def _twice(arrived: Arrived) -> int:
    return len(arrived.numbers) - len(set(arrived.numbers))


def _within(
    side: Side,
    name: str,
    chance: float,
    count: int,
    n: int,
    limits: tuple[float, float],
    note: str = "",
) -> Row:
    """A count held against the 99 % interval of its sample."""
    low, high = limits
    tolerance = max(high - n * chance, n * chance - low)
    measured = 100 * count / n if n else None
    inside = f"{100 * max(low, 0) / max(n, 1):.3g} to {100 * high / max(n, 1):.3g} % allowed"
    row = side.gate(
        name,
        100 * chance,
        measured,
        "%",
        100 * tolerance / max(n, 1),
        n,
        "; ".join(filter(None, (inside, note))),
    )
    return row if measured is None else replace(row, ok=low <= count <= high)


def _bytes(side: Side) -> Row:
    """Bytes that the link has counted, against those that probes put in (up) or got out (down)."""
    seen = side.seen
    expected = frames = 0
    for (purpose, client, way), arrived in seen.streams.items():
        if (client, way) == (0, side.way):
            stream = side.schedule.stream(purpose, client, way)
            came = len(arrived.numbers) + arrived.corrupt + arrived.overflowed
            count = arrived.sent if way == "up" else came
            frames += count
            expected += count * (stream.packet_bytes + FRAME_OVERHEAD_BYTES)
    if seen.pinged is not None:
        count = seen.pinged.sent if side.way == "up" else seen.pinged.came
        frames += count
        expected += count * (PROBE_BYTES + FRAME_OVERHEAD_BYTES)
    if not frames:
        sent = max((arrived.sent for arrived in seen.streams.values()), default=0)
        if not sent and seen.pinged is None:
            return side.unmeasured("bytes", "no packets were sent")
        if (reason := side.why_none(sent)) is not None:
            return side.unmeasured("bytes", reason)
    by_tcp = side.schedule.tcp_stages
    counted = [
        getattr(counters, side.way).bytes
        for stage, counters in seen.counted.items()
        if stage not in by_tcp
    ]
    measured = float(sum(counted)) if frames else None
    tolerance = (BYTES_TOLERANCE + side.direction.corrupt_percent / 100) * expected
    note = "counted by the link"
    return side.gate("bytes", float(expected), measured, "bytes", tolerance, frames, note)
