"""A tunnel by hand: frames by our clock, bounded queues, clocks each second, and who is gone."""

import socket
from collections.abc import Iterator

import pytest

from testbed.links.tunnel import messages
from testbed.links.tunnel import tunnel as tunnels
from testbed.links.tunnel.clocks import Offset
from testbed.links.tunnel.messages import Ask, Decoder, Frame, Tell
from testbed.links.tunnel.streams import Stream
from testbed.links.tunnel.tunnel import Gone, Tunnel

PACKET = bytes(100)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pair(clock: Clock) -> Iterator[tuple[Tunnel, socket.socket]]:
    """A tunnel to host b, whose clock is 1234 s ahead, and b's end of it."""
    ours, theirs = socket.socketpair()
    offset = Offset()
    offset.learn(99.0, 99.0 + 1234, 99.0 + 1234, 99.0)
    tunnel = Tunnel("b", Stream(ours), offset, clock())
    yield tunnel, theirs
    tunnel.close()
    theirs.close()


Pair = tuple[Tunnel, socket.socket]


def told(theirs: socket.socket) -> list:
    theirs.setblocking(False)
    return list(Decoder().feed(theirs.recv(1 << 20)))


def test_a_frame_goes_as_it_is_and_comes_by_our_clock(pair: Pair, clock: Clock):
    tunnel, theirs = pair
    tunnel.send(100.5, 0.001, [PACKET[:40], memoryview(PACKET)[40:]], 3)
    tunnel.flush()
    assert not tunnel.has_more
    assert told(theirs) == [Frame(100.5, 0.001, PACKET)]
    theirs.sendall(messages.frame(1334.25, 0.0, len(PACKET)) + PACKET)
    (frame,) = tunnel.read(clock)
    assert frame.release == pytest.approx(100.25, abs=1e-7)
    assert frame.data == PACKET


def test_what_the_connection_does_not_take_waits_within_bounds(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tunnels, "MOST_QUEUED_BYTES", 2_000_000)
    tunnel, theirs = pair
    block, count = bytes(50_000), 0
    for _ in range(100):
        tunnel.send(1.0, 0.0, [block], 1)
        tunnel.flush()
    assert tunnel.has_more
    facts = tunnel.facts(100.0)
    assert facts["frames_sent"] + facts["frames_dropped"] == 100
    assert facts["frames_dropped"] > 0
    assert facts["most_queued_bytes"] <= 2_001_000
    decoder = Decoder()
    while tunnel.has_more:
        count += len(list(decoder.feed(theirs.recv(1 << 20))))
        tunnel.flush()
    theirs.setblocking(False)
    while count < facts["frames_sent"]:
        count += len(list(decoder.feed(theirs.recv(1 << 20))))
    assert count == facts["frames_sent"]


def test_clocks_are_asked_each_second_and_answered(pair: Pair, clock: Clock):
    tunnel, theirs = pair
    assert tunnel.tend(100.0) == 101.0
    assert tunnel.tend(100.5) == 101.0
    assert tunnel.tend(101.0) == 102.0
    tunnel.flush()
    assert told(theirs) == [Ask(100.0), Ask(101.0)]
    theirs.sendall(messages.ask(1335.0))
    clock.now = 101.1
    assert tunnel.read(clock) == []
    tunnel.flush()
    assert told(theirs) == [Tell(1335.0, 101.1, 101.1)]


def test_an_answer_improves_what_is_known_of_the_clock(pair: Pair, clock: Clock):
    tunnel, theirs = pair
    clock.now = 110.0
    before = tunnel.offset.error_s(110.0)
    theirs.sendall(messages.tell(110.0, 1344.0, 1344.0))
    tunnel.read(clock)
    assert tunnel.offset.error_s(110.0) < before
    assert tunnel.facts(110.0)["clock_exchanges"] == 2


def test_a_host_without_a_word_for_three_seconds_is_gone(pair: Pair, clock: Clock):
    tunnel, theirs = pair
    # It is not waited for before its first: it may still be making its nodes.
    assert tunnel.tend(1000.0) == 1001.0
    theirs.sendall(messages.ask(0.0))
    clock.now = 1000.0
    tunnel.read(clock)
    assert tunnel.tend(1002.4) == 1003.0
    with pytest.raises(Gone, match="no word from it for 3 s"):
        tunnel.tend(1003.0)


def test_a_host_that_closes_with_something_unread_has_closed_too(pair: Pair, clock: Clock):
    tunnel, theirs = pair
    tunnel.send(1.0, 0.0, [PACKET], 1)
    tunnel.flush()
    theirs.close()
    with pytest.raises(Gone, match=r"^it closed the connection$"):
        tunnel.read(clock)


def test_a_host_that_closes_is_gone(pair: Pair, clock: Clock):
    tunnel, theirs = pair
    theirs.close()
    with pytest.raises(Gone, match="it closed the connection"):
        tunnel.read(clock)
    tunnel.send(1.0, 0.0, [PACKET], 1)
    with pytest.raises(Gone, match="it closed the connection"):
        tunnel.flush()


@pytest.mark.parametrize(
    "wrong",
    [
        b"\xff" * 10,
        messages.filling(10),
        messages.rate(1.0),
        messages.tell(100.0, 1334.0, 1339.0),
    ],
)
def test_a_host_that_sends_what_cannot_be_is_gone(pair: Pair, clock: Clock, wrong: bytes):
    tunnel, theirs = pair
    theirs.sendall(wrong)
    with pytest.raises(Gone, match="it sent what cannot be: "):
        tunnel.read(clock)


def test_late_frames_are_counted_and_early_ones_are_not_late(pair: Pair):
    tunnel, _ = pair
    tunnel.count(-0.5, 1, 0.0)
    tunnel.count(0.004, 1, 0.0)
    tunnel.count(0.002, 5, 0.0005)
    facts = tunnel.facts(100.0)
    assert facts["frames_received"] == 7
    assert facts["late_frames"] == 1 + 3
    assert facts["late_p50_ms"] == pytest.approx(1.0, rel=0.06)  # the burst's, at its middle
    assert facts["late_p99.9_ms"] == facts["late_max_ms"] == pytest.approx(4.0)
