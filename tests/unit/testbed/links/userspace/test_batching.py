"""When the link process sleeps, by a clock of the test's own."""

from types import SimpleNamespace

import pytest

from testbed.links.queueing.queue import FOREVER
from testbed.links.userspace import batching
from testbed.links.userspace.batching import (
    BATCH_S,
    LEAST_REST,
    MOST_FRAMES_PER_S,
    POLLED_S,
    WINDOW_S,
    Batching,
    polled_s,
)
from testbed.network.direction import Direction


class Clock:
    """Time passes in sleeping, and where the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float | None] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def select(self, readers, writers, others, seconds: float | None):
        self.slept.append(seconds)
        self.now += 5.0 if seconds is None else seconds
        return [], [], []


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=clock.sleep)
    monkeypatch.setattr(batching, "time", fake)
    monkeypatch.setattr(batching, "select", SimpleNamespace(select=clock.select))
    return clock


def busy(clock: Clock, waiting: Batching, frames_per_s: float, load: float, windows: float) -> None:
    """Work for a share ``load`` of each millisecond; something is due when it ends."""
    carried, began = waiting.frames, clock.now
    while clock.now < began + windows * WINDOW_S:
        ends = clock.now + 0.001
        clock.now += load * 0.001
        waiting.frames = carried + round(frames_per_s * (clock.now - began))
        waiting.wait(ends - clock.now)


def test_with_nothing_due_it_sleeps_until_something_can_be_read(clock):
    Batching(7).wait(FOREVER)
    assert clock.slept == [None]


def test_it_sleeps_as_long_as_it_is_told_and_not_where_that_is_over(clock):
    waiting = Batching(7)
    waiting.wait(0.005 - POLLED_S)
    assert clock.slept == [pytest.approx(0.005 - POLLED_S)]
    for late_s in (0.0, 1e-6):
        waiting.wait(-late_s)
    assert len(clock.slept) == 1


@pytest.mark.parametrize(
    ("rate_kbit", "polled"),
    [(None, False), (21_300, False), (25_000, True), (100_000, True), (200_000, False)],
)
def test_only_lines_that_need_it_and_have_time_for_it_are_polled(rate_kbit, polled):
    assert polled_s(Direction(rate_kbit=rate_kbit)) == (POLLED_S if polled else 0)


def test_a_node_without_a_profile_is_not_polled():
    assert polled_s(None) == 0


def test_what_a_core_can_do_frame_by_frame_is_done_so(clock):
    waiting = Batching(7)
    busy(clock, waiting, 0.9 * MOST_FRAMES_PER_S, 0.9, 5)
    assert not waiting.batches
    assert waiting.frames_in_batches == 0


def test_more_frames_are_carried_in_turns_until_there_are_less(clock):
    waiting = Batching(7)
    busy(clock, waiting, 2 * MOST_FRAMES_PER_S, 0.1, 4)
    assert waiting.batches
    waiting.wait(0.0)
    clock.slept.clear()
    clock.now += BATCH_S / 4
    waiting.wait(0.0)
    assert clock.slept == [pytest.approx(BATCH_S * 3 / 4)]
    assert 0 < waiting.frames_in_batches < waiting.frames
    busy(clock, waiting, MOST_FRAMES_PER_S / 2, 0.1, 4)
    assert not waiting.batches
    before = waiting.frames_in_batches
    busy(clock, waiting, MOST_FRAMES_PER_S / 2, 0.1, 4)
    assert waiting.frames_in_batches == before


def test_a_process_that_cannot_rest_works_in_turns_and_rests_in_each(clock):
    waiting = Batching(7)
    busy(clock, waiting, 1000, 1.0, 4)
    assert waiting.batches
    busy(clock, waiting, 1000, 1.0, 10)
    assert waiting.batches
    clock.slept.clear()
    clock.now += 0.010
    waiting.wait(0.0)
    assert clock.slept == [pytest.approx(0.010 * LEAST_REST)]
    busy(clock, waiting, 1000, 0.1, 4)
    assert not waiting.batches


def test_polling_is_given_up_before_that_and_taken_up_when_it_is_calm(clock):
    waiting = Batching(7)

    busy(clock, waiting, 1000, 1.0, 1.5)
    assert not waiting.batches
    assert not waiting.polls
    busy(clock, waiting, 1000, 0.8, 3)
    assert not waiting.batches
    assert not waiting.polls
    busy(clock, waiting, 1000, 0.1, 3)
    assert waiting.polls
