"""The queue model against hand calculations, and against what holds for every sequence."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.links.queueing.queue import FOREVER, LinkQueue
from testbed.network.direction import FRAME_BYTES, Direction

MS = 0.001
BYTE_PER_US = 8000.0
"""A rate in kbit/s at which 1000 bytes take a millisecond."""


def line(seed: int = 1, **fields: float) -> LinkQueue[int]:
    return LinkQueue(Direction(**fields), seed)


def releases(queue: LinkQueue[int]) -> list[float]:
    return [queue.pop()[0] for _ in range(len(queue))]


def taken_by(queue: LinkQueue[int], now: float) -> list[tuple[float, int]]:
    """(release, number) of every segment that the queue lets go of by then."""
    found = []
    while len(queue) and queue.due <= now:
        release, _, first, count, step, _ = queue.take(now)
        assert release + (count - 1) * step <= now + 1e-9
        found += [(release + number * step, first + number) for number in range(count)]
    return found


def approx_ms(*times: float) -> object:
    return pytest.approx([time * MS for time in times], abs=1e-12)


def test_a_line_without_limits_releases_at_once():
    queue: LinkQueue[str] = LinkQueue(None, seed=0)
    assert queue.due == FOREVER
    assert queue.offer(5.0, 1500, "a") and queue.offer(5.0, 1500, "b")
    assert queue.due == 5.0
    assert [queue.pop(), queue.pop()] == [(5.0, "a"), (5.0, "b")]
    with pytest.raises(IndexError):
        queue.pop()


def test_an_empty_line_adds_delay_and_serialisation():
    queue = line(rate_kbit=BYTE_PER_US, delay_ms=10)
    queue.offer(0.0, 500, 0)
    assert releases(queue) == approx_ms(10.5)


def test_a_burst_leaves_at_the_rate():
    queue = line(rate_kbit=BYTE_PER_US, delay_ms=10)
    for number in range(3):
        queue.offer(0.0, 1000, number)
    assert releases(queue) == approx_ms(11, 12, 13)


def test_the_line_idles_between_sparse_packets():
    queue = line(rate_kbit=BYTE_PER_US, delay_ms=10)
    for start in (0.0, 5 * MS, 5.5 * MS):
        queue.offer(start, 1000, 0)
    assert releases(queue) == approx_ms(11, 16, 17)


def test_a_late_reader_does_not_slow_the_line_down():
    queue = line(rate_kbit=BYTE_PER_US)
    queue.offer(0.0, 1000, 0)
    assert queue.pop()[0] == pytest.approx(1 * MS)
    queue.offer(0.5 * MS, 1000, 1)
    assert queue.pop()[0] == pytest.approx(2 * MS)


def test_each_packet_comes_back_with_its_own_release():
    queue = line(delay_ms=1)
    queue.offer(0.0, 100, 7)
    queue.offer(1.0, 100, 8)
    assert [packet for _, packet in (queue.pop(), queue.pop())] == [7, 8]


def test_the_limit_counts_delay_line_and_queue_and_frees_as_packets_leave():
    # 8000 kbit/s: 10 ms of delay are 7 frames of 1514 bytes, 5 ms of queue are 4.
    queue = line(rate_kbit=BYTE_PER_US, delay_ms=10, queue_ms=5)
    taken = [queue.offer(0.0, FRAME_BYTES, number) for number in range(13)]
    assert taken == [True] * 11 + [False] * 2
    assert queue.queue_drops == 2
    queue.pop()
    assert queue.offer(0.0, FRAME_BYTES, 13)
    assert not queue.offer(0.0, FRAME_BYTES, 14)
    assert (queue.queue_drops, queue.losses, len(queue)) == (3, 0, 11)


def test_what_has_left_makes_room_though_nobody_has_taken_it():
    queue = line(rate_kbit=BYTE_PER_US, max_packets=4)
    assert queue.offer(0.0, 1000, 0, 0, 4) == 4
    assert queue.offer(0.9 * MS, 1000, 1) == 0
    assert queue.offer(1.0 * MS, 1000, 2) == 1
    assert queue.offer(3.5 * MS, 1000, 3, 0, 9) == 2
    assert (len(queue), queue.queue_drops) == (7, 8)


def test_a_burst_is_cut_where_the_queue_is_full():
    queue = line(rate_kbit=BYTE_PER_US, max_packets=10)
    assert queue.offer(0.0, 1000, 7, 3, 16) == 10
    assert queue.queue_drops == 6
    assert [number for _, number in taken_by(queue, FOREVER)] == list(range(3, 13))


def test_segments_of_a_burst_leave_one_by_one_as_their_times_come():
    queue = line(rate_kbit=BYTE_PER_US, delay_ms=10)
    queue.offer(0.0, 1000, 7, 0, 5)
    assert queue.due == pytest.approx(11 * MS)
    assert queue.take(11.5 * MS) == (pytest.approx(11 * MS), 7, 0, 1, pytest.approx(1 * MS), 1000)
    assert queue.due == pytest.approx(12 * MS)
    assert [number for _, number in taken_by(queue, 14.5 * MS)] == [1, 2, 3]
    assert len(queue) == 1
    assert taken_by(queue, 15.5 * MS) == [(pytest.approx(15 * MS), 4)]
    assert queue.due == FOREVER


def test_jitter_is_uniform_on_a_line_without_backlog():
    queue = line(delay_ms=20, jitter_ms=8)
    number = 20_000
    for index in range(number):
        queue.offer(float(index), 1500, index)
    delays = [release - index for index, release in enumerate(releases(queue))]
    mean = sum(delays) / number
    deviation = math.sqrt(sum((delay - mean) ** 2 for delay in delays) / number)
    assert min(delays) >= 12 * MS and max(delays) <= 28 * MS
    assert mean == pytest.approx(20 * MS, rel=0.01)
    assert deviation == pytest.approx(8 * MS / math.sqrt(3), rel=0.03)


def test_jitter_is_absorbed_under_backlog():
    queue = line(rate_kbit=BYTE_PER_US, delay_ms=20, jitter_ms=8, queue_ms=1000)
    for index in range(200):
        queue.offer(0.0, 1000, index)
    times = releases(queue)
    # The first packets may find the line free; from 8 + 8 ms of backlog on nothing can.
    gaps = [after - before for before, after in itertools.pairwise(times[20:])]
    assert gaps == pytest.approx([1 * MS] * len(gaps))


def test_loss_keeps_inside_the_binomial_interval_and_takes_no_room():
    queue = line(loss_percent=2, rate_kbit=BYTE_PER_US, queue_ms=1e6)
    number = 20_000
    taken = sum(queue.offer(0.0, 1000, index) for index in range(number))
    half_width = 2.576 * math.sqrt(0.02 * 0.98 / number)
    assert queue.losses / number == pytest.approx(0.02, abs=half_width)
    assert taken == len(queue) == number - queue.losses
    assert releases(queue)[-1] == pytest.approx(taken * MS)
    assert queue.queue_drops == 0


def test_the_seed_fixes_jitter_and_loss():
    def run(seed: int) -> list[float]:
        queue = line(seed, delay_ms=20, jitter_ms=8, loss_percent=10)
        for index in range(100):
            queue.offer(float(index), 1500, index)
        return releases(queue)

    assert run(1) == run(1) != run(2)


def test_new_parameters_leave_what_flies_alone_and_hold_for_the_rest():
    queue = line(rate_kbit=BYTE_PER_US, delay_ms=50)
    queue.offer(0.0, 1000, 0)
    queue.shape(Direction(rate_kbit=2 * BYTE_PER_US, delay_ms=1))
    queue.offer(0.0, 1000, 1)
    queue.offer(1.0, 1000, 2)
    # The second does not overtake the first; the third meets only the new line.
    assert releases(queue) == approx_ms(51, 51.5, 1001.5)


def test_a_smaller_limit_drops_nothing_that_is_already_in():
    queue = line(rate_kbit=BYTE_PER_US, queue_ms=100)
    for index in range(50):
        assert queue.offer(0.0, FRAME_BYTES, index)
    queue.shape(Direction(rate_kbit=BYTE_PER_US, queue_ms=1))
    assert not queue.offer(0.0, FRAME_BYTES, 50)
    assert len(queue) == 50
    queue.shape(Direction())
    assert queue.offer(0.0, FRAME_BYTES, 51)


directions = st.builds(
    lambda delay_ms, jitter, **fields: Direction(
        delay_ms=delay_ms, jitter_ms=delay_ms * jitter, **fields
    ),
    rate_kbit=st.one_of(st.none(), st.floats(1, 1e7)),
    delay_ms=st.floats(0, 1000),
    jitter=st.floats(0, 1),
    loss_percent=st.sampled_from([0.0, 0.0, 30.0]),
    queue_ms=st.floats(0.1, 1000),
)
packets = st.lists(st.tuples(st.floats(0, 0.1), st.integers(60, FRAME_BYTES)), max_size=60)


@settings(derandomize=True, deadline=None)
@given(directions, packets, st.integers(0, 9))
def test_what_holds_for_every_line(direction, arrivals, seed):
    queue: LinkQueue[int] = LinkQueue(direction, seed)
    limit = direction.limit_packets or FOREVER
    now, offered = 0.0, []
    for number, (gap, size) in enumerate(arrivals):
        now += gap
        room = queue.room(now) > 0
        drops, losses = queue.queue_drops, queue.losses
        if queue.offer(now, size, number):
            assert room and (queue.queue_drops, queue.losses) == (drops, losses)
            offered.append((number, now, size))
        elif queue.losses > losses:
            assert direction.loss_percent and queue.queue_drops == drops
        else:
            assert not room and queue.queue_drops == drops + 1
    assert len(queue) == len(offered)

    seconds_per_byte = 8e-3 / direction.rate_kbit if direction.rate_kbit else 0.0
    earliest_ms = direction.delay_ms - direction.jitter_ms
    before, left = -FOREVER, []
    for number, entered, size in offered:
        due = queue.due
        release, packet = queue.pop()
        assert (release, packet) == (due, number), "reordered"
        serialisation = size * seconds_per_byte
        assert release >= before + serialisation - 1e-9, "faster than the rate"
        assert release >= entered + earliest_ms * MS + serialisation - 1e-9, "before its delay"
        if before <= entered:
            latest_ms = direction.delay_ms + direction.jitter_ms
            assert release <= entered + latest_ms * MS + serialisation + 1e-9, "an idle line waited"
        assert sum(entered < other for other in left) < limit, "more than the limit"
        left.append(release)
        before = release


bursts = st.lists(
    st.tuples(
        st.floats(0, 0.02),
        st.integers(1, 12),
        st.sampled_from([0.0, 0.0, 1e-5, 1e-3]),
        st.sampled_from([66, 700, FRAME_BYTES]),
    ),
    max_size=12,
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.builds(
        Direction,
        rate_kbit=st.one_of(st.none(), st.floats(100, 1e6)),
        delay_ms=st.floats(0, 20),
        queue_ms=st.just(1e6),
    ),
    bursts,
    st.lists(st.floats(0, 0.5), max_size=4),
)
def test_a_burst_is_served_as_its_segments_one_by_one(direction, arrivals, looks):
    whole, single = LinkQueue[int](direction, 1), LinkQueue[int](direction, 1)
    now, number = 0.0, 0
    for gap, count, spacing, size in arrivals:
        now += gap
        assert whole.offer(now, size, 0, number, count, spacing) == count
        for segment in range(count):
            single.offer(now + segment * spacing, size, 0, number + segment)
        now += count * spacing
        number += count
    # Taken at any times, in pieces.
    found = [pair for look in (*sorted(looks), FOREVER) for pair in taken_by(whole, look)]
    expected = taken_by(single, FOREVER)
    assert [n for _, n in found] == [n for _, n in expected] == list(range(number))
    assert [t for t, _ in found] == pytest.approx([t for t, _ in expected], abs=1e-9)


def test_jitter_that_backlog_does_not_absorb_is_each_segments_own():
    queue = line(rate_kbit=BYTE_PER_US, delay_ms=20, jitter_ms=8)
    queue.offer(0.0, 100, 7, 0, 50)
    times = [release for release, _ in taken_by(queue, FOREVER)]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert max(gaps) > 0.2 * MS and min(gaps) == pytest.approx(0.1 * MS)
    assert times[-1] <= (28 + 5) * MS


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(directions, packets), max_size=4))
def test_no_change_of_parameters_reorders(phases):
    queue: LinkQueue[int] = LinkQueue(None, seed=3)
    now, number, before = 0.0, 0, (-FOREVER, -1)
    for direction, arrivals in phases:
        queue.shape(direction)
        for gap, size in arrivals:
            now += gap
            queue.offer(now, size, number)
            number += 1
            while queue.due <= now:
                popped = queue.pop()
                assert popped[0] >= before[0] and popped[1] > before[1]
                before = popped
    while len(queue):
        popped = queue.pop()
        assert popped[0] >= before[0] and popped[1] > before[1]
        before = popped


@pytest.mark.parametrize(
    "fields",
    [
        {"rate_kbit": BYTE_PER_US, "delay_ms": 5},
        {"rate_kbit": BYTE_PER_US, "delay_ms": 5, "max_packets": 4},
        {"rate_kbit": BYTE_PER_US, "delay_ms": 5, "jitter_ms": 3, "loss_percent": 30},
        {"delay_ms": 5, "duplicate_percent": 40, "reorder_percent": 40, "corrupt_percent": 10},
    ],
)
def test_each_segment_is_told_as_it_enters_with_the_release_that_it_then_has(
    fields: dict[str, float],
):
    queue, told = line(**fields), []

    def segments(entry: tuple[float, int, int, int, float, int]) -> list[tuple[float, int, int]]:
        release, packet, first, count, step, _ = entry
        return [(release + n * step, packet, first + n) for n in range(count)]

    queue.entered = lambda entry: told.extend(segments(entry))
    for number in range(30):
        queue.offer(number * MS, 1000, number, 0, 1 + number % 3, 0.2 * MS)
    left = [each for _ in iter(lambda: len(queue), 0) for each in segments(queue.take())]
    assert left
    assert sorted(told) == sorted(left)
