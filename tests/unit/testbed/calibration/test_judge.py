"""Each gate on both sides of its limit, for links that are worked out and not timed."""

import functools
import math
from typing import Any

import pytest
from modelled_link import shaken_ms, through
from msgspec.structs import replace

from testbed.calibration import confidence
from testbed.calibration.gates import Row
from testbed.calibration.judge import judge
from testbed.calibration.observations import Arrived, Moved, Pinged, Seen
from testbed.calibration.plan import schedule
from testbed.calibration.probes import Schedule
from testbed.links.interface import Counters, LinkCounters
from testbed.network import profiles
from testbed.network.direction import Direction, GilbertElliott
from testbed.network.profiles import LinkProfile

LINE = Direction(rate_kbit=4000, delay_ms=20)
LINK = LinkProfile(name="test", up=LINE, down=Direction(rate_kbit=8000, delay_ms=10, jitter_ms=5))
PLAN = schedule(LINK, 60)


def with_up(**fields: Any) -> LinkProfile:
    return replace(LINK, up=replace(LINE, **fields))


@functools.cache
def planned(up: Direction) -> tuple[Schedule, Seen]:
    """A plan and what its probes see, not to be changed."""
    link = replace(LINK, up=up)
    plan = schedule(link, 60)
    return plan, through(plan, link)


def rows(plan: Schedule, seen: Seen) -> dict[tuple[str, str], Row]:
    return {(row.name, row.direction): row for row in judge(plan, seen)}


def found(link: LinkProfile, plan: Schedule = PLAN) -> dict[tuple[str, str], Row]:
    """Rows of a link that is ``link`` and should be the plan's."""
    return rows(plan, through(plan, link))


def missed(judged: dict[tuple[str, str], Row]) -> set[tuple[str, str]]:
    return {key for key, row in judged.items() if row.ok is False}


@pytest.mark.thorough
@pytest.mark.parametrize("name", profiles.names())
def test_a_link_that_is_exactly_what_was_asked_misses_no_gate(name: str) -> None:
    link = profiles.load(name)
    # Its losses are left to a test of their own.
    up, down = (replace(way, loss_percent=0, gilbert_elliott=None) for way in (link.up, link.down))
    lossless = replace(link, up=up, down=down)
    plan = schedule(lossless, 60)
    judged = found(lossless, plan)
    assert missed(judged) == set()
    assert judged["round trip", "both"].ok
    for way in ("up", "down"):
        if not plan.left_out and getattr(link, way).rate_kbit:
            for gate in ("delay", "rate", "queue", "goodput", "two at once", "loss", "order"):
                assert judged[gate, way].ok, gate


def test_rows_say_what_they_rest_on() -> None:
    judged = found(LINK)
    assert judged["loss", "up"].n == 10_000
    assert judged["round trip", "both"].n == judged["jitter", "down"].n == 200
    assert judged["rate", "up"].n > 500
    assert {row.link for row in judged.values()} == {"test"}


@pytest.mark.parametrize(
    ("factor", "ok"), [(0.979, False), (0.981, True), (1.019, True), (1.021, False)]
)
def test_the_rate_holds_within_two_percent(factor: float, ok: bool) -> None:
    row = found(with_up(rate_kbit=factor * 4000))["rate", "up"]
    assert row.ok is ok
    assert row.measured == pytest.approx(factor * 4000, rel=1e-4)
    assert (row.expected, row.tolerance, row.unit) == (4000, 80, "kbit/s")


@pytest.mark.parametrize(
    ("factor", "ok"), [(0.979, False), (0.981, True), (1.019, True), (1.021, False)]
)
def test_goodput_holds_within_two_percent_of_what_tcp_can_carry(factor: float, ok: bool) -> None:
    row = found(with_up(rate_kbit=factor * 4000))["goodput", "up"]
    assert row.ok is ok
    assert row.expected == pytest.approx(4000 * 1448 / 1514)


@pytest.mark.parametrize(
    ("factor", "ok"), [(0.969, False), (0.971, True), (1.029, True), (1.031, False)]
)
def test_two_at_once_hold_within_three_percent_each(factor: float, ok: bool) -> None:
    seen = through(PLAN, LINK)
    other = through(PLAN, with_up(rate_kbit=factor * 4000))
    for client in (0, 1):
        streams = {
            **seen.streams,
            ("together", client, "up"): other.streams["together", client, "up"],
        }
        row = rows(PLAN, replace_streams(seen, streams))["two at once", "up"]
        assert row.ok is ok
        assert row.measured == pytest.approx(factor * 4000, rel=1e-4)


def replace_streams(seen: Seen, streams: dict[tuple[str, int, str], Arrived]) -> Seen:
    return Seen(seen.pinged, seen.trips_ns, streams, seen.moved, seen.counted)


@pytest.mark.parametrize(
    ("more_ms", "ok"), [(-1.05, False), (-0.95, True), (0.95, True), (1.05, False)]
)
def test_a_short_delay_holds_within_a_millisecond(more_ms: float, ok: bool) -> None:
    judged = found(with_up(delay_ms=20 + more_ms))
    assert judged["delay", "up"].ok is ok
    assert judged["delay", "down"].ok


@pytest.mark.parametrize(
    ("more", "ok"), [(-0.021, False), (-0.019, True), (0.019, True), (0.021, False)]
)
def test_a_long_delay_holds_within_two_percent(more: float, ok: bool) -> None:
    far = LinkProfile(name="far", up=Direction(delay_ms=300), down=Direction(delay_ms=100))
    plan = schedule(far, 60)
    judged = found(replace(far, up=Direction(delay_ms=300 * (1 + more))), plan)
    assert judged["delay", "up"].ok is ok
    both = found(
        replace(
            far, up=Direction(delay_ms=300 + 200 * more), down=Direction(delay_ms=100 + 200 * more)
        ),
        plan,
    )
    assert both["round trip", "both"].ok is ok
    assert both["round trip", "both"].tolerance == pytest.approx(0.02 * 400)


def test_under_jitter_a_median_is_allowed_what_its_sample_scatters() -> None:
    row = found(LINK)["delay", "down"]
    expected = 10 + 8 * 68 / 8000
    assert row.expected == pytest.approx(expected)
    assert row.tolerance == pytest.approx(1 + 2.5758293 * 5 / math.sqrt(200))
    assert found(replace(LINK, down=replace(LINK.down, delay_ms=11.8)))["delay", "down"].ok
    assert not found(replace(LINK, down=replace(LINK.down, delay_ms=12.2)))["delay", "down"].ok


@pytest.mark.parametrize(
    ("factor", "ok"), [(0.88, False), (0.92, True), (1.08, True), (1.12, False)]
)
def test_jitter_holds_within_ten_percent(factor: float, ok: bool) -> None:
    row = found(replace(LINK, down=replace(LINK.down, jitter_ms=5 * factor)))["jitter", "down"]
    assert row.ok is ok
    assert row.expected == pytest.approx(5 / math.sqrt(3))
    assert row.measured == pytest.approx(factor * 5 / math.sqrt(3), rel=0.02)


def test_jitter_that_was_not_asked_for_is_missed() -> None:
    assert found(with_up(jitter_ms=1.5))["jitter", "up"].ok
    assert found(with_up(jitter_ms=2))["jitter", "up"].ok is False


def test_too_few_round_trips_do_not_tell_jitter() -> None:
    pinged = through(PLAN, LINK).pinged
    assert pinged is not None
    for count, ok in ((150, True), (149, None)):
        seen = through(PLAN, LINK)
        seen.pinged = Pinged(200, count, pinged.trips_ns[:count])
        row = rows(PLAN, seen)["jitter", "down"]
        assert row.ok is ok
    assert row.verdict == "not measured" and "149 round trips" in row.note


@pytest.mark.parametrize(
    ("factor", "ok"), [(0.88, False), (0.92, True), (1.08, True), (1.12, False)]
)
def test_the_queue_holds_within_ten_percent(factor: float, ok: bool) -> None:
    slow = Direction(rate_kbit=12_112, delay_ms=20, queue_ms=300)
    link = LinkProfile(name="queue", up=slow)
    plan = schedule(link, 60)
    row = found(replace(link, up=replace(slow, queue_ms=300 * factor)), plan)["queue", "up"]
    assert row.ok is ok
    assert row.expected == pytest.approx(299)
    assert row.measured == pytest.approx(300 * factor, abs=2)


@pytest.mark.thorough
def test_the_queue_of_a_fast_line_fills_by_overload() -> None:
    fast = Direction(rate_kbit=200_000, delay_ms=20, queue_ms=100)
    link = LinkProfile(name="fast", up=fast)
    plan = schedule(link, 60)
    assert plan.stream("rate", 0, "up").fill == 0
    assert found(link, plan)["queue", "up"].measured == pytest.approx(100, abs=0.2)
    for queue_ms, ok in ((88, False), (92, True), (108, True), (112, False)):
        row = found(replace(link, up=replace(fast, queue_ms=queue_ms)), plan)["queue", "up"]
        assert row.ok is ok


def test_a_wrong_delay_is_not_charged_to_the_queue() -> None:
    judged = found(with_up(delay_ms=80, max_packets=LINE.limit_packets + 20))
    assert judged["delay", "up"].ok is False
    assert judged["queue", "up"].measured == pytest.approx(201, abs=3.1)


def test_a_queue_that_was_never_full_is_not_measured() -> None:
    seen = through(PLAN, LINK)
    whole = seen.streams["rate", 0, "up"]
    short = Arrived(100, whole.numbers[:100], [20_000_000] * 100, whole.arrived_ns[:100])
    row = rows(PLAN, replace_streams(seen, {**seen.streams, ("rate", 0, "up"): short}))[
        "queue", "up"
    ]
    assert row.verdict == "not measured" and "never full" in row.note


@pytest.mark.parametrize(("late", "ok"), [(50, True), (51, False)])
def test_95_of_100_gaps_hold_within_ten_percent(late: int, ok: bool) -> None:
    # A thousand gaps; each packet that is 11 % of a gap early or late makes one too short or long.
    gap_ns = 8 * 1514 * 1_000_000 // 4000
    deviating = {2 * number for number in range(1, late + 1)}
    times, now = [0], 0
    for number in range(1, 1001):
        now += round(gap_ns * 1.11) if number in deviating else gap_ns
        times.append(now)
    arrived = Arrived(1001, list(range(1001)), [10**12] * 1001, times)
    seen = through(PLAN, LINK)
    row = rows(PLAN, replace_streams(seen, {**seen.streams, ("rate", 0, "up"): arrived}))[
        "packet gap", "up"
    ]
    assert row.ok is ok
    assert row.n == 1000


def test_no_gap_is_asked_of_a_line_above_100_mbit() -> None:
    link = LinkProfile(name="fast", up=Direction(rate_kbit=200_000))
    row = found(link, schedule(link, 60))["packet gap", "up"]
    assert row.verdict == "not measured" and "100 Mbit/s" in row.note


def without(arrived: Arrived, lost: int) -> Arrived:
    """The same without ``lost`` packets, which are not the first."""
    kept = [index for index in range(len(arrived.numbers)) if not 0 < index <= lost]
    return Arrived(
        arrived.sent,
        *([values[index] for index in kept] for values in arrived[1:4]),  # type: ignore[arg-type]
    )


def loss_row(link: LinkProfile, lost: int) -> Row:
    plan, seen = planned(link.up)
    key = ("shares", 0, "up")
    return rows(
        plan, replace_streams(seen, {**seen.streams, key: without(seen.streams[key], lost)})
    )["loss", "up"]


def test_loss_holds_inside_the_interval_of_its_sample() -> None:
    link = with_up(loss_percent=0.2)
    low, high = confidence.binomial(10_000, 0.002)
    assert (low, high) == (10, 32)
    for lost, ok in ((9, False), (10, True), (20, True), (32, True), (33, False)):
        row = loss_row(link, lost)
        assert row.ok is ok
        assert (row.n, row.expected) == (10_000, pytest.approx(0.2))
        assert row.measured == pytest.approx(lost / 100)


def test_of_a_packet_and_its_copy_both_must_be_lost() -> None:
    link = with_up(loss_percent=10, duplicate_percent=50)
    low, high = confidence.binomial(10_000, 0.05)
    for lost, ok in ((low - 1, False), (low, True), (high, True), (high + 1, False)):
        assert loss_row(link, lost).ok is ok


def test_a_lossless_link_loses_nothing() -> None:
    assert loss_row(LINK, 0).ok
    assert loss_row(LINK, 1).ok is False


def with_drops(seen: Seen, drops: int) -> Seen:
    seen.counted["shares"] = LinkCounters(Counters(0, 0, drops, 0), Counters(0, 0, 0, 0))
    return seen


def test_what_a_full_queue_refused_is_no_loss_of_the_line() -> None:
    key = ("shares", 0, "up")
    for gone, drops, ok in ((40, 40, True), (40, 39, False), (40, 0, False)):
        seen = through(PLAN, LINK)
        streams = {**seen.streams, key: without(seen.streams[key], gone)}
        row = rows(PLAN, with_drops(replace_streams(seen, streams), drops))["loss", "up"]
        assert row.ok is ok, (gone, drops)
        assert row.n == 10_000 - drops
        assert (f"{drops} more met a full queue" in row.note) is bool(drops)


def test_losses_cannot_be_told_where_a_tenth_met_a_full_queue() -> None:
    key = ("shares", 0, "up")
    seen = through(PLAN, LINK)
    streams = {**seen.streams, key: without(seen.streams[key], 1001)}
    row = rows(PLAN, with_drops(replace_streams(seen, streams), 1001))["loss", "up"]
    assert row.verdict == "not measured" and "1001 of 10000 met a full queue" in row.note


GIGABIT = profiles.load("ethernet")


@pytest.mark.parametrize(("factor", "ok"), [(0.95, False), (1.0, True), (1.05, False)])
def test_a_line_too_fast_for_single_packets_is_proved_by_goodput(factor: float, ok: bool) -> None:
    plan = schedule(GIGABIT, 60)
    line = replace(GIGABIT.up, rate_kbit=factor * 1_000_000)
    judged = found(replace(GIGABIT, up=line), plan)
    assert judged["goodput", "up"].ok is judged["two at once", "up"].ok is ok
    assert judged["goodput", "down"].ok and judged["two at once", "down"].ok
    for gate in ("rate", "packet gap", "queue"):
        row = judged[gate, "up"]
        assert row.verdict == "not measured" and "goodput proves the rate" in row.note
    assert missed(judged) == (set() if ok else {("goodput", "up"), ("two at once", "up")})


def test_bytes_of_tcp_are_not_held_against_what_packets_brought() -> None:
    plan = schedule(GIGABIT, 60)
    seen = through(plan, GIGABIT)
    other = LinkCounters(Counters(9, 9_999_999, 0, 0), Counters(9, 9_999_999, 0, 0))
    seen.counted |= {"goodput up": other, "together down": other}
    assert rows(plan, seen)["bytes", "up"].ok
    seen.counted["delay"] = other
    assert rows(plan, seen)["bytes", "up"].ok is False


def test_loss_in_bursts_is_allowed_the_scatter_of_its_chain() -> None:
    chain = GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=20)
    low, high = confidence.chain(10_000, chain)
    link = with_up(gilbert_elliott=chain)
    assert confidence.binomial(10_000, chain.mean_loss_percent / 100)[1] < high - 50
    for lost, ok in ((low - 1, False), (low + 1, True), (high - 1, True), (high + 1, False)):
        assert loss_row(link, round(lost)).ok is ok


def changed(link: LinkProfile, numbers: list[int], **fields: Any) -> dict[tuple[str, str], Row]:
    """Rows where the packets that were to be counted came as ``numbers``."""
    plan, seen = planned(link.up)
    key = ("shares", 0, "up")
    times = [10**9 + 1000 * index for index in range(len(numbers))]
    arrived = Arrived(10_000, numbers, [20_000_000] * len(numbers), times, **fields)
    return rows(plan, replace_streams(seen, {**seen.streams, key: arrived}))


def swapped(count: int) -> list[int]:
    """Ten thousand numbers of which ``count`` come before the one ahead of them."""
    numbers = list(range(10_000))
    for index in range(0, 2 * count, 2):
        numbers[index], numbers[index + 1] = numbers[index + 1], numbers[index]
    return numbers


def test_nothing_overtakes_and_nothing_comes_twice_unasked() -> None:
    assert changed(LINK, swapped(0))["order", "up"].ok
    early = changed(LINK, swapped(1))["order", "up"]
    assert (early.ok, early.measured) == (False, 1)
    twice = changed(LINK, [*range(10_000), 9_999])["order", "up"]
    assert (twice.ok, twice.measured) == (False, 1)


def test_shares_that_were_asked_for_hold_inside_their_interval() -> None:
    fields = {"reorder_percent": 3.0, "duplicate_percent": 3.0}
    low, high = confidence.binomial(10_000, 0.03)
    for count, ok in ((low - 1, False), (low, True), (high, True), (high + 1, False)):
        twice = [*range(10_000), *range(count)]
        judged = changed(with_up(**fields), swapped(count))
        assert judged["reordering", "up"].ok is ok
        assert ("order", "up") not in judged
        assert changed(with_up(duplicate_percent=3.0), twice)["duplicates", "up"].ok is ok


def test_a_copy_is_no_overtaker_and_an_overtaker_is_no_copy() -> None:
    judged = changed(with_up(duplicate_percent=3.0), swapped(300))
    assert judged["order", "up"].measured == 300
    assert judged["duplicates", "up"].measured == 0
    late = [*range(100), 3, *range(100, 10_000)]
    assert changed(with_up(duplicate_percent=3.0), late)["order", "up"].measured == 0


def test_flipped_bits_are_those_of_the_payload() -> None:
    link = with_up(corrupt_percent=2.0)
    # Of 500 bytes 28 are headers; netem flips in 14 more.
    low, _ = confidence.binomial(10_000, 0.02 * 472 / 514)
    _, high = confidence.binomial(10_000, 0.02 * 472 / 500)
    for count, ok in ((low - 1, False), (low, True), (high, True), (high + 1, False)):
        judged = changed(link, list(range(10_000 - count)), corrupt=count)
        assert judged["flipped bits", "up"].ok is ok
        # They came: nothing is lost but what was hit in a header.
        assert judged["loss", "up"].ok
    assert changed(LINK, list(range(9_999)), corrupt=1)["loss", "up"].ok is False


def test_what_the_receiver_had_no_room_for_is_not_the_links_loss() -> None:
    row = changed(LINK, list(range(9_990)), overflowed=10)["loss", "up"]
    assert row.ok and "10 overran" in row.note


def test_skipping_an_almost_empty_delay_line_cannot_be_counted() -> None:
    link = LinkProfile(name="x", up=Direction(delay_ms=0.5, reorder_percent=2))
    row = found(link, schedule(link, 60))["reordering", "up"]
    assert row.verdict == "not measured" and "too few are overtaken" in row.note


@pytest.mark.parametrize(
    ("factor", "ok"), [(0.9949, False), (0.9951, True), (1.0049, True), (1.0051, False)]
)
def test_counted_bytes_hold_within_half_a_percent(factor: float, ok: bool) -> None:
    seen = through(PLAN, LINK)
    counted = seen.counted["rate"]
    for way in ("up", "down"):
        count = getattr(counted, way).bytes
        other = counted._replace(**{way: Counters(0, round(factor * count), 0, 0)})
        seen.counted = {"rate": other, "goodput": counted}
        judged = rows(PLAN, seen)
        assert judged["bytes", way].ok is ok
        assert judged["bytes", "down" if way == "up" else "up"].ok


def test_a_dead_link_misses_every_gate_with_the_reason() -> None:
    seen = through(PLAN, LINK)
    seen.pinged = Pinged(200, 0, [])
    seen.streams = {key: Arrived(one.sent, [], [], []) for key, one in seen.streams.items()}
    seen.moved = {key: Moved(one.ended_ns, [], None) for key, one in seen.moved.items()}
    judged = rows(PLAN, seen)
    counted = {("bytes", "up"), ("bytes", "down")}
    assert missed(judged) | counted == set(judged)
    assert {judged[key].note for key in set(judged) - counted} == {"nothing came through"}


def test_probes_that_ended_badly_leave_missed_gates_and_no_error() -> None:
    empty = Seen(
        streams={key: Arrived(0, [], [], []) for key in through(PLAN, LINK).streams},
        moved={key: Moved(0, [], None) for key in through(PLAN, LINK).moved},
    )
    judged = rows(PLAN, empty)
    # No packets were sent, so that there is nothing that the link could have counted.
    assert missed(judged) == set(judged) - {("bytes", "up"), ("bytes", "down")}


def test_a_line_that_is_faster_than_its_sender_shows_the_senders_pace() -> None:
    row = found(with_up(rate_kbit=12_000))["rate", "up"]
    # It is sent 6000 kbit/s once its queue has been filled.
    assert row.ok is False and row.measured is not None and 5500 < row.measured < 7000
    assert "not always full" in row.note
    assert "not always full" not in found(LINK)["rate", "up"].note


def test_a_line_without_a_rate_misses_the_one_that_was_asked_for() -> None:
    row = found(with_up(rate_kbit=None))["rate", "up"]
    assert row.ok is False
    assert row.measured is None or row.measured > 4100


def test_packets_with_flipped_bits_took_their_time_on_the_line() -> None:
    link = with_up(corrupt_percent=4.0)
    plan = schedule(link, 60)
    seen = through(plan, link)
    key = ("rate", 0, "up")
    whole = seen.streams[key]
    kept = [index for index in range(len(whole.numbers)) if index % 25]
    columns = ([values[index] for index in kept] for values in whole[1:4])
    flipped = Arrived(whole.sent, *columns, len(whole.numbers) - len(kept))  # type: ignore[arg-type]
    row = rows(plan, replace_streams(seen, {**seen.streams, key: flipped}))["rate", "up"]
    assert row.measured == pytest.approx(4000, rel=2e-3)


def test_goodput_counts_from_where_slow_start_is_over() -> None:
    seen = through(PLAN, LINK)
    one = PLAN.transfer("goodput", 0, "up")
    moved = seen.moved["goodput", 0, "up"]
    begins_ns = moved.ended_ns - 1e9 * one.window_s
    late = [note for note in moved.notes if note[0] >= begins_ns]
    # Nothing came before the window, and something does when the sender has stopped.
    notes = [*late, (moved.ended_ns + 10**9, late[-1][1])]
    seen.moved["goodput", 0, "up"] = moved._replace(notes=notes)
    assert rows(PLAN, seen)["goodput", "up"].ok
    early = [(begins_ns - 10**9, late[0][1] - 10), *late]
    seen.moved["goodput", 0, "up"] = moved._replace(notes=early)
    assert rows(PLAN, seen)["goodput", "up"].ok


def test_a_line_that_its_sender_left_idle_shows_the_rate_it_had_meanwhile() -> None:
    # Half of it as it should be; then the line stands idle for a second, and goes on.
    seen = through(PLAN, LINK)
    one = seen.streams["rate", 0, "up"]
    middle, pause_ns = len(one.numbers) // 2, 1_000_000_000
    paused = Arrived(
        one.sent,
        one.numbers,
        [*one.delays_ns[:middle], *([23_028_000] * 1), *one.delays_ns[middle + 1 :]],
        [*one.arrived_ns[:middle], *(time + pause_ns for time in one.arrived_ns[middle:])],
    )
    row = rows(PLAN, replace_streams(seen, {**seen.streams, ("rate", 0, "up"): paused}))[
        "rate", "up"
    ]
    assert row.ok and row.measured == pytest.approx(4000, rel=1e-4)


def test_what_the_plan_leaves_out_is_not_measured_and_says_why() -> None:
    short = schedule(LINK, 5)
    assert short.left_out
    judged = found(LINK, short)
    for purpose, gates in (("goodput", ["goodput"]), ("together", ["two at once"])):
        assert purpose in short.left_out
        for gate in gates:
            assert judged[gate, "up"].verdict == "not measured"
            assert "--seconds=" in judged[gate, "up"].note


def test_goodput_under_loss_is_shown_and_not_judged() -> None:
    link = with_up(loss_percent=0.2)
    row = found(link, schedule(link, 60))["goodput", "up"]
    assert row.verdict == "not judged" and row.measured is not None
    assert "bounded by loss" in row.note and row.tolerance is None


def test_an_outage_loses_everything_and_nothing_else_is_asked_of_it() -> None:
    link = with_up(outage=True)
    plan = schedule(link, 60)
    judged = found(link, plan)
    assert judged["loss", "up"].measured == judged["loss", "up"].expected == 100
    assert judged["loss", "up"].ok and judged["loss", "down"].ok and judged["rate", "down"].ok
    for gate in ("delay", "rate", "goodput", "two at once"):
        assert judged[gate, "up"].verdict == "not measured" and "outage" in judged[gate, "up"].note
    leaking = found(LINK, plan)
    assert leaking["loss", "up"].ok is False


@pytest.fixture
def trace(tmp_path: Any) -> str:
    file = tmp_path / "wavy.trace"
    # Ten chances in the first half of each second, forty in the second.
    times = [*range(50, 550, 50), *(500 + number * 25 // 2 for number in range(1, 41))]
    file.write_text("\n".join(map(str, times)))
    return str(file)


def test_a_trace_is_judged_by_its_mean_over_whole_periods(trace: str) -> None:
    link = LinkProfile(name="trace", up=Direction(trace=trace, delay_ms=5))
    plan = schedule(link, 60)
    judged = found(link, plan)
    assert judged["rate", "up"].expected == pytest.approx(50 * 8 * 1514 / 1000)
    assert judged["rate", "up"].measured == pytest.approx(judged["rate", "up"].expected)
    assert judged["rate", "up"].n == 100 and judged["two at once", "up"].ok
    for gate in ("delay", "queue", "packet gap"):
        assert judged[gate, "up"].verdict == "not measured" and "trace" in judged[gate, "up"].note
    assert "trace" in judged["round trip", "both"].note
    assert judged["delay", "down"].ok
    slower = found(replace(link, up=Direction(rate_kbit=570, delay_ms=5, queue_ms=3000)), plan)
    assert slower["rate", "up"].ok is False


def test_links_of_streams_are_asked_for_what_streams_show() -> None:
    link = with_up(loss_percent=1.0)
    plan = schedule(link, 60, streams=True)
    seen = through(plan, link)
    judged = rows(plan, seen)
    assert judged["round trip", "both"].ok
    # 12,112 bits a frame over 30 ms, times sqrt(1.5 / 0.01): 4945 kbit/s, above the line's 4000.
    assert judged["goodput", "up"].expected == pytest.approx(4000 * 1448 / 1514)
    assert judged["goodput", "up"].ok and judged["two at once", "down"].ok
    for gate, way in (("loss", "up"), ("queue", "up"), ("jitter", "down")):
        assert judged[gate, way].verdict == "not measured"
        assert "per packet" in judged[gate, way].note
    assert not {("bytes", "up"), ("rate", "up"), ("delay", "up")} & set(judged)


def test_streams_under_loss_are_held_against_the_rate_that_it_leaves_them() -> None:
    link = with_up(loss_percent=4.0)
    plan = schedule(link, 60, streams=True)
    row = found(link, plan)["goodput", "up"]
    assert row.expected == pytest.approx(12.112 / 0.03 * math.sqrt(1.5 / 0.04) * 1448 / 1514)
    assert row.ok is False and "for its loss" in row.note


def test_the_model_of_jitter_fills_its_range() -> None:
    delays = [shaken_ms(LINK.down, number) for number in range(1000)]
    assert (min(delays), max(delays)) == pytest.approx((5, 15), abs=0.1)
