"""Checks of links: what came through them held against what was asked. Pure.

What is expected comes from the profile as asked for, never from the link as it was built: what came
over a dilated link is first brought into the emulated link's time.
"""

import math
import statistics
from collections.abc import Sequence

import msgspec

from testbed.fidelity.paths import PINGS, Arrivals, Path, round_trip_ms, shaken
from testbed.network import trace_windows
from testbed.network.direction import FRAME_BYTES, MTU_BYTES, Direction
from testbed.probing import probeable, saturation
from testbed.probing.probeable import is_too_fast
from testbed.probing.saturation import Note

RATE_TOLERANCE = 0.02
"""Of the profile's rate: the gate that every link must keep."""


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

    @property
    def words(self) -> str:
        """ "client-1 rate up: 612 kbit/s, expected 768 ± 15.4" """
        seen = "nothing came through" if self.measured is None else f"{self.measured} {self.unit}"
        unit = f" {self.unit}" if self.measured is None else ""
        return (
            f"{self.link} {self.name} {self.direction}: {seen}, expected {self.expected:g} "
            f"± {self.tolerance:g}{unit}"
        )


class NotProbed(msgspec.Struct, frozen=True):
    """A gate that no probe could have judged."""

    name: str
    link: str
    direction: str
    reason: str

    @property
    def words(self) -> str:
        return f"{self.link} {self.name} {self.direction}, because {self.reason}"


class Certificate(msgspec.Struct, frozen=True):
    verdict: str
    """pass, fail or skipped."""
    reason: str
    checks: list[Check]
    not_probed: list[NotProbed] = []


def judge(path: Path, seen: Arrivals) -> list[Check]:
    """Hold what came through a link against its profile."""
    return [gate for gate in _gates(path, seen) if isinstance(gate, Check)]


def unprobed(path: Path, seen: Arrivals) -> list[NotProbed]:
    """Gates that cannot be held against it, and why."""
    return [gate for gate in _gates(path, seen) if isinstance(gate, NotProbed)]


def _gates(path: Path, seen: Arrivals) -> list[Check | NotProbed]:
    seen, here = seen.emulated(path.dilation), path.here
    found = [_round_trip(path, seen.round_trips_ms)]
    for index, (way, direction) in enumerate(path.ways):
        if direction.line_kbit is None:
            continue
        fast = is_too_fast(here.ways[index][1])
        name = "rate by TCP" if fast else "rate" if direction.trace is None else "trace"
        reason = path.why_not(way)
        if reason is not None:
            # What would be probed is a rate, whichever way.
            name = "trace" if direction.trace is not None else "rate"
            found.append(NotProbed(name, path.link, path.names[index], reason))
        elif fast:
            notes = (seen.fills or {}).get(way, [])
            found.append(_fill(path.link, path.names[index], direction, notes))
        else:
            found.append(_burst(path, index, name, seen.bursts_ns.get(way, [])))
    return found


def _round_trip(path: Path, trips: list[float]) -> Check | NotProbed:
    ways = [direction for _, direction in path.ways]
    reason = path.why_no_round_trip() or probeable.why_not_delay(ways, len(trips) or PINGS)
    if reason is None and not trips and probeable.explained(ways, PINGS, checked=True):
        reason = probeable.lost_words(ways, checked=True)
    if reason is not None:
        return NotProbed("round trip", path.link, "both", reason)
    expected, tolerance = round_trip_ms(path)
    measured = round(statistics.median(trips), 6) if trips else None
    fits = measured is not None and abs(measured - expected) <= tolerance
    return Check(
        "round trip", path.link, "both", round(expected, 3), measured, "ms", tolerance, fits
    )


def _burst(path: Path, index: int, name: str, arrivals: list[int]) -> Check | NotProbed:
    way, direction = path.ways[index]
    link, own = path.link, path.names[index]
    first = shaken(direction)
    # Of what a stream brought at once nobody knows when all but the last of it came.
    while first + 1 < len(arrivals) and arrivals[first + 1] == arrivals[first]:
        first += 1
    steady = arrivals[first:]
    span_ms = (steady[-1] - steady[0]) / 1e6 if len(steady) >= 2 else 0.0
    here = path.here.ways[index][1]
    assert here.line_kbit is not None
    least = max(2, 1 + math.ceil(path.least_span_ms * here.line_kbit / (8 * FRAME_BYTES)))
    if len(steady) < least:
        sent = path.bursts()[way]
        if probeable.explained([direction], sent, first + least, served=True):
            return NotProbed(name, link, own, probeable.lost_words([direction]))
    if direction.trace is not None:
        return _trace(link, own, direction, path.caps_kbit[index], len(steady), span_ms)
    assert direction.rate_kbit is not None
    # Lost packets take no time on the line, so those that came are those it served.
    measured = round(_kbit(len(steady) - 1, span_ms), 3) if span_ms else None
    # One that a flipped bit in its headers loses has taken its time all the same.
    headers = direction.corrupt_percent / 100 * (1 - probeable.payload_share(MTU_BYTES))
    tolerance = direction.rate_kbit * (RATE_TOLERANCE + headers)
    return _rate(name, link, own, direction.rate_kbit, measured, tolerance)


def _fill(link: str, name: str, direction: Direction, notes: list[Note]) -> Check:
    assert direction.rate_kbit is not None
    measured, expected = saturation.rate_kbit(direction, notes), direction.rate_kbit
    return _rate("rate by TCP", link, name, expected, measured, RATE_TOLERANCE * expected)


def _trace(
    link: str, name: str, direction: Direction, cap_kbit: float, count: int, span_ms: float
) -> Check:
    """No slower and no faster than the trace is in any window of that length."""
    assert direction.chances is not None
    if not span_ms:
        return _rate("trace", link, name, direction.line_kbit or 0.0, None, 0.0)
    least: float
    most: float
    if math.isinf(cap_kbit):
        least, most = trace_windows.chances(direction.chances, span_ms)
    else:
        per_ms = cap_kbit / (8 * FRAME_BYTES)
        least, most = trace_windows.chances_used(direction.chances, span_ms, per_ms)
    # The window's ends are known to a millisecond, in which one more packet may come.
    slowest, fastest = _kbit(least - 1, span_ms), _kbit(most + 1, span_ms)
    expected = round((slowest + fastest) / 2, 3)
    tolerance = round((fastest - slowest) / 2 + RATE_TOLERANCE * expected, 3)
    return _rate("trace", link, name, expected, round(_kbit(count - 1, span_ms), 3), tolerance)


def _rate(
    name: str, link: str, way: str, expected: float, measured: float | None, tolerance: float
) -> Check:
    fits = measured is not None and abs(measured - expected) <= tolerance
    return Check(name, link, way, expected, measured, "kbit/s", tolerance, fits)


def _kbit(frames: float, span_ms: float) -> float:
    return 8 * FRAME_BYTES * frames / span_ms


def certify(
    checks: list[Check], not_probed: Sequence[NotProbed] = (), broken: str | None = None
) -> Certificate:
    """The verdict in words; ``broken``: why no more could be probed."""
    failed = [check for check in checks if not check.ok]
    left = list(not_probed)
    more = f"; {len(left)} not probed, first {left[0].words}" if left else ""
    if failed:
        reason = f"{len(failed)} of {len(checks)} checks do not hold, first {failed[0].words}{more}"
        return Certificate("fail", reason, checks, left)
    if broken is not None:
        held = f", and before that {len(checks)} checks held" if checks else ""
        return Certificate("skipped", f"{broken}{held}{more}", checks, left)
    if not checks:
        nothing = "no link has anything to check"
        return Certificate("skipped", f"{nothing}{more}", checks, left)
    return Certificate("pass", f"all {len(checks)} checks hold{more}", checks, left)


def skipped(reason: str) -> Certificate:
    return Certificate("skipped", reason, [])
