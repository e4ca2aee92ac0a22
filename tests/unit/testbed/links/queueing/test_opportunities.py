"""Mahimahi traces: each packet's time against hand calculations and a replay chance by chance."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.links.queueing.opportunities import Opportunities
from testbed.links.queueing.queue import LinkQueue
from testbed.network.direction import FRAME_OVERHEAD_BYTES, Direction
from testbed.network.traces import OPPORTUNITY_BYTES, Trace

MS = 0.001


def times(stamps: tuple[int, ...], packets: list[tuple[float, int]], start: float = 0.0):
    """When each packet, (ready in ms, IP bytes), has left, in ms since the start."""
    line = Opportunities(Trace(stamps), start)
    return [round((line.send(start + ready * MS, size) - start) / MS, 6) for ready, size in packets]


def test_a_full_packet_takes_one_opportunity():
    assert times((2, 5, 9), [(0, 1500), (0, 1500), (0, 1500)]) == [2, 5, 9]


def test_equal_stamps_are_several_opportunities():
    assert times((2, 2, 9), [(0, 1500), (0, 1500), (0, 1500)]) == [2, 2, 9]


def test_small_packets_share_one():
    assert times((2, 5), [(0, 500), (0, 500), (0, 500), (0, 1)]) == [2, 2, 2, 5]


def test_a_packet_goes_on_in_the_next():
    assert times((2, 5, 9), [(0, 1000), (0, 1000), (0, 1000), (0, 1500)]) == [2, 5, 5, 9]
    assert times((2, 5, 9), [(0, 4500)]) == [9]


def test_what_nobody_waits_for_is_gone():
    assert times((2, 5, 9), [(3, 100)]) == [5]
    # The rest of the one at 5 ms is not kept for what comes after it.
    assert times((2, 5, 9), [(3, 100), (6, 1500)]) == [5, 9]


def test_one_that_comes_at_the_very_time_serves():
    assert times((2, 5, 9), [(5, 1500), (5, 700), (9, 100)]) == [5, 9, 9]


def test_a_period_ends_at_the_last_stamp_and_begins_anew():
    assert times((2, 10), [(0, 1500)] * 5) == [2, 10, 12, 20, 22]
    assert times((2, 10), [(1_000_011, 1500)]) == [1_000_012]
    assert times((2, 10), [(1_000_010, 1500)] * 2) == [1_000_010, 1_000_012]


def test_a_stamp_at_zero_repeats_with_each_period():
    assert times((0, 10), [(0, 1500)] * 5) == [0, 10, 10, 20, 20]
    assert times((0, 10), [(10, 1500)] * 3) == [10, 10, 20]


def test_the_trace_counts_from_its_start():
    assert times((2, 5), [(0, 1500), (7, 1500)], start=1234.5) == [2, 7]


def replayed(stamps: tuple[int, ...], packets: list[tuple[float, int]]) -> list[int]:
    """As Mahimahi does it: opportunity by opportunity, byte by byte."""
    left: list[int] = []
    waiting = [[ready, size] for ready, size in packets]
    period = 0
    while waiting:
        for stamp in stamps:
            now, room = period * stamps[-1] + stamp, OPPORTUNITY_BYTES
            while waiting and room and waiting[0][0] <= now:
                sent = min(room, waiting[0][1])
                room -= sent
                waiting[0][1] -= sent
                if not waiting[0][1]:
                    waiting.pop(0)
                    left.append(now)
        period += 1
    return left


stamps = (
    st.lists(st.integers(0, 40), min_size=1, max_size=20)
    .map(sorted)
    .filter(lambda found: found[-1] > 0)
    .map(tuple)
)
arrivals = st.lists(
    st.tuples(st.integers(0, 30).map(lambda quarters: quarters / 4), st.integers(20, 4000)),
    max_size=40,
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(stamps, arrivals)
def test_packets_leave_as_in_a_replay(stamps, arrivals):
    ready, packets = 0.0, []
    for gap, size in arrivals:
        ready += gap
        packets.append((ready, size))
    assert times(stamps, packets) == replayed(stamps, packets)


@pytest.fixture
def traced(tmp_path):
    path = tmp_path / "trace"
    path.write_text("4\n8\n20\n")
    return Direction(trace=str(path), delay_ms=5)


def test_a_line_waits_its_delay_and_then_for_the_trace(traced):
    queue: LinkQueue[str] = LinkQueue(traced, 1, now=100.0)
    assert queue.offer(100.0, 1500 + FRAME_OVERHEAD_BYTES, "a", 0, 2) == 2
    assert queue.offer(100.010, 100, "b") == 1
    assert queue.due == pytest.approx(100.008)
    taken = [queue.take() for _ in range(3)]
    assert [entry[0] - 100 for entry in taken] == pytest.approx([0.008, 0.020, 0.024])
    assert [entry[1:4] for entry in taken] == [("a", 0, 1), ("a", 1, 1), ("b", 0, 1)]


def test_a_trace_begins_anew_with_each_shape_and_overtakes_nothing(traced):
    queue: LinkQueue[str] = LinkQueue(traced, 1, now=100.0)
    queue.offer(100.0, 1514, "a")
    queue.shape(Direction(trace=traced.trace), now=100.001)
    queue.offer(100.001, 1514, "b")
    queue.offer(100.001, 1514, "c")
    assert [round(queue.pop()[0] - 100, 6) for _ in range(3)] == [0.008, 0.009, 0.021]
    queue.shape(Direction(rate_kbit=12_112), now=101.0)
    queue.offer(101.0, 1514, "d")
    assert queue.pop()[0] == pytest.approx(101.001)


def test_a_long_trace_is_not_searched_packet_by_packet():
    trace = Trace(tuple(range(1, 200_001)))
    line = Opportunities(trace, 0.0)
    began = time.perf_counter()
    for number in range(2000):
        line.send(number * 90.0, 1500)
    # A search from its beginning would look at 10^8 stamps.
    assert time.perf_counter() - began < 2
