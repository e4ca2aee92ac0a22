"""Whether links are what was asked: what to send over each, what came through, the certificate.

Pings give a link's round trip, a burst that its queue can hold gives its rate in each direction;
on a line too fast for single packets a TCP connection that fills it does (``filling``). All of this
is pure; ``prober`` sends and receives.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from testbed import filling, trace_windows, traces
from testbed.direction import FRAME_BYTES, Direction
from testbed.filling import SINGLE_FRAMES_PER_S, Note, frames_per_s, is_too_fast
from testbed.links.mathis import mathis_kbit
from testbed.topology import Node, Plan

RATE_TOLERANCE = 0.02
"""Of the profile's rate: the gate that every link must keep."""
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
LONGEST_WAIT_S = 30.0
"""A trace may say nothing for hours; a burst is not waited for longer."""
PING_BYTES, STREAM_PING_BYTES = 49, 67
"""On the line: 7 bytes of payload with 28 of UDP and IP, or 1 with 52 of TCP and IP, and each with
14 of Ethernet."""


class Check(msgspec.Struct, frozen=True):
    """One gate: an entry of the certificate."""

    name: str
    link: str
    direction: str
    expected: float
    measured: float | None
    """None where nothing came through."""
    unit: str
    tolerance: float
    """In the same unit."""
    ok: bool


class Certificate(msgspec.Struct, frozen=True):
    verdict: str
    """pass, fail or skipped."""
    reason: str
    checks: list[Check]


class Path(NamedTuple):
    """The way between a client and the server while one access link on it is probed alone."""

    link: str
    """Name of the node whose link it is."""
    client: Node
    up: Direction
    """Towards the server."""
    down: Direction
    """Towards the client."""
    names: tuple[str, str]
    """What the link's owner calls ``up`` and ``down``."""
    ping_bytes: int = PING_BYTES
    caps_kbit: tuple[float, float] = (math.inf, math.inf)
    """What loss leaves to a relayed stream where there is a trace, which is no rate to be lowered:
    of ``up`` and ``down``."""
    burst_s: float = BURST_S
    dilation: float = 1.0
    """``up`` and ``down`` are this much slower than the emulated line; times here are those of the
    machine, and checks are of the emulated line."""

    @property
    def ways(self) -> tuple[tuple[str, Direction], tuple[str, Direction]]:
        """Both directions by the names that the probes use."""
        return ("up", self.up), ("down", self.down)

    def back(self, way: str) -> Direction:
        """The way of acknowledgements."""
        return self.down if way == "up" else self.up

    def bursts(self) -> dict[str, int]:
        """How many full frames each way's burst has."""
        ways = zip(self.ways, self.caps_kbit, strict=True)
        return {
            way: burst_packets(direction, cap_kbit, self.burst_s)
            for (way, direction), cap_kbit in ways
        }

    @property
    def fast_ways(self) -> list[str]:
        """Those that are filled by TCP, where it can show their rate."""
        return [
            way
            for way, direction in self.ways
            if is_too_fast(direction) and filling.why_not(direction, self.back(way)) is None
        ]


class Arrivals(NamedTuple):
    """What one path let through."""

    round_trips_ms: list[float]
    bursts_ns: dict[str, list[int]]
    """By way, arrival times of the full frames of a burst, in order."""
    fills: dict[str, list[Note]] | None = None
    """By way, what a connection that filled the line brought."""

    @property
    def came(self) -> bool:
        """Whether anything did."""
        filled = (self.fills or {}).values()
        return any((self.round_trips_ms, *self.bursts_ns.values(), *filled))


def client_paths(plan: Plan, streams: bool, dilation: float = 1.0) -> list[Path]:
    """Every client's own link, the server's taken away; ``streams``: loss is a rate's limit."""
    found = []
    for node in plan.clients:
        assert node.profile is not None
        up, down = node.profile.up, node.profile.down
        found.append(_path(node.name, node, up, down, ("up", "down"), streams))
    packets = sum(count for path in found for count in path.bursts().values())
    shorter_s = BURST_S * min(1.0, ALL_BURSTS_PACKETS / max(1, packets))
    return [path._replace(burst_s=shorter_s, dilation=dilation) for path in found]


def server_path(plan: Plan, streams: bool, dilation: float = 1.0) -> Path | None:
    """The server's link behind the first client, whose own is taken away; None without limits."""
    profile = plan.server.profile
    if profile is None:
        return None
    names = ("down", "up")
    path = _path(plan.server.name, plan.clients[0], profile.down, profile.up, names, streams)
    return path._replace(dilation=dilation)


def _path(
    link: str, client: Node, up: Direction, down: Direction, names: tuple[str, str], streams: bool
) -> Path:
    if not streams:
        return Path(link, client, up, down, names)
    caps_kbit = _cap_kbit(up, down), _cap_kbit(down, up)
    up, down = _as_stream(up, caps_kbit[0]), _as_stream(down, caps_kbit[1])
    return Path(link, client, up, down, names, STREAM_PING_BYTES, caps_kbit)


def _cap_kbit(direction: Direction, back: Direction) -> float:
    """The rate that loss leaves to TCP."""
    rtt_s = (direction.delay_ms + back.delay_ms) / 1000
    return mathis_kbit(direction.mean_loss_percent / 100, rtt_s)


def _as_stream(direction: Direction, cap_kbit: float) -> Direction:
    """What a relayed stream meets: no loss, but the rate that loss would leave to TCP."""
    if math.isinf(cap_kbit):
        return direction
    if direction.trace is None:
        rate_kbit = min(direction.rate_kbit or math.inf, cap_kbit)
        direction = msgspec.structs.replace(direction, rate_kbit=rate_kbit)
    return msgspec.structs.replace(direction, loss_percent=0.0, gilbert_elliott=None)


def burst_packets(
    direction: Direction, cap_kbit: float = math.inf, lasts_s: float = BURST_S
) -> int:
    """How many full frames a burst has: none on an unlimited line, and on one too fast for it."""
    rate_kbit, limit = direction.line_kbit, direction.limit_packets
    if rate_kbit is None or limit is None or is_too_fast(direction):
        return 0
    packets = math.ceil(min(rate_kbit, cap_kbit) * lasts_s * 1000 / (8 * FRAME_BYTES))
    return max(
        min(packets + _shaken(direction), limit, MOST_BURST_PACKETS),
        min(LEAST_BURST_PACKETS, limit),
    )


def _shaken(direction: Direction) -> int:
    """Packets at the head of a burst whose spacing jitter may still show: until the backlog is
    longer than jitter can be."""
    rate_kbit = direction.line_kbit
    assert rate_kbit is not None
    return math.ceil(rate_kbit * 2 * direction.jitter_ms / (8 * FRAME_BYTES))


def groups(paths: list[Path]) -> list[list[int]]:
    """Which paths' bursts are sent at once, by their places: as many as single packets can fill."""
    found: list[list[int]] = []
    left = 0.0
    for place, path in enumerate(paths):
        wanted = sum(frames_per_s(line) for _, line in path.ways if not is_too_fast(line))
        if not found or wanted > left:
            found.append([])
            left = SINGLE_FRAMES_PER_S
        found[-1].append(place)
        left -= wanted
    return found


def burst_s(path: Path) -> float:
    """How long the bursts of a path take to arrive if the link is what was asked."""
    longest = 0.0
    counts = path.bursts()
    for (way, direction), cap_kbit in zip(path.ways, path.caps_kbit, strict=True):
        count, rate_kbit = counts[way], direction.line_kbit
        if not count or rate_kbit is None:
            continue
        if direction.trace is not None:
            trace = traces.load(direction.trace)
            capped_s = 8 * FRAME_BYTES * count / (cap_kbit * 1000)
            longest = max(longest, trace_windows.longest_ms(trace, count) / 1000 + capped_s)
        else:
            longest = max(longest, 8 * FRAME_BYTES * count / (rate_kbit * 1000))
    return min(longest, LONGEST_WAIT_S * path.dilation) + round_trip_s(path)


def round_trip_s(path: Path) -> float:
    """The longest that an idle link's round trip takes if the link is what was asked."""
    middle_ms, tolerance_ms = _round_trip(path)
    return min((middle_ms + tolerance_ms) / 1000, LONGEST_WAIT_S * path.dilation)


def ping_gap_s(path: Path) -> float:
    """From one ping to the next, so that none finds another on the line."""
    frames_s = [8 * path.ping_bytes / (1000 * d.line_kbit) for _, d in path.ways if d.line_kbit]
    return max([PING_GAP_S, *(2 * frame_s for frame_s in frames_s)])


def pings(gap_s: float) -> int:
    """How many there is time for."""
    return max(1, min(PINGS, int(PINGS_S / gap_s)))


def judge(path: Path, seen: Arrivals) -> list[Check]:
    """Hold what came through a link against its profile."""
    checks = [_judge_round_trip(path, seen.round_trips_ms)]
    ways = zip(path.ways, path.names, path.caps_kbit, strict=True)
    for (way, direction), name, cap_kbit in ways:
        arrivals = seen.bursts_ns.get(way, [])
        if direction.trace is not None:
            checks.append(_judge_trace(path.link, name, direction, cap_kbit, arrivals))
        elif way in path.fast_ways:
            notes = (seen.fills or {}).get(way, [])
            checks.append(_judge_fill(path.link, name, direction, notes))
        elif is_too_fast(direction):
            continue
        elif direction.rate_kbit is not None:
            checks.append(_judge_rate(path.link, name, direction, arrivals))
    return [_emulated(check, path.dilation) for check in checks]


def _emulated(check: Check, dilation: float) -> Check:
    """Of a line that is as much slower than the emulated one."""
    if dilation == 1:
        return check
    factor = 1 / dilation if check.unit == "ms" else dilation
    return msgspec.structs.replace(
        check,
        expected=round(check.expected * factor, 3),
        measured=None if check.measured is None else round(check.measured * factor, 3),
        tolerance=check.tolerance * factor,
    )


def _round_trip(path: Path) -> tuple[float, float]:
    """Middle and tolerance of the median round trip, in ms."""
    middle, tolerance = 0.0, RTT_TOLERANCE_MS * path.dilation
    for _, direction in path.ways:
        middle += direction.delay_ms
        # A few uniform draws scatter around the middle by as much as the jitter itself.
        tolerance += direction.jitter_ms
        if direction.trace is not None:
            gap_ms = trace_windows.longest_ms(traces.load(direction.trace), 1)
            middle += gap_ms / 2
            tolerance += gap_ms / 2
        elif direction.rate_kbit:
            middle += 8 * path.ping_bytes / direction.rate_kbit
    return middle, tolerance


def _judge_round_trip(path: Path, trips: list[float]) -> Check:
    expected, tolerance = _round_trip(path)
    measured = statistics.median(trips) if trips else None
    return Check(
        "round trip",
        path.link,
        "both",
        round(expected, 3),
        measured,
        "ms",
        tolerance,
        measured is not None and abs(measured - expected) <= tolerance,
    )


def _judge_rate(link: str, name: str, direction: Direction, arrivals: list[int]) -> Check:
    assert direction.rate_kbit is not None
    expected = direction.rate_kbit
    # A packet that overtakes takes no time on the line, and comes besides those it serves.
    overtaking = direction.reorder_percent / (100.001 - direction.reorder_percent)
    tolerance = expected * (RATE_TOLERANCE + overtaking)
    steady = arrivals[_shaken(direction) :]
    measured = None
    if len(steady) >= 2 and steady[-1] > steady[0]:
        # Lost packets take no time on the line, so those that came are those it served.
        measured = round(_kbit(len(steady) - 1, (steady[-1] - steady[0]) / 1e6), 3)
    return Check(
        "rate",
        link,
        name,
        expected,
        measured,
        "kbit/s",
        tolerance,
        measured is not None and abs(measured - expected) <= tolerance,
    )


def _judge_fill(link: str, name: str, direction: Direction, notes: list[Note]) -> Check:
    assert direction.rate_kbit is not None
    expected = direction.rate_kbit
    tolerance = RATE_TOLERANCE * expected
    measured = filling.rate_kbit(direction, notes)
    fits = measured is not None and abs(measured - expected) <= tolerance
    return Check("rate by TCP", link, name, expected, measured, "kbit/s", tolerance, fits)


def _judge_trace(
    link: str, name: str, direction: Direction, cap_kbit: float, arrivals: list[int]
) -> Check:
    """No slower and no faster than the trace is in any window of that length."""
    assert direction.trace is not None
    expected, tolerance, measured = direction.line_kbit or 0.0, 0.0, None
    steady = arrivals[_shaken(direction) :]
    if len(steady) >= 2 and steady[-1] > steady[0]:
        span_ms = (steady[-1] - steady[0]) / 1e6
        trace = traces.load(direction.trace)
        least: float
        most: float
        if math.isinf(cap_kbit):
            least, most = trace_windows.chances(trace, span_ms)
        else:
            per_ms = cap_kbit / (8 * FRAME_BYTES)
            least, most = trace_windows.chances_used(trace, span_ms, per_ms)
        # The window's ends are known to a millisecond, in which one more packet may come.
        slowest, fastest = _kbit(least - 1, span_ms), _kbit(most + 1, span_ms)
        expected = round((slowest + fastest) / 2, 3)
        tolerance = round((fastest - slowest) / 2 + RATE_TOLERANCE * expected, 3)
        measured = round(_kbit(len(steady) - 1, span_ms), 3)
    fits = measured is not None and abs(measured - expected) <= tolerance
    return Check("trace", link, name, expected, measured, "kbit/s", tolerance, fits)


def _kbit(frames: float, span_ms: float) -> float:
    return 8 * FRAME_BYTES * frames / span_ms


def unprobed(paths: list[Path]) -> list[str]:
    """Directions whose rate neither single packets nor TCP can show, and why."""
    return [
        f"{path.link} rate {name}: {frames_per_s(direction):.0f} frames a second are too many for "
        f"single packets, and {filling.why_not(direction, path.back(way))}"
        for path in paths
        for (way, direction), name in zip(path.ways, path.names, strict=True)
        if is_too_fast(direction) and way not in path.fast_ways
    ]


def certify(checks: list[Check], left_out: Sequence[str] = ()) -> Certificate:
    """The verdict in words; ``left_out``: what was not probed, each with its reason."""
    failed = [check for check in checks if not check.ok]
    if not checks:
        return Certificate("skipped", "no link has anything to check", [])
    more = f"; {len(left_out)} not probed, first {left_out[0]}" if left_out else ""
    if not failed:
        return Certificate("pass", f"all {len(checks)} checks hold{more}", checks)
    worst = failed[0]
    return Certificate(
        "fail",
        f"{len(failed)} of {len(checks)} checks do not hold, first {worst.link} {worst.name} "
        f"{worst.direction}: {worst.measured} {worst.unit}, expected {worst.expected:g} "
        f"± {worst.tolerance:g}{more}",
        checks,
    )


def skipped(reason: str) -> Certificate:
    return Certificate("skipped", reason, [])
