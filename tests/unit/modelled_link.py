"""What probes would see of a link that is exactly what a profile says, worked out in model time."""

import math

from testbed.calibration.observations import Arrived, Moved, Pinged, Seen
from testbed.calibration.probes import Pings, Schedule, Stream, Transfer, Trips
from testbed.calibration.sizing import PROBE_BYTES
from testbed.links.interface import Counters, LinkCounters
from testbed.network import traces
from testbed.network.direction import (
    FRAME_BYTES,
    FRAME_OVERHEAD_BYTES,
    SEGMENT_BYTES,
    WAYS,
    Direction,
)
from testbed.network.profiles import LinkProfile

NOTE_MS = 10
EPOCH_NS = 1_000_000_000_000


def through(schedule: Schedule, link: LinkProfile) -> Seen:
    """What ``schedule``'s probes see of ``link``, which need not be the profile they are for."""
    seen = Seen()
    ways = {"up": link.up, "down": link.down}
    for probe in schedule.probes():
        if isinstance(probe, Pings):
            seen.pinged = ping(probe, link)
        elif isinstance(probe, Trips):
            trip_ms = link.rtt_ms + sum(serialising_ms(one, 53) for one in ways.values())
            seen.trips_ns = [round(1e6 * trip_ms)] * probe.count
        elif isinstance(probe, Stream):
            key = (probe.purpose, probe.client, probe.way)
            seen.streams[key] = arrived(probe, ways[probe.way])
        else:
            key = (probe.purpose, probe.client, probe.way)
            seen.moved[key] = moved(probe, ways[probe.way])
    seen.counted["rate"] = counted(schedule, seen)
    return seen


def serialising_ms(direction: Direction, packet_bytes: int) -> float:
    rate_kbit = direction.line_kbit
    return 8 * (packet_bytes + FRAME_OVERHEAD_BYTES) / rate_kbit if rate_kbit else 0.0


def shaken_ms(direction: Direction, number: int) -> float:
    """Delays that fill their range evenly, in an order that is not theirs."""
    golden = (number * 0.6180339887) % 1
    return direction.delay_ms + direction.jitter_ms * (2 * golden - 1)


def ping(probe: Pings, link: LinkProfile) -> Pinged:
    ways = (link.up, link.down)
    trips = [
        tuple(
            round(1e6 * (shaken_ms(one, number + 7 * way) + serialising_ms(one, PROBE_BYTES)))
            for way, one in enumerate(ways)
        )
        for number in range(probe.count)
    ]
    return Pinged(probe.count, probe.count, trips)  # type: ignore[arg-type]


def sent_ms(stream: Stream) -> list[float]:
    paced = [1000 * (1 + number) / stream.per_second for number in range(stream.paced)]
    return [0.0] * stream.fill + paced


def arrived(stream: Stream, direction: Direction) -> Arrived:
    """Through a delay, a line that serves one packet after the other, and a packet limit."""
    frame_ms = serialising_ms(direction, stream.packet_bytes)
    limit = direction.limit_packets or math.inf
    chances = traces.load(direction.trace).opportunities_ms if direction.trace else ()
    releases: list[float] = []
    found: list[tuple[float, int, float]] = []
    gone = 0
    for number, now in enumerate(sent_ms(stream)):
        while gone < len(releases) and releases[gone] <= now:
            gone += 1
        if len(releases) - gone >= limit or direction.outage:
            continue
        ready = now + shaken_ms(direction, number)
        if chances:
            release = next_chance(chances, len(releases))
        else:
            release = max(ready, releases[-1] if releases else 0.0) + frame_ms
        releases.append(release)
        found.append((release, number, now))
    return Arrived(
        stream.count,
        [number for _, number, _ in found],
        [round(1e6 * (release - now)) for release, _, now in found],
        [EPOCH_NS + round(1e6 * release) for release, _, _ in found],
    )


def next_chance(chances: tuple[int, ...], number: int) -> float:
    """Of a line that is always full: its packet ``number`` takes the chance of that number."""
    periods, place = divmod(number, len(chances))
    return float(periods * chances[-1] + chances[place])


def moved(transfer: Transfer, direction: Direction) -> Moved:
    kbit = (direction.line_kbit or 1e6) * SEGMENT_BYTES / FRAME_BYTES
    whole_ms = round(1000 * (transfer.lead_s + transfer.window_s))
    notes = [
        (EPOCH_NS + 1_000_000 * ms, round(kbit * ms / 8)) for ms in range(0, whole_ms, NOTE_MS)
    ]
    return Moved(EPOCH_NS + 1_000_000 * whole_ms, notes, "reno")


def counted(schedule: Schedule, seen: Seen) -> LinkCounters:
    """Bytes at the first client's interface: up what it sent, down what came."""
    totals = {way: [0, 0] for way in WAYS}
    if seen.pinged is not None:
        for way in WAYS:
            totals[way] = [seen.pinged.sent, seen.pinged.sent * (PROBE_BYTES + 14)]
    for (purpose, client, way), one in seen.streams.items():
        if client == 0:
            count = one.sent if way == "up" else len(one.numbers)
            size = schedule.stream(purpose, client, way).packet_bytes + FRAME_OVERHEAD_BYTES
            totals[way][0] += count
            totals[way][1] += count * size
    up, down = (Counters(*totals[way], 0, 0) for way in WAYS)
    return LinkCounters(up, down)
