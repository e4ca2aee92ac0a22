"""The offset of another host's clock: within its bound, however uneven the ways."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.links.tunnel.clocks import MOST_DRIFT, Contradiction, Offset

TRIPS = st.lists(
    st.tuples(st.floats(0, 0.1), st.floats(0, 0.1), st.floats(0, 0.01), st.floats(0, 2)),
    min_size=1,
    max_size=30,
)


@given(st.sampled_from([0.0, 1234.0, -1e6, 3.7e-5]), TRIPS)
def test_the_true_offset_is_within_the_bound(true: float, trips: list):
    offset, now = Offset(), 50.0
    for there, back, thinking, pause in trips:
        heard = now + there + true
        came = now + there + thinking + back
        offset.learn(now, heard, heard + thinking, came)
        assert abs(offset.seconds - true) <= offset.error_s(came) + 1e-9
        now = came + pause
    assert offset.steps == 0
    shortest = min(there + back for there, back, _, _ in trips)
    assert offset.error_s(now) >= 0
    assert offset.exchanges == len(trips)
    if len(trips) == 1:
        assert offset.error_s(came) == pytest.approx(shortest / 2, abs=1e-7)


def test_one_short_trip_is_worth_many_long_ones():
    offset = Offset()
    offset.learn(0.0, 100.05, 100.05, 0.1)
    assert offset.error_s(0.1) == pytest.approx(0.05)
    offset.learn(1.0, 101.0001, 101.0001, 1.0002)
    assert offset.error_s(1.0002) == pytest.approx(0.0001, abs=1e-7)
    offset.learn(2.0, 102.05, 102.05, 2.1)
    assert offset.seconds == pytest.approx(100.0)
    assert offset.error_s(2.1) == pytest.approx(0.0001 + 1.0998 * MOST_DRIFT, abs=1e-7)


def test_the_bound_grows_with_time_and_a_drift_within_it_is_followed():
    offset, now = Offset(), 0.0
    offset.learn(0.0, 10.0, 10.0, 0.0)
    assert offset.error_s(5.0) == pytest.approx(5 * MOST_DRIFT, abs=1e-7)
    for _ in range(100):
        now += 1.0
        true = 10 + 100e-6 * now
        offset.learn(now, now + 0.001 + true, now + 0.001 + true, now + 0.002)
        assert abs(offset.seconds - true) <= offset.error_s(now + 0.002)
    assert offset.steps == 0


def test_a_clock_that_is_set_is_counted_and_followed():
    offset = Offset()
    offset.learn(0.0, 10.001, 10.001, 0.002)
    offset.learn(1.0, 16.001, 16.001, 1.002)
    assert offset.steps == 1
    assert offset.seconds == pytest.approx(15.0)


def test_an_answer_that_took_longer_than_the_whole_is_refused():
    with pytest.raises(Contradiction, match=r"took 5\.0+ s came after 1\.0+ s"):
        Offset().learn(0.0, 100.0, 105.0, 1.0)


def test_nothing_is_known_before_the_first_exchange():
    assert math.isnan(Offset().seconds) and not Offset().is_known
