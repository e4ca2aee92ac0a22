"""Frames held until their time: in its order, and of a burst what is due."""

import pytest

from testbed.links.queueing.queue import FOREVER
from testbed.links.tunnel.held import Held


def test_frames_go_in_the_order_of_their_times_and_then_of_their_coming():
    held = Held()
    assert held.due == FOREVER
    for release, packet in ((3.0, b"c"), (1.0, b"a"), (3.0, b"d"), (2.0, b"b")):
        held.hold((release, packet, 0, 1, 0.0, 100))
    assert (held.due, len(held), held.bytes) == (1.0, 4, 400)
    assert [held.take(9.0)[1] for _ in range(4)] == [b"a", b"b", b"c", b"d"]
    assert (held.due, len(held), held.bytes) == (FOREVER, 0, 0)
    with pytest.raises(IndexError):
        held.take(9.0)


def test_of_a_burst_goes_what_is_due_and_others_come_between():
    held = Held()
    held.hold((1.0, b"burst", 0, 4, 1.0, 100))
    held.hold((2.5, b"other", 0, 1, 0.0, 60))
    assert held.take(2.2) == (1.0, b"burst", 0, 2, 1.0, 100)
    assert (held.due, len(held), held.bytes) == (2.5, 3, 260)
    assert held.take(9.0)[1] == b"other"
    assert held.take(9.0) == (3.0, b"burst", 2, 2, 1.0, 100)
