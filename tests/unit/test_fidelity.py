"""The certificate: made arrivals held against made profiles, worked out by hand."""

import pytest

from testbed import fidelity
from testbed.fidelity import Arrivals, Check, burst_packets, certify, judge
from testbed.profiles import FRAME_BYTES, Direction
from testbed.topology import Node

NODE = Node(1, "client-1", "10.1.0.1", None)
LINE = Direction(rate_kbit=12_112, delay_ms=10)
"""One frame of 1514 bytes a millisecond."""
MS = 1_000_000


def spaced(count: int, gap_ms: float, start_ms: float = 0) -> list[int]:
    return [round((start_ms + number * gap_ms) * MS) for number in range(count)]


def checks(
    uplink: Direction, downlink: Direction, trips: list[float], **bursts: list[int]
) -> list[Check]:
    return judge(NODE, uplink, downlink, Arrivals(trips, bursts))


def test_a_link_that_is_what_was_asked_passes() -> None:
    trip, up, down = checks(LINE, LINE, [20.2, 20.1, 25.0], up=spaced(50, 1), down=spaced(50, 1))
    assert trip.ok and up.ok and down.ok
    # Two delays, and twice the time of a ping's 49 bytes on the line.
    assert trip.expected == pytest.approx(20 + 2 * 8 * 49 / 12_112, abs=1e-3)
    assert up.measured == pytest.approx(12_112)
    assert certify([trip, up, down]).verdict == "pass"


@pytest.mark.parametrize(
    ("gap_ms", "ok"), [(1.03, False), (1.015, True), (0.985, True), (0.97, False)]
)
def test_the_rate_must_hold_within_two_percent(gap_ms: float, ok: bool) -> None:
    _, up, down = checks(LINE, LINE, [20.0], up=spaced(50, gap_ms), down=spaced(50, 1))
    assert (up.ok, down.ok) == (ok, True)
    assert up.measured == pytest.approx(12_112 / gap_ms, rel=1e-3)


@pytest.mark.parametrize(
    ("trip_ms", "ok"), [(17.9, False), (18.5, True), (22.0, True), (22.2, False)]
)
def test_the_round_trip_must_hold_within_two_milliseconds(trip_ms: float, ok: bool) -> None:
    assert checks(LINE, Direction(delay_ms=10), [trip_ms])[0].ok == ok


def test_a_link_through_which_nothing_came_fails() -> None:
    found = checks(LINE, LINE, [], up=[5], down=[])
    assert [check.ok for check in found] == [False] * 3
    assert [check.measured for check in found] == [None] * 3
    verdict = certify(found)
    assert verdict.verdict == "fail" and verdict.reason.startswith("3 of 3 checks do not hold")


def test_the_head_of_a_burst_that_jitter_shakes_does_not_count() -> None:
    shaky = Direction(rate_kbit=12_112, delay_ms=10, jitter_ms=5)
    # Ten packets come at any time, those behind them as the line serves them.
    arrivals = [*spaced(10, 0.1), *spaced(40, 1, start_ms=30)]
    _, up = checks(shaky, Direction(), [20.0], up=arrivals)
    assert up.measured == pytest.approx(12_112) and up.ok


def test_a_line_without_a_rate_is_asked_for_its_round_trip_alone() -> None:
    (trip,) = checks(Direction(), Direction(), [0.5])
    assert trip.name == "round trip" and trip.ok


@pytest.mark.parametrize(
    "line",
    [LINE, Direction(rate_kbit=20, delay_ms=650), Direction(rate_kbit=1_000_000, queue_ms=10)],
)
def test_a_burst_fits_into_the_queue(line: Direction) -> None:
    assert line.limit_packets is not None
    assert 2 <= burst_packets(line) <= min(line.limit_packets, fidelity.MOST_BURST_PACKETS)


def test_a_burst_lasts_as_long_as_it_is_meant_to() -> None:
    assert burst_packets(LINE) == round(fidelity.BURST_S * 1000)
    assert 8 * FRAME_BYTES / LINE.rate_kbit == 1.0  # type: ignore[operator]


def test_the_certificate_names_the_first_check_that_fails() -> None:
    found = checks(LINE, LINE, [20.0], up=spaced(50, 2), down=spaced(50, 1))
    assert "client-1 rate up: 6056.0 kbit/s, expected 12112" in certify(found).reason


def test_without_checks_the_verdict_is_not_a_pass() -> None:
    assert certify([]).verdict == "skipped"
