"""The relay's lines in model time: traces, caps and outages, chunk by chunk."""

import math
from types import SimpleNamespace

import pytest

from testbed.links.loopback.hop import MAX_CHUNK_SEGMENTS, Chunk, Lines
from testbed.links.process import DOWN, UP, CounterTable
from testbed.network import traces
from testbed.network.direction import FRAME_BYTES, SEGMENT_BYTES, Direction, GilbertElliott
from testbed.network.profiles import LinkProfile
from testbed.network.tcp_cap import caps_kbit, mathis_kbit

OUT = Direction(outage=True)
FRAME_S = 8 * FRAME_BYTES / 1e6
"""On a line of 1 Mbit/s."""


class Way:
    """One client's way up to the server: over its own uplink and the server's downlink."""

    def __init__(self, own: Direction, server: Direction | None = None, start: float = 0.0) -> None:
        self.lines = Lines(2, CounterTable(2))
        self.own, self.server = self.lines.hops[1][UP], self.lines.hops[0][DOWN]
        self._flow = SimpleNamespace(path=(self.own, self.server))
        self.lines.shape(start, self.own, own)
        self.lines.shape(start, self.server, server or Direction())

    def offer(self, now: float, frames: int = 1) -> None:
        data = memoryview(bytes(frames * SEGMENT_BYTES))
        self.lines.offer(self.own, now, Chunk(self._flow, data, 0, frames))

    def releases(self, now: float = math.inf) -> list[float]:
        return [release for release, _ in self.lines.release(now)]


@pytest.fixture
def trace(tmp_path):
    def write(*stamps_ms: int) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.trace"
        path.write_text("".join(f"{stamp}\n" for stamp in stamps_ms))
        return str(path)

    return write


def test_a_traced_line_releases_each_frame_at_an_opportunity(trace):
    way = Way(Direction(trace=trace(10, 20, 20, 50), delay_ms=5), start=3.007)
    for _ in range(6):
        way.offer(3.007)
    assert way.releases() == pytest.approx([3.017, 3.027, 3.027, 3.057, 3.067, 3.077])


def test_a_chunk_takes_as_many_opportunities_as_it_has_frames(trace):
    way = Way(Direction(trace=trace(10, 20, 30, 40, 50)))
    for frames in (2, 3, 4):
        way.offer(0.0, frames)
    assert way.releases() == pytest.approx([0.020, 0.050, 0.090])


def test_a_trace_begins_again_with_each_shape_and_not_with_a_cap(trace):
    asked = Direction(trace=trace(10, 30, 100))
    way = Way(asked)
    way.lines.cap(way.own, 1e6)
    way.offer(0.015)
    assert way.releases() == pytest.approx([0.030])
    way.lines.shape(0.035, way.own, asked)
    way.offer(0.035)
    assert way.releases() == pytest.approx([0.045])


def test_what_is_in_the_line_keeps_its_times_when_a_trace_comes_and_goes(trace):
    way = Way(Direction(rate_kbit=1000))
    way.offer(0.0)
    way.lines.shape(0.001, way.own, Direction(trace=trace(5, 100)))
    way.offer(0.001)
    way.lines.shape(0.002, way.own, Direction())
    way.offer(0.002)
    # The second frame waits for the first, and then for an opportunity: at 101 ms.
    assert way.releases() == pytest.approx([FRAME_S, 0.101, 0.101])


def test_chunks_follow_the_rate_of_the_trace(trace):
    fast, slow = range(1, 101), (150, 200)
    path = trace(*(stamp for stamp in fast for _ in range(10)), *slow)
    way = Way(Direction(trace=path))
    # 10 opportunities a millisecond are 20 in the 2 ms of a chunk; a slow line has one frame.
    assert way.own.chunk_segments(0.050) == way.own.chunk_segments(0.250) in (19, 20)
    assert way.own.chunk_segments(0.150) == way.own.chunk_segments(0.390) == 1
    way.lines.shape(0.390, way.own, Direction(trace=path))
    assert way.own.chunk_segments(0.400) in (19, 20)
    way.lines.shape(0.0, way.own, Direction())
    assert way.own.chunk_segments(0.0) == MAX_CHUNK_SEGMENTS


def test_loss_caps_a_traced_line_too(trace):
    asked = Direction(trace=trace(*range(1, 101)))  # 12 Mbit/s.
    way = Way(asked)
    way.lines.cap(way.own, 1000)
    for _ in range(100):
        way.offer(0.0)
    last = way.releases()[-1]
    assert 99 * FRAME_S <= last <= 99 * FRAME_S + 0.002
    assert way.own.chunk_segments(0.0) == 1
    way.lines.cap(way.own, math.inf)
    way.lines.shape(5.0, way.own, asked)
    for _ in range(100):
        way.offer(5.0)
    assert way.releases()[-1] == pytest.approx(5.1)


def test_the_room_of_a_traced_line_is_that_of_its_mean_rate(trace):
    path = trace(*range(1, 101))
    asked = Direction(trace=path, queue_ms=50, delay_ms=10)
    kbit = traces.load(path).mean_kbit * FRAME_BYTES / 1500
    equal = Way(Direction(rate_kbit=kbit, queue_ms=50, delay_ms=10))
    assert Way(asked).own.room == equal.own.room == 60
    assert Way(Direction(trace=path, max_packets=7)).own.room == 7


def test_an_outage_lets_out_what_is_in_the_line_and_takes_nothing():
    way = Way(Direction(rate_kbit=1000))
    way.offer(0.0)
    way.lines.shape(0.001, way.own, OUT)
    assert way.own.room == 0
    assert way.releases() == pytest.approx([FRAME_S])


def test_what_an_outage_meets_on_its_way_goes_on_when_it_ends():
    server = Direction(rate_kbit=1000, delay_ms=10)
    way = Way(Direction(delay_ms=100), server)
    way.offer(0.0)
    way.offer(0.0)
    way.lines.shape(0.050, way.server, OUT)
    assert way.releases() == []
    way.lines.shape(7.0, way.server, OUT)
    assert way.releases() == []
    way.lines.shape(9.0, way.server, server)
    assert way.releases() == pytest.approx([9.010 + FRAME_S, 9.010 + 2 * FRAME_S])
    way.offer(9.1)
    assert way.releases() == pytest.approx([9.210 + FRAME_S])


def test_who_waits_for_room_is_called_when_an_outage_ends():
    way = Way(Direction(rate_kbit=1000))
    way.lines.shape(1.0, way.own, OUT)
    way.own.waiting.append(SimpleNamespace())
    way.lines.roomier.clear()
    way.lines.shape(2.0, way.own, Direction(rate_kbit=1000))
    assert list(way.lines.roomier) == [way.own]
    assert way.own.room >= way.own.refill


def test_nothing_is_counted_twice_for_being_held():
    way = Way(Direction(), OUT)
    way.offer(0.0)
    assert way.releases() == []
    room = Way(Direction()).server.room
    way.lines.shape(1.0, way.server, Direction())
    assert way.server.room == room - 1
    assert way.releases() == [1.0]
    assert way.server.room == room


def test_mathis_by_hand():
    # 1514 bytes a round of 100 ms are 121.12 kbit/s; sqrt(1.5 / 0.015) is 10.
    assert mathis_kbit(0.015, 0.1) == pytest.approx(1211.2)
    assert mathis_kbit(0.015, 0.2) == pytest.approx(605.6)
    assert mathis_kbit(0.0, 0.1) == mathis_kbit(0.1, 0.0) == math.inf


def test_bursts_cap_by_their_mean_and_an_outage_does_not():
    bursts = GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=9, bad_loss_percent=15)
    lossy = Direction(delay_ms=50, gilbert_elliott=bursts)  # 1.5 % on average.
    plain = Direction(delay_ms=50)
    server = LinkProfile(name="server")
    up, down = caps_kbit(server, LinkProfile(name="client", up=lossy, down=plain))
    assert (up, down) == (pytest.approx(1211.2), math.inf)
    far = LinkProfile(name="server", up=plain, down=Direction(delay_ms=50, loss_percent=1.5))
    up, _ = caps_kbit(far, LinkProfile(name="client", up=lossy, down=plain))
    assert up == pytest.approx(mathis_kbit(1 - 0.985**2, 0.2))
    out = Direction(delay_ms=50, outage=True)
    assert caps_kbit(server, LinkProfile(name="client", up=out, down=plain)) == (math.inf, math.inf)
