"""The certificate: made arrivals held against made profiles, worked out by hand."""

import math
from typing import Any

import msgspec
import pytest

from testbed.fidelity import paths as probe_paths
from testbed.fidelity import udp_probe
from testbed.fidelity.checks import Check, certify, judge, unprobed
from testbed.fidelity.paths import (
    Arrivals,
    Path,
    burst_packets,
    burst_s,
    client_paths,
    groups,
    server_path,
)
from testbed.network import traces
from testbed.network.direction import FRAME_BYTES, Direction, GilbertElliott
from testbed.network.profiles import LinkProfile, load
from testbed.network.tcp_cap import mathis_kbit
from testbed.network.topology import Node, plan
from testbed.network.trace_windows import chances, chances_used, longest_ms
from testbed.network.traces import Trace

NODE = Node(1, "client-1", "10.1.0.1", None)
LINE = Direction(rate_kbit=12_112, delay_ms=10)
"""One frame of 1514 bytes a millisecond."""
MS = 1_000_000


def spaced(count: int, gap_ms: float, start_ms: float = 0) -> list[int]:
    return [round((start_ms + number * gap_ms) * MS) for number in range(count)]


def checks(
    uplink: Direction, downlink: Direction, trips: list[float], **bursts: list[int]
) -> list[Check]:
    path = Path("client-1", NODE, uplink, downlink, ("up", "down"))
    return judge(path, Arrivals(trips, bursts))


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
    [LINE, Direction(rate_kbit=20, delay_ms=650), Direction(rate_kbit=400_000, queue_ms=10)],
)
def test_a_burst_fits_into_the_queue(line: Direction) -> None:
    assert line.limit_packets is not None
    assert 2 <= burst_packets(line) <= min(line.limit_packets, probe_paths.MOST_BURST_PACKETS)


def test_a_burst_lasts_as_long_as_it_is_meant_to() -> None:
    assert burst_packets(LINE) == round(probe_paths.BURST_S * 1000)
    assert 8 * FRAME_BYTES / LINE.rate_kbit == 1.0  # type: ignore[operator]


def test_the_certificate_names_the_first_check_that_fails() -> None:
    found = checks(LINE, LINE, [20.0], up=spaced(50, 2), down=spaced(50, 1))
    assert "client-1 rate up: 6056.0 kbit/s, expected 12112" in certify(found).reason


def test_pings_do_not_queue_behind_one_another() -> None:
    # 49 bytes at 5 kbit/s take 78.4 ms.
    slow = Path("client-1", NODE, Direction(rate_kbit=5), Direction(), ("up", "down"))
    fast = Path("client-1", NODE, LINE, LINE, ("up", "down"))
    assert (
        probe_paths.ping_gap_s(slow) > 0.1
        and probe_paths.ping_gap_s(fast) == probe_paths.PING_GAP_S
    )
    assert probe_paths.pings(probe_paths.PING_GAP_S) == probe_paths.PINGS
    assert probe_paths.pings(0.7) == 2 and probe_paths.pings(60) == 1


def test_without_checks_the_verdict_is_not_a_pass() -> None:
    assert certify([]).verdict == "skipped"


def test_the_servers_link_is_judged_by_the_servers_own_names() -> None:
    server = LinkProfile(name="shared", up=LINE, down=Direction(rate_kbit=6056, delay_ms=1))
    path = server_path(plan([LinkProfile(name="far")], server), streams=False)
    assert path is not None and path.client.name == "client-1"
    # Towards the server is the server's down.
    arrivals = Arrivals([11.0], {"up": spaced(50, 2), "down": spaced(50, 1)})
    found = judge(path, arrivals)
    assert [(check.link, check.name, check.direction) for check in found] == [
        ("server", "round trip", "both"), ("server", "rate", "down"), ("server", "rate", "up"),
    ]  # fmt: skip
    assert all(check.ok for check in found)
    assert server_path(plan([server]), streams=False) is None


def test_over_streams_loss_is_the_rate_that_it_leaves_to_tcp() -> None:
    lossy = LinkProfile(
        name="lossy",
        up=Direction(rate_kbit=50_000, delay_ms=25, loss_percent=1),
        down=Direction(rate_kbit=500, delay_ms=25, loss_percent=1),
    )
    bursty = LinkProfile(
        name="bursty",
        up=Direction(
            rate_kbit=50_000,
            delay_ms=25,
            gilbert_elliott=GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=99),
        ),
        down=Direction(delay_ms=25),
    )
    first, second = client_paths(plan([lossy, bursty]), streams=True)
    expected = pytest.approx(mathis_kbit(0.01, 0.05))
    assert first.up.rate_kbit == second.up.rate_kbit == expected
    assert first.down.rate_kbit == 500 and second.down.rate_kbit is None
    assert {d.mean_loss_percent for _, d in (*first.ways, *second.ways)} == {0}
    (packets,) = client_paths(plan([lossy]), streams=False)
    assert packets.up == lossy.up


FAST = Direction(rate_kbit=1_000_000, delay_ms=0.25, queue_ms=10)


def filled(uplink: Direction, notes: list[tuple[int, int]]) -> list[Check]:
    path = Path("client-1", NODE, uplink, Direction(), ("up", "down"))
    return judge(path, Arrivals([0.5], {}, {"up": notes}))[1:]


@pytest.mark.parametrize(("factor", "ok"), [(0.979, False), (0.981, True), (1.021, False)])
def test_a_line_too_fast_for_single_packets_shows_its_rate_by_tcp(factor: float, ok: bool) -> None:
    assert burst_packets(FAST) == 0
    # 125,000 bytes of frames a millisecond, of which 1448 in 1514 are payload.
    notes = [(ms * MS, round(factor * ms * 125_000 * 1448 / 1514)) for ms in range(50)]
    (check,) = filled(FAST, notes)
    assert (check.name, check.expected, check.ok) == ("rate by TCP", 1_000_000, ok)
    assert check.measured == pytest.approx(factor * 1_000_000, rel=1e-4)
    assert [check.ok for check in filled(FAST, [])] == [False]


def test_what_nothing_can_fill_is_not_probed_and_the_certificate_says_so() -> None:
    lossy = msgspec.structs.replace(FAST, loss_percent=0.1)
    path = Path("client-1", NODE, FAST, lossy, ("up", "down"))
    assert path.fast_ways == ["up"]
    seen = Arrivals([0.5], {})
    (left,) = unprobed(path, seen)
    assert (left.name, left.link, left.direction) == ("rate", "client-1", "down")
    assert left.reason.startswith("82563 frames a second") and "bounded by loss" in left.reason
    trip, up = judge(path, seen)
    assert (up.name, up.direction) == ("rate by TCP", "up")
    found = certify([trip], [left])
    words = f"client-1 rate down, because {left.reason}"
    assert found.reason == f"all 1 checks hold; 1 not probed, first {words}"
    assert found.not_probed == [left]
    assert unprobed(Path("client-1", NODE, LINE, FAST, ("up", "down")), seen) == []


def test_bursts_go_together_as_far_as_single_packets_can_fill_their_lines() -> None:
    # A thousand frames a second each way.
    slow = Path("client-1", NODE, LINE, LINE, ("up", "down"))
    assert [len(group) for group in groups([slow] * 45)] == [20, 20, 5]
    # What TCP fills has no burst, and what is too fast for company goes alone.
    wide = Path("client-1", NODE, Direction(rate_kbit=450_000), FAST, ("up", "down"))
    assert groups([slow, slow, wide, wide, slow]) == [[0, 1], [2], [3, 4]]


def gates(
    up: Direction, down: Direction, seen: Arrivals
) -> tuple[list[Check], dict[tuple[str, str], str]]:
    """What is judged, and why the rest is not."""
    path = Path("client-1", NODE, up, down, ("up", "down"))
    left = unprobed(path, seen)
    return judge(path, seen), {(one.name, one.direction): one.reason for one in left}


def test_packets_that_skip_the_line_are_not_taken_for_its_own() -> None:
    mixed = msgspec.structs.replace(LINE, reorder_percent=25)
    sent_ns = [number * MS // 10 for number in range(5)]
    assert not udp_probe._is_served(mixed, 3, 4 * MS, sent_ns)
    assert udp_probe._is_served(mixed, 3, 11 * MS, sent_ns)
    assert udp_probe._is_served(LINE, 3, 4 * MS, sent_ns)
    # A number that a flipped bit has made.
    assert not udp_probe._is_served(mixed, 1 << 20, 11 * MS, sent_ns)
    # Those that skip come on top of those that the line serves.
    assert burst_packets(mixed) == math.ceil(200 / 0.75)


def test_where_too_many_packets_skip_the_delay_the_round_trip_is_not_probed() -> None:
    mixed = msgspec.structs.replace(LINE, reorder_percent=25)
    judged, left = gates(mixed, mixed, Arrivals([0.4] * 9, {"up": spaced(50, 1), "down": []}))
    assert left == {("round trip", "both"): "too many packets skip the delay: 43.8 %"}
    assert [(check.name, check.ok) for check in judged] == [("rate", True), ("rate", False)]
    few = msgspec.structs.replace(LINE, reorder_percent=5)
    assert ("round trip", "both") not in gates(few, few, Arrivals([20.1] * 9, {}))[1]


def test_flipped_bits_leave_the_rate_of_a_line_within_its_gate() -> None:
    flipped = msgspec.structs.replace(LINE, corrupt_percent=5)
    # 2 % and, of those hit, the 2.8 % that are hit in a header.
    (trip, up) = checks(flipped, Direction(), [10.1] * 9, up=spaced(50, 1.021))
    assert trip.ok and up.ok and up.tolerance == pytest.approx(12_112 * (0.02 + 0.05 * 42 / 1514))
    assert not checks(flipped, Direction(), [10.1], up=spaced(50, 1.03))[1].ok


def test_losses_that_explain_it_make_nothing_that_came_no_fault() -> None:
    bad = GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=0.5)
    nothing = Arrivals([], {"up": [], "down": []})
    for lossy in (
        msgspec.structs.replace(LINE, loss_percent=99.5),
        msgspec.structs.replace(LINE, gilbert_elliott=bad),
    ):
        judged, left = gates(lossy, Direction(), nothing)
        assert judged == []
        assert {name for name, _ in left} == {"round trip", "rate"}
        assert all(reason.startswith("too few came, as may be where") for reason in left.values())
    some = msgspec.structs.replace(LINE, loss_percent=40)
    judged, left = gates(some, Direction(), nothing)
    # Nine pings: 2.6 times in ten thousand.
    assert [check.ok for check in judged] == [False, False] and not left


def test_a_lossy_line_is_sent_what_it_loses_as_well() -> None:
    assert burst_packets(msgspec.structs.replace(LINE, loss_percent=60)) == 500


def test_a_streams_pieces_are_counted_from_their_ends() -> None:
    """Ten segments in 10 ms at a time, whatever part of them jitter may have shaken."""
    shaky = Direction(rate_kbit=12_112, delay_ms=4, jitter_ms=3)
    pieces = [10 * MS * (number // 10) for number in range(100)]
    _, up = checks(shaky, Direction(), [8.0], up=pieces)
    # From the end of the first piece, of which it shakes six, to the end of the last one.
    assert up.measured == pytest.approx(12_112) and up.ok


def test_a_stream_tells_no_rate_in_the_time_that_its_reader_may_be_late() -> None:
    short = Direction(rate_kbit=50_000, delay_ms=5, queue_ms=0.5)
    link = LinkProfile(name="short", up=short)
    (packets,) = client_paths(plan([link]), streams=False)
    (streams,) = client_paths(plan([link]), streams=True)
    assert packets.why_not("up") is None
    assert streams.why_not("up") == "it takes 24 packets at once, 5.6 ms of the line"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_packets": 1}, "it takes 1 packets at once, 0 ms of the line"),
        ({"rate_kbit": 100_000, "max_packets": 10}, "it takes 10 packets at once, 1.1 ms of the"),
        ({"jitter_ms": 10, "max_packets": 12}, "jitter may space all 12 packets"),
        ({"rate_kbit": 0.5}, "it takes up to 48.4 s, and is waited for 30 s"),
        ({"outage": True}, "an outage lets nothing through"),
        ({"reorder_percent": 50, "jitter_ms": 9}, "packets that skip 10 ms cannot be told from"),
        ({"reorder_percent": 90}, "of 2000 packets at once those that skip 10 ms may wait"),
        ({"reorder_percent": 100}, "all packets skip the line"),
    ],
)
def test_what_no_burst_can_show_is_not_probed(fields: dict[str, Any], reason: str) -> None:
    line = msgspec.structs.replace(LINE, **fields)
    path = Path("client-1", NODE, line, Direction(), ("up", "down"))
    assert path.bursts()["up"] == 0
    _, left = gates(line, Direction(), Arrivals([], {"up": []}))
    assert left["rate", "up"].startswith(reason)


def test_a_round_trip_that_nobody_waits_for_is_not_probed() -> None:
    _, left = gates(Direction(delay_ms=40_000), Direction(), Arrivals([], {}))
    assert left == {("round trip", "both"): "it takes up to 40 s, and is waited for 30 s"}


def test_a_trace_too_fast_for_single_packets_is_not_probed(tmp_path) -> None:
    file = tmp_path / "fast.trace"
    file.write_text("1\n" * 60)
    line = Direction(trace=str(file))
    _, left = gates(line, Direction(), Arrivals([1.0], {}))
    assert left["trace", "up"] == (
        "60000 frames a second are too many to be sent one by one, and TCP is bounded by the "
        "trace's changes"
    )
    # As much slower, it can be.
    path = Path("client-1", NODE, line, Direction(), ("up", "down"), dilation=2.0)
    assert path.why_not("up") is None and path.bursts()["up"] > 0


def test_nothing_that_came_through_makes_a_sentence() -> None:
    found = checks(LINE, Direction(), [], up=[])
    assert certify(found[1:]).reason == (
        "1 of 1 checks do not hold, first client-1 rate up: nothing came through, expected 12112 "
        "± 242.24 kbit/s"
    )


def test_a_prober_that_died_is_named_and_no_link_blamed() -> None:
    (good, *_) = checks(LINE, LINE, [20.1], up=spaced(50, 1), down=spaced(50, 1))
    died = "not probed: the prober was killed by SIGKILL"
    found = certify([good], broken=died)
    assert found.verdict == "skipped"
    assert found.reason == f"{died}, and before that 1 checks held"


@pytest.fixture
def traced(tmp_path) -> Direction:
    """A packet a millisecond for 100 ms, nothing for 50, two a millisecond for 50."""
    times = [*range(1, 101), *(t for t in range(151, 201) for _ in range(2))]
    path = tmp_path / "x.up"
    path.write_text("".join(f"{t}\n" for t in times))
    return Direction(trace=str(path), delay_ms=5)


def test_windows_of_a_trace(traced: Direction) -> None:
    trace = traces.load(str(traced.trace))
    assert longest_ms(trace, 1) == 51
    # A whole period, from anywhere.
    assert longest_ms(trace, 200) == 200
    assert chances(trace, 200) == (200, 201)  # From the first of two in one millisecond.
    assert chances(trace, 40)[0] == 0
    assert chances(trace, 30)[1] == 61
    assert chances(Trace((5,)), 24.0) == (4, 4)


@pytest.mark.parametrize(("gap_ms", "ok"), [(0.25, False), (0.5, True), (1.0, True), (1.9, False)])
def test_a_traced_line_must_be_as_some_part_of_its_trace(traced, gap_ms: float, ok: bool) -> None:
    trip, up = checks(traced, Direction(), [30.0], up=spaced(100, gap_ms))
    assert trip.ok and up.name == "trace"
    assert up.ok == ok


def test_the_shaken_head_of_a_burst_over_a_trace_does_not_count(traced) -> None:
    shaky = msgspec.structs.replace(traced, jitter_ms=5)
    arrivals = [0, *spaced(40, 1, start_ms=300)]
    assert not checks(traced, Direction(), [30.0], up=arrivals)[1].ok
    assert checks(shaky, Direction(), [30.0], up=arrivals)[1].ok


def test_a_burst_over_a_trace_is_waited_for_through_its_longest_gap(traced) -> None:
    path = Path("client-1", NODE, traced, Direction(), ("up", "down"))
    count = burst_packets(traced)
    assert count > 0
    assert burst_s(path) > longest_ms(traces.load(str(traced.trace)), count) / 1000
    assert judge(path, Arrivals([], {"up": []}))[1].ok is False


def test_what_a_trace_makes_of_a_steady_stream(traced: Direction) -> None:
    trace = traces.load(str(traced.trace))
    # Slower than the trace ever is but for its pause: what waits in that comes right behind it.
    least, most = chances_used(trace, 200, 0.1)
    assert least == pytest.approx(20 - 5.1 - 1, abs=0.5)
    assert most == pytest.approx(20 + 4.1 + 1, abs=0.5)
    # Faster than its mean: as the trace itself, at most.
    assert chances_used(trace, 200, 3)[1] == chances(trace, 200)[1]
    steady = Trace(tuple(range(1, 1001)))
    least, most = chances_used(steady, 500, 0.5)
    assert 250 - 8 < least < 250 < most < 250 + 3


@pytest.mark.parametrize(("gap_ms", "ok"), [(1.0, False), (3.0, True), (3.9, True), (8.0, False)])
def test_loss_caps_a_traced_stream_too(traced, gap_ms: float, ok: bool) -> None:
    lossy = msgspec.structs.replace(traced, delay_ms=25, loss_percent=1)
    link = LinkProfile(name="lossy", up=lossy, down=Direction(delay_ms=25))
    (path,) = client_paths(plan([link]), streams=True)
    # 12,112 bits a frame over 50 ms, times sqrt(1.5 / 0.01): 0.245 frames a millisecond.
    assert path.caps_kbit[0] == pytest.approx(mathis_kbit(0.01, 0.05))
    assert path.up.trace is not None and path.up.mean_loss_percent == 0
    count = path.bursts()["up"]
    assert count == 49
    assert burst_s(path) > 200 / 1000
    arrivals = Arrivals([50.0], {"up": spaced(count, gap_ms)})
    assert judge(path, arrivals)[1].ok is ok


def test_the_bursts_of_very_many_clients_are_shorter_and_together_no_longer() -> None:
    def packets(clients: int) -> int:
        paths = probe_paths.client_paths(plan([load("4g")] * clients), streams=False)
        return sum(count for path in paths for count in path.bursts().values())

    few, many = packets(20), packets(1000)
    assert few == 20 * packets(1)
    # What jitter may shake at a burst's head comes on top.
    assert (
        probe_paths.ALL_BURSTS_PACKETS / 2 < many < 1.5 * probe_paths.ALL_BURSTS_PACKETS < 50 * few
    )
