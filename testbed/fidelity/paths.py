"""Paths over which links are probed one by one, and what to send over each. Pure.

Pings give a link's round trip, a burst that its queue can hold gives its rate in each direction;
on a line too fast for single packets a TCP connection that fills it does (``filling``). What cannot
be told so is not sent, and ``probeable`` says why.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from testbed.links import dilation as slower
from testbed.network import trace_windows
from testbed.network.direction import FRAME_BYTES, WAYS, Direction
from testbed.network.tcp_cap import mathis_kbit
from testbed.network.topology import Node, Plan
from testbed.probing import probeable
from testbed.probing.probeable import (
    LEAST_SPAN_MS,
    LEAST_STREAM_SPAN_MS,
    LONGEST_WAIT_S,
    SINGLE_FRAMES_PER_S,
    is_too_fast,
)
from testbed.probing.saturation import Note

RTT_TOLERANCE_MS = 2.0
"""Beyond the profile's delays and their jitter."""

PINGS = 9
PING_GAP_S = 0.02
PINGS_S = 2.0
"""How long the pings may take together where one must wait for the one before."""
BURST_S = 0.2
"""A burst is what the line carries in this time, if its queue can hold it."""
ALL_BURSTS_PACKETS = 150_000
"""Of so many clients that theirs together would have more, each has a shorter one."""
MOST_BURST_PACKETS = 2000
LEAST_BURST_PACKETS = 8
PING_BYTES, STREAM_PING_BYTES = 49, 67
"""On the line: 7 bytes of payload with 28 of UDP and IP, or 1 with 52 of TCP and IP, and each with
14 of Ethernet."""


class Path(NamedTuple):
    """The way between a client and the server while one access link on it is probed alone."""

    link: str
    """Name of the node whose link it is."""
    client: Node
    up: Direction
    """Towards the server, as asked for."""
    down: Direction
    """Towards the client."""
    names: tuple[str, str]
    """What the link's owner calls ``up`` and ``down``."""
    streams: bool = False
    """It carries no packets."""
    caps_kbit: tuple[float, float] = (math.inf, math.inf)
    """What loss leaves to a relayed stream where there is a trace, which is no rate to be lowered:
    of ``up`` and ``down``."""
    burst_s: float = BURST_S
    """On this machine."""
    dilation: float = 1.0
    """The link really is as much slower."""
    apart: bool = False
    """Its ends are on two hosts, which have no clock together."""

    @property
    def ways(self) -> tuple[tuple[str, Direction], tuple[str, Direction]]:
        """Both directions by the names that the probes use."""
        return ("up", self.up), ("down", self.down)

    @property
    def here(self) -> "Path":
        """The same path in this machine's time, as it is built and probed."""
        if self.dilation == 1:
            return self
        up, down = (slower.direction(line, self.dilation) for line in (self.up, self.down))
        caps_kbit = self.caps_kbit[0] / self.dilation, self.caps_kbit[1] / self.dilation
        return self._replace(up=up, down=down, caps_kbit=caps_kbit, dilation=1.0)

    @property
    def least_span_ms(self) -> float:
        """The least span of a burst, on this machine."""
        return LEAST_STREAM_SPAN_MS if self.streams else LEAST_SPAN_MS

    def back(self, way: str) -> Direction:
        """The way of acknowledgements."""
        return self.down if way == "up" else self.up

    def bursts(self) -> dict[str, int]:
        """How many full frames each way's burst has: none where it would not tell a rate."""
        here = self.here
        ways = zip(here.ways, here.caps_kbit, strict=True)
        return {
            way: 0 if here.why_not(way) else burst_packets(direction, cap_kbit, self.burst_s)
            for (way, direction), cap_kbit in ways
        }

    @property
    def fast_ways(self) -> list[str]:
        """Those that are filled by TCP, where it can show their rate."""
        here = self.here
        fast = [way for way, direction in here.ways if is_too_fast(direction)]
        return [way for way in fast if here.why_not(way) is None]

    def why_not(self, way: str) -> str | None:
        """Why a direction's rate is not probed; None also where it has none."""
        index = 0 if way == "up" else 1
        if self.ways[index][1].line_kbit is None:
            return None
        reason = probeable.why_not_awaited(two_frames_s(self.ways[index][1]))
        if reason is not None:
            return reason
        if self.apart and self.ways[index][1].reorder_percent:
            return "two hosts' clocks do not tell packets that skip the delay from the others"
        here = self.here
        direction = here.ways[index][1]
        if is_too_fast(direction):
            by_tcp = probeable.why_not_tcp(direction, here.back(way))
            return by_tcp and f"{probeable.why_not_singly(direction)}, and {by_tcp}"
        count = burst_packets(direction, here.caps_kbit[index], self.burst_s)
        return probeable.why_not_burst(direction, count, shaken(direction), self.least_span_ms)

    def why_no_round_trip(self) -> str | None:
        """Why none is probed, whatever comes of it."""
        if any(direction.outage for _, direction in self.ways):
            return probeable.OUTAGE
        return probeable.why_not_awaited(sum(round_trip_ms(self)) / 1000)


class Arrivals(NamedTuple):
    """Packets that one path let through."""

    round_trips_ms: list[float]
    bursts_ns: dict[str, list[int]]
    """By way, arrival times of the full frames of a burst that the line served, in order."""
    fills: dict[str, list[Note]] | None = None
    """By way, what a connection that filled the line brought."""

    @property
    def came(self) -> bool:
        """Whether anything did."""
        filled = (self.fills or {}).values()
        return any((self.round_trips_ms, *self.bursts_ns.values(), *filled))

    def emulated(self, dilation: float) -> "Arrivals":
        """The same in the time of links that are as much faster."""
        if dilation == 1:
            return self
        return Arrivals(
            [trip_ms / dilation for trip_ms in self.round_trips_ms],
            {
                way: [round(at_ns / dilation) for at_ns in times]
                for way, times in self.bursts_ns.items()
            },
            {
                way: [(round(at_ns / dilation), size) for at_ns, size in notes]
                for way, notes in (self.fills or {}).items()
            },
        )


def client_paths(plan: Plan, streams: bool, dilation: float = 1.0) -> list[Path]:
    """Every client's own link, the server's taken away; ``streams``: loss is a rate's limit."""
    found = []
    for node in plan.clients:
        assert node.profile is not None
        up, down = node.profile.up, node.profile.down
        path = _path(node.name, node, up, down, WAYS, streams)
        apart = node.host != plan.server.host
        found.append(path._replace(dilation=dilation, apart=apart))
    packets = sum(count for path in found for count in path.bursts().values())
    shorter_s = BURST_S * min(1.0, ALL_BURSTS_PACKETS / max(1, packets))
    return [path._replace(burst_s=shorter_s) for path in found]


def server_path(plan: Plan, streams: bool, dilation: float = 1.0) -> Path | None:
    """The server's link behind the first client, whose own is taken away; None without limits."""
    profile = plan.server.profile
    if profile is None:
        return None
    names = ("down", "up")
    first = plan.clients[0]
    path = _path(plan.server.name, first, profile.down, profile.up, names, streams)
    return path._replace(dilation=dilation, apart=first.host != plan.server.host)


def _path(
    link: str, client: Node, up: Direction, down: Direction, names: tuple[str, str], streams: bool
) -> Path:
    if not streams:
        return Path(link, client, up, down, names)
    caps_kbit = _cap_kbit(up, down), _cap_kbit(down, up)
    up, down = _as_stream(up, caps_kbit[0]), _as_stream(down, caps_kbit[1])
    return Path(link, client, up, down, names, True, caps_kbit)


def _cap_kbit(direction: Direction, back: Direction) -> float:
    """The rate that loss leaves to TCP."""
    rtt_s = (direction.delay_ms + back.delay_ms) / 1000
    return mathis_kbit(direction.mean_loss_percent / 100, rtt_s)


def _as_stream(direction: Direction, cap_kbit: float) -> Direction:
    """The path as a relayed stream meets it: no loss, but the rate that it would leave to TCP."""
    if direction.trace is None and cap_kbit < math.inf:
        rate_kbit = min(direction.rate_kbit or math.inf, cap_kbit)
        direction = msgspec.structs.replace(direction, rate_kbit=rate_kbit)
    return msgspec.structs.replace(direction, loss_percent=0.0, gilbert_elliott=None)


def burst_packets(
    direction: Direction, cap_kbit: float = math.inf, lasts_s: float = BURST_S
) -> int:
    """How many packets a burst has: none on an unlimited line, and on one too fast for it.

    Those that are lost on their way into the line, or skip it, come on top.
    """
    rate_kbit, limit = direction.line_kbit, direction.limit_packets
    if rate_kbit is None or limit is None or is_too_fast(direction):
        return 0
    packets = math.ceil(min(rate_kbit, cap_kbit) * lasts_s * 1000 / (8 * FRAME_BYTES))
    served = max(min(packets + shaken(direction), limit), min(LEAST_BURST_PACKETS, limit))
    share = max(probeable.LEAST_ENTERING, probeable.entering(direction))
    return min(math.ceil(served / share), MOST_BURST_PACKETS)


def shaken(direction: Direction) -> int:
    """Packets at the head of a burst whose spacing jitter may still show: until the backlog is
    longer than jitter can be."""
    rate_kbit = direction.line_kbit
    assert rate_kbit is not None
    return math.ceil(rate_kbit * 2 * direction.jitter_ms / (8 * FRAME_BYTES))


def two_frames_s(direction: Direction) -> float:
    """How long the line may take for as many as tell anything of it."""
    if direction.chances is not None:
        return trace_windows.longest_ms(direction.chances, 2) / 1000
    assert direction.rate_kbit is not None
    return 2 * 8 * FRAME_BYTES / (1000 * direction.rate_kbit)


def groups(paths: Sequence[Path]) -> list[list[int]]:
    """Which paths' bursts are sent at once, by their places: as many as single packets can fill."""
    found: list[list[int]] = []
    left = 0.0
    for place, path in enumerate(paths):
        lines = [line for _, line in path.here.ways if not is_too_fast(line)]
        wanted = sum(probeable.sent_per_s(line) for line in lines)
        if not found or wanted > left:
            found.append([])
            left = SINGLE_FRAMES_PER_S
        found[-1].append(place)
        left -= wanted
    return found


def burst_s(path: Path) -> float:
    """How long the bursts of a path take to arrive if the link is what was asked."""
    longest = 0.0
    counts, here = path.bursts(), path.here
    for (way, direction), cap_kbit in zip(here.ways, here.caps_kbit, strict=True):
        rate_kbit = direction.line_kbit
        # All that are sent, though some may be lost before the line: how many is chance.
        count = math.ceil(counts[way] * (1 + direction.duplicate_percent / 100))
        if not count or rate_kbit is None:
            continue
        if direction.chances is not None:
            capped_s = 8 * FRAME_BYTES * count / (cap_kbit * 1000)
            served_s = trace_windows.longest_ms(direction.chances, count) / 1000
            longest = max(longest, served_s + capped_s)
        else:
            longest = max(longest, 8 * FRAME_BYTES * count / (rate_kbit * 1000))
    return min(longest, LONGEST_WAIT_S * path.dilation) + round_trip_s(path)


def round_trip_s(path: Path) -> float:
    """The longest that an idle link's round trip takes here if the link is what was asked."""
    middle_ms, tolerance_ms = round_trip_ms(path)
    return path.dilation * min((middle_ms + tolerance_ms) / 1000, LONGEST_WAIT_S)


def round_trip_ms(path: Path) -> tuple[float, float]:
    """Middle and tolerance of the median round trip, of the link as asked for."""
    middle, tolerance = 0.0, RTT_TOLERANCE_MS
    for _, direction in path.ways:
        middle += direction.delay_ms
        # A few uniform draws scatter around the middle by as much as the jitter itself.
        tolerance += direction.jitter_ms
        if direction.chances is not None:
            gap_ms = trace_windows.longest_ms(direction.chances, 1)
            middle += gap_ms / 2
            tolerance += gap_ms / 2
        elif direction.rate_kbit:
            middle += 8 * _ping_bytes(path) / direction.rate_kbit
    return middle, tolerance


def _ping_bytes(path: Path) -> int:
    return STREAM_PING_BYTES if path.streams else PING_BYTES


def ping_gap_s(path: Path) -> float:
    """The time from one ping to the next, so that none finds another on the line."""
    lines = [line for _, line in path.here.ways]
    frames_s = [8 * _ping_bytes(path) / (1000 * line.line_kbit) for line in lines if line.line_kbit]
    return max([PING_GAP_S, *(2 * frame_s for frame_s in frames_s)])


def pings(gap_s: float) -> int:
    """How many there is time for."""
    return max(1, min(PINGS, int(PINGS_S / gap_s)))
