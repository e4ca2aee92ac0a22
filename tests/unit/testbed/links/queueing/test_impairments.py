"""Duplicates, losses, corrupt and reordered packets in the order in which netem draws them."""

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.links.queueing.queue import LinkQueue
from testbed.network.direction import Direction, GilbertElliott

MS = 0.001


class Line(LinkQueue[str]):
    """A queue that names corrupt packets by the order in which they were made."""

    def __init__(self, seed: int = 1, **fields: object) -> None:
        self.made = 0
        super().__init__(Direction(**fields), seed, 0.0, self._make)

    def _make(self, packet: str, number: int, random: Random) -> str:
        self.made += 1
        return f"{packet}{number}!{self.made}"

    def all(self) -> list[tuple[float, str]]:
        return [self.pop() for _ in range(len(self))]


def test_a_duplicate_comes_twice_and_takes_its_time_on_the_line():
    queue = Line(duplicate_percent=100, rate_kbit=8000)
    assert queue.offer(0.0, 1000, "a") == 2
    assert queue.all() == [(pytest.approx(1 * MS), "a"), (pytest.approx(2 * MS), "a")]
    assert (queue.losses, queue.queue_drops) == (0, 0)


def test_the_duplicate_enters_before_its_original():
    # The original is corrupted first, and its duplicate then is another packet.
    queue = Line(duplicate_percent=100, corrupt_percent=100)
    queue.offer(0.0, 1000, "a")
    assert [packet for _, packet in queue.all()] == ["a0!2", "a0!1"]


ALWAYS_BAD = GilbertElliott(good_to_bad_percent=100, bad_to_good_percent=1e-9)
BY_TURNS = GilbertElliott(good_to_bad_percent=100, bad_to_good_percent=100)


def test_what_is_both_duplicated_and_lost_stays_one_and_is_no_loss():
    queue = Line(duplicate_percent=100, gilbert_elliott=ALWAYS_BAD)
    # The chain begins good: of the first packet only the duplicate is lost.
    assert queue.offer(0.0, 1000, "a") == 1
    assert queue.losses == 1
    for _ in range(5):
        assert queue.offer(0.0, 1000, "b") == 1
    assert (queue.losses, len(queue)) == (1, 6)


def test_a_duplicate_goes_through_the_loss_of_its_own():
    queue = Line(duplicate_percent=100, gilbert_elliott=BY_TURNS)
    for _ in range(5):
        assert queue.offer(0.0, 1000, "a") == 1
    assert (queue.losses, len(queue)) == (5, 5)


def test_an_original_follows_its_duplicate_beyond_the_limit_and_a_full_queue_drops_one():
    queue = Line(duplicate_percent=100, delay_ms=10, max_packets=3)
    assert [queue.offer(0.0, 1000, name) for name in "abc"] == [2, 2, 0]
    assert (len(queue), queue.queue_drops) == (4, 1)
    queue = Line(duplicate_percent=100, delay_ms=10, max_packets=1)
    assert queue.offer(0.0, 1000, "a") == 2


def test_corruption_comes_before_the_limit():
    queue = Line(corrupt_percent=100, delay_ms=10, max_packets=1)
    assert [queue.offer(0.0, 1000, name) for name in "ab"] == [1, 0]
    assert queue.made == 2


def test_a_segment_that_is_corrupt_is_a_packet_of_its_own():
    queue = Line(corrupt_percent=100, rate_kbit=8000)
    assert queue.offer(0.0, 1000, "a", 4, 3) == 3
    taken = [queue.take() for _ in range(3)]
    assert [entry[1:4] for entry in taken] == [("a4!1", 0, 1), ("a5!2", 0, 1), ("a6!3", 0, 1)]


def test_a_reordered_packet_leaves_at_once_before_all_and_beside_the_line():
    queue = Line(delay_ms=50, rate_kbit=8000)
    queue.offer(0.0, 1000, "a")
    queue.shape(Direction(delay_ms=50, rate_kbit=8000, reorder_percent=100))
    queue.offer(3 * MS, 1000, "b")
    queue.shape(Direction(delay_ms=50, rate_kbit=8000))
    queue.offer(3 * MS, 1000, "c")
    assert queue.due == 3 * MS
    assert queue.all() == [
        (3 * MS, "b"),
        (pytest.approx(51 * MS), "a"),
        (pytest.approx(54 * MS), "c"),
    ]


def test_a_reordered_packet_needs_room():
    queue = Line(delay_ms=50, max_packets=1)
    queue.offer(0.0, 1000, "a")
    queue.shape(Direction(delay_ms=50, reorder_percent=100, max_packets=1))
    assert queue.offer(1 * MS, 1000, "b") == 0
    assert queue.queue_drops == 1


def test_each_impairment_has_its_share():
    queue = Line(duplicate_percent=5, corrupt_percent=10, reorder_percent=20, delay_ms=1)
    number = 20_000
    ahead = 0
    for index in range(number):
        queue.offer(float(index), 1000, "a")
        while len(queue):
            ahead += queue.pop()[0] == index

    def near(share: float, of: float = number) -> object:
        return pytest.approx(share * of, abs=3.5 * math.sqrt(share * (1 - share) * of))

    entered = number * 1.05
    assert ahead == near(0.2, entered)
    assert queue.made == near(0.1, entered)
    assert (queue.losses, queue.queue_drops) == (0, 0)


def test_duplicates_have_their_share():
    queue = Line(duplicate_percent=5)
    entered = sum(queue.offer(0.0, 1000, "a") for _ in range(20_000))
    assert entered - 20_000 == pytest.approx(1000, abs=110)


def test_in_an_outage_all_is_lost_and_counted_until_it_ends():
    queue = Line(delay_ms=50)
    queue.offer(0.0, 1000, "a")
    queue.shape(Direction(delay_ms=50, outage=True, duplicate_percent=100))
    assert queue.offer(0.0, 1000, "b", 0, 7) == 0
    assert (queue.losses, queue.queue_drops) == (7, 0)
    queue.shape(Direction(delay_ms=50))
    assert queue.offer(1.0, 1000, "c") == 1
    assert queue.all() == [(pytest.approx(0.05), "a"), (pytest.approx(1.05), "c")]


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        # Off the grid of releases, so that no packet comes at the very time when another leaves.
        st.tuples(
            st.integers(0, 100).map(lambda steps: steps * 1e-4 + 7.1e-6),
            st.integers(1, 20),
            st.sampled_from([0.0, 0.001]),
        ),
        max_size=12,
    ),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from(
        [
            {"loss_percent": 20},
            {"gilbert_elliott": BY_TURNS},
            {
                "gilbert_elliott": GilbertElliott(
                    good_to_bad_percent=10, bad_to_good_percent=40, good_loss_percent=5
                )
            },
        ]
    ),
)
def test_a_burst_loses_what_its_segments_would_lose(arrivals, seed, ample, model):
    shape = {"rate_kbit": 20_000, "delay_ms": 3, **model}
    if ample:
        shape["queue_ms"] = 1e6
    else:
        # A burst is held against the limit when its first segment comes.
        shape["max_packets"] = 40
        arrivals = [(gap, count, 0.0) for gap, count, _ in arrivals]
    whole, single = Line(seed, **shape), Line(seed, **shape)
    now, number = 0.0, 0
    found: list[list[tuple[int, float]]] = [[], []]

    def take(until: float) -> None:
        for queue, segments in zip((whole, single), found, strict=True):
            while queue.due <= until:
                release, _, first, count, step, _ = queue.take(until)
                segments += [(first + i, release + i * step) for i in range(count)]

    for gap, count, spacing in arrivals:
        now += gap
        take(now)
        entered = whole.offer(now, 1000, "", number, count, spacing)
        assert entered == sum(
            single.offer(now + i * spacing, 1000, "", number + i) for i in range(count)
        )
        now += count * spacing
        number += count
    take(1e9)
    assert (whole.losses, whole.queue_drops) == (single.losses, single.queue_drops)
    assert [n for n, _ in found[0]] == [n for n, _ in found[1]]
    assert [t for _, t in found[0]] == pytest.approx([t for _, t in found[1]])
