"""Lateness in counts: percentiles near the true ones, sums exact."""

import math
from random import Random

import pytest

from testbed.links.queueing.lateness import Lateness


def true_ms(late_s: list[float], percent: float) -> float:
    return 1000 * sorted(late_s)[math.ceil(round(percent * len(late_s) / 100, 6)) - 1]


def test_nothing_released_is_nothing_late():
    assert set(Lateness().facts().values()) == {0}


@pytest.mark.parametrize("scale_s", [1e-6, 1e-4, 1e-2, 0.1])
def test_percentiles_are_at_most_a_sixteenth_or_a_microsecond_above(scale_s):
    random, lateness = Random(1), Lateness()
    late_s = [random.lognormvariate(0, 1.5) * scale_s for _ in range(5000)]
    for late in late_s:
        lateness.add(late)
    facts = lateness.facts()
    for percent in (50, 95, 99, 99.9):
        true = true_ms(late_s, percent)
        assert true <= facts[f"lateness_p{percent:g}_ms"] <= true * 17 / 16 + 0.001
    assert facts["releases"] == 5000
    assert facts["lateness_max_ms"] == 1000 * max(late_s)
    assert facts["lateness_mean_ms"] == pytest.approx(sum(late_s) / 5)
    assert facts["late_releases"] == sum(late > 0.001 for late in late_s)


def test_no_percentile_is_above_the_greatest():
    lateness = Lateness()
    lateness.add(0.0200001)
    assert lateness.facts()["lateness_p50_ms"] == lateness.facts()["lateness_max_ms"] == 20.0001


def test_an_hour_fits():
    lateness = Lateness()
    lateness.add(3600.0)
    assert lateness.facts()["lateness_max_ms"] == 3.6e6


def test_frames_of_one_write_count_each_with_their_own_time():
    lateness = Lateness()
    lateness.add(0.0035, 4, 0.001)
    facts = lateness.facts()
    assert (facts["releases"], facts["late_releases"]) == (4, 3)
    assert facts["lateness_mean_ms"] == pytest.approx((3.5 + 2.5 + 1.5 + 0.5) / 4)
    assert facts["lateness_max_ms"] == 3.5
    # All stand where their middle is.
    assert 2 <= facts["lateness_p50_ms"] <= 2.2
    lateness.add(0.0005, 7, 0.00005)
    lateness.add(0.002, 7)
    lateness.add(0.009, 2, 0.001)
    assert lateness.facts()["late_releases"] == 3 + 7 + 2
    assert lateness.facts()["releases"] == 20
