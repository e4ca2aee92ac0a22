"""Settling: who waits for a network's stillness is told by its counters alone."""

from typing import Any, cast

import pytest

from testbed.fidelity import settling
from testbed.network.profiles import load
from testbed.network.topology import plan


class Network:
    """Counters that change so many times."""

    def __init__(self, changes: int) -> None:
        self.left = changes

    def counters(self) -> list[int]:
        self.left = max(0, self.left - 1)
        return [self.left]


def test_it_is_still_once_no_counter_changes() -> None:
    network = Network(changes=5)
    assert settling.await_stillness(cast("Any", network), 0.03)
    assert network.left == 0


def test_a_network_that_never_rests_is_left_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "LIMIT_S", 0.1)
    assert not settling.await_stillness(cast("Any", Network(changes=10**9)), 0.05)


def test_a_packet_in_its_delay_is_waited_for() -> None:
    slow = settling.still_s(
        plan([load("ethernet"), load("geo-satellite")]), streams=False, dilation=1.0
    )
    assert slow > 0.5
    assert settling.still_s(plan([load("ethernet")]), streams=False, dilation=1.0) < 0.2
