"""How long the next spell of computing is believed to take."""

import pytest

from nodes.spells import (
    LEAST_OF_FIRST,
    LEAST_S,
    REMEMBERED,
    SURE,
    UNKNOWN_S,
    Spells,
    least_of_first,
)


def after(*spells_s: float) -> float:
    """What is expected after spells of so many seconds."""
    spells = Spells()
    spells.begin()
    for seconds in spells_s:
        spells.add(seconds / 2)
        spells.add(seconds / 2)
        expected = spells.begin()
    return expected


def test_the_first_one_is_what_it_is_told():
    assert Spells().begin() == UNKNOWN_S
    assert Spells(first_s=2.0).begin() == 2.0


def test_of_a_first_round_with_a_set_up_the_first_one_is_no_longer_than_that():
    assert least_of_first(1000, 1000) == least_of_first(1000, 3000) == LEAST_OF_FIRST * 1000
    assert least_of_first(1000, 900) == LEAST_OF_FIRST * 100


def test_the_next_is_no_shorter_than_most_of_the_shortest_of_the_last():
    assert after(3.0) == pytest.approx(3 * SURE)
    assert after(3.0, 1.0, 2.0) == pytest.approx(SURE)
    assert after(1.0, *[4.0] * REMEMBERED) == pytest.approx(4 * SURE)


def test_the_reading_of_a_message_that_asks_for_nothing_is_no_spell():
    assert after(3.0, LEAST_S) == pytest.approx(3 * SURE)


def test_what_follows_a_devices_time_is_short_and_of_the_same_spell():
    spells = Spells()
    spells.begin()
    spells.add(3.0)
    with spells.settling():
        assert spells.begin() == 0.0
    spells.add(1.0)
    assert spells.begin() == pytest.approx(4 * SURE)
