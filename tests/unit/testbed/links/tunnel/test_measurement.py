"""The network between two hosts as both ends of a connection measure it."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from agreed import agreed

from testbed.links.interface import LinkError
from testbed.links.tunnel import measurement, messages
from testbed.links.tunnel.measurement import measure
from testbed.links.tunnel.streams import Stream


@pytest.mark.parametrize("seals", [True, False])
def test_both_ends_measure_the_same(monkeypatch: pytest.MonkeyPatch, seals: bool):
    monkeypatch.setattr(measurement, "FILLING_S", 0.2)
    one, two = socket.socketpair()
    ends = [Stream(one), Stream(two)]
    if seals:
        ends = list(agreed(one, two))
    with one, two, ThreadPoolExecutor(2) as pool:
        a = pool.submit(measure, ends[0], "a", "b", first=True)
        b = pool.submit(measure, ends[1], "b", "a", first=False)
        ours, theirs = a.result(), b.result()
        assert not one.gettimeout() and not two.gettimeout()
    assert (ours.there.sender, ours.there.receiver) == ("a", "b")
    assert (ours.back.sender, ours.back.receiver) == ("b", "a")
    assert ours.there.rate_kbit == theirs.back.rate_kbit > 0
    assert ours.back.rate_kbit == theirs.there.rate_kbit > 0
    for each in (ours, theirs):
        # One machine's clock, whatever the scheduler did.
        assert abs(each.there.offset_ms) <= each.there.offset_error_ms
        assert each.there.offset_ms == -each.back.offset_ms
        assert 0 <= each.there.rtt_min_ms <= each.there.rtt_median_ms <= each.there.rtt_max_ms
        assert each.offset.exchanges == measurement.PINGS


def test_clocks_far_apart_are_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measurement, "FILLING_S", 0.01)
    theirs = threading.local()

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + getattr(theirs, "ahead_s", 0.0)

    def other() -> None:
        theirs.ahead_s = 1234.0
        measure(Stream(two), "b", "a", first=False)

    monkeypatch.setattr(measurement, "time", Clock)
    one, two = socket.socketpair()
    with one, two, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other)
        found = measure(Stream(one), "a", "b", first=True)
        waiting.result()
    assert abs(found.there.offset_ms - 1_234_000) <= found.there.offset_error_ms + 1e-3
    assert found.there.rate_kbit >= 0


def test_another_that_goes_away_is_named():
    one, two = socket.socketpair()
    two.close()
    with one, pytest.raises(LinkError, match="measure the network to host b"):
        measure(Stream(one), "a", "b", first=False)


def test_another_that_says_what_it_should_not_is_named():
    one, two = socket.socketpair()
    with one, two:
        two.sendall(messages.rate(1.0))
        with pytest.raises(LinkError, match="host b: Rate where Ask was to come"):
            measure(Stream(one), "a", "b", first=False)


def test_another_that_does_not_seal_is_named():
    one, two = socket.socketpair()
    with one, two:
        stream, _ = agreed(one, two)
        two.sendall(messages.ask(1.0))
        with pytest.raises(LinkError, match=r"to host b: what came is not what was sealed there"):
            measure(stream, "a", "b", first=False)


def test_the_rate_is_that_of_the_second_half():
    # 100 bytes each 10 ms, and then each ms: what TCP takes to find the rate does not count.
    slow = [(0.01 * n, 100) for n in range(10)]
    fast = [(0.1 + 0.001 * n, 100) for n in range(100)]
    assert measurement._rate(slow + fast) == pytest.approx(100_000, rel=0.1)
    assert measurement._rate([]) == measurement._rate([(1.0, 100)]) == 0.0


def test_who_comes_late_from_another_measurement_lengthens_no_round_trip(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(measurement, "FILLING_S", 0.01)
    late_s = 2.0

    def other() -> measurement.Measured:
        time.sleep(late_s)
        return measure(Stream(two), "c", "b", first=False)

    one, two = socket.socketpair()
    with one, two, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other)
        ways = measure(Stream(one), "b", "c", first=True), waiting.result()
    assert all(way.there.rtt_max_ms < 1000 * late_s for way in ways)
    assert all(way.offset.exchanges == measurement.PINGS for way in ways)


@pytest.mark.parametrize("count", range(1, 27))
def test_each_measures_with_each_in_as_few_turns_as_there_can_be(count: int):
    turns = [measurement.turns(host, count) for host in range(count)]
    for host, others in enumerate(turns):
        assert sorted(others) == [other for other in range(count) if other != host]
    taken = 0
    left = [list(others) for others in turns]
    while any(left):
        # Pairs both of whose hosts are free for it: each host is in one at most.
        nexts = [others[0] if others else None for others in left]
        pairs = {(a, b) for a, b in enumerate(nexts) if b is not None and nexts[b] == a}
        assert pairs
        for host, _ in pairs:
            del left[host][0]
        taken += 1
    assert taken == (0 if count == 1 else count - 1 if count % 2 == 0 else count)
