"""The relay's lines: a LinkQueue of chunks for each direction of each node's access link.

A line of packets drops what it has no room for, and in an outage drops everything. Of a stream
nothing may be missing, since TCP would send it again: here what has no room is not read yet, and
what an outage meets on its way is held until it ends.
"""

import bisect
import heapq
import math
from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from testbed.links.process import BYTES, DOWN, FRAMES, UP, CounterTable
from testbed.links.queueing.queue import LinkQueue
from testbed.network.direction import FRAME_BYTES, FRAME_OVERHEAD_BYTES, SEGMENT_BYTES, Direction

HEADER_BYTES = FRAME_BYTES - SEGMENT_BYTES
"""Of one frame: Ethernet 14, IP 20, TCP 32 with timestamps. An acknowledgement is this alone."""
CHUNK_S = 0.002
"""A chunk is what the line carries in this time: smooth when slow, cheap when fast."""
REFILL_S = 0.01
"""A queue that was full is filled again when it has room for this time."""
MAX_CHUNK_SEGMENTS = 181
"""256 KiB."""
MAX_QUEUED_FRAMES = 1 << 16
"""Room of a link without a rate, where nothing else bounds the memory: 95 MB."""
_UNBOUNDED_MS = 1e9


class Crossing(Protocol):
    """A stream on its way over hops."""

    path: "tuple[Hop[Any], ...]"


FlowT = TypeVar("FlowT", bound=Crossing)


class Chunk(NamedTuple, Generic[FlowT]):
    """A piece of a stream, or the word that it has ended."""

    flow: FlowT
    data: memoryview
    """Empty in a FIN or RESET."""
    kind: int
    frames: int


class Hop(Generic[FlowT]):
    """One direction of a node's access link, with its room in frames and who waits for room."""

    def __init__(self, node: int, direction: int, table: CounterTable) -> None:
        self.sequence = 2 * node + direction
        self._words, self._counter = table.words, table.offset(node, direction)
        self.queue: LinkQueue[Chunk[FlowT]] = LinkQueue(None, seed=self.sequence)
        self.scheduled = False
        """Its next release stands in the heap."""
        self.waiting: deque[FlowT] = deque()
        self.outage = False
        self._held: deque[Chunk[FlowT]] = deque()
        self._frames = 0
        self._cap_kbit = math.inf
        self.shape(0.0, Direction())

    @property
    def room(self) -> int:
        """Frames that may enter."""
        return 0 if self.outage else self._limit - self._frames

    def shape(self, now: float, asked: Direction) -> None:
        """Take new parameters; a trace starts at its first line."""
        self._asked = asked
        self._steps: list[tuple[float, float]] = []
        if asked.chances is not None:
            trace = asked.chances
            self._steps, self._period_ms, self._began = trace.steps(), trace.period_ms, now
            self.queue.shape(_line(asked, trace=asked.trace), now)
        self._paced_until = now
        self.cap(self._cap_kbit)
        self.outage = asked.outage
        while self._held and not self.outage:
            self._put(now, self._held.popleft())

    def cap(self, cap_kbit: float) -> None:
        """Be at most that fast from now on; a trace goes on where it is."""
        self._cap_kbit = cap_kbit
        rate = min(self._asked.line_kbit or math.inf, cap_kbit)
        kbit = rate if rate < math.inf else None
        if not self._steps:
            self.queue.shape(_line(self._asked, rate_kbit=kbit))
        sized = msgspec.structs.replace(self._asked, trace=None, rate_kbit=kbit)
        self._limit = min(sized.limit_packets or MAX_QUEUED_FRAMES, MAX_QUEUED_FRAMES)
        self.refill = int(max(1, min(self._limit / 4, _frames(rate, REFILL_S))))

    def chunk_segments(self, now: float) -> int:
        """Most segments of a chunk that enters now."""
        rate = self._asked.rate_kbit or math.inf
        if self._steps:
            ms = 1000 * (now - self._began) % self._period_ms
            rate = self._steps[bisect.bisect(self._steps, (ms, math.inf)) - 1][1]
        segments = _frames(min(rate, self._cap_kbit), CHUNK_S)
        return int(max(1, min(MAX_CHUNK_SEGMENTS, segments)))

    def offer(self, now: float, chunk: Chunk[FlowT]) -> None:
        self._frames += chunk.frames
        if self.outage:
            self._held.append(chunk)
        else:
            self._put(now, chunk)

    def _put(self, now: float, chunk: Chunk[FlowT]) -> None:
        if self._steps and self._cap_kbit < math.inf:
            # A trace is no rate that could be lowered: what enters too fast waits before it.
            now = max(now, self._paced_until)
            self._paced_until = now + chunk.frames / _frames(self._cap_kbit, 1)
        size_bytes = len(chunk.data) + chunk.frames * HEADER_BYTES
        if self._steps:
            # A trace counts bytes of IP, for which the queue takes off one Ethernet header.
            size_bytes -= (chunk.frames - 1) * FRAME_OVERHEAD_BYTES
        # The queue itself must never drop a piece of a stream: ``room`` keeps its limit.
        if not self.queue.offer(now, size_bytes, chunk):
            raise AssertionError("a piece of a stream was dropped")

    def pop(self) -> tuple[float, Chunk[FlowT]]:
        """Take the next chunk with its release time."""
        release, chunk = self.queue.pop()
        self._frames -= chunk.frames
        return release, chunk

    def count(self, frames: int, payload_bytes: int) -> None:
        """Add to the node's counters."""
        self._words[self._counter + FRAMES] += frames
        self._words[self._counter + BYTES] += payload_bytes + frames * HEADER_BYTES


def _line(asked: Direction, rate_kbit: float | None = None, trace: str | None = None) -> Direction:
    """The direction as the queue takes it: it neither drops, nor loses, nor touches a packet."""
    return Direction(
        rate_kbit=rate_kbit,
        trace=trace,
        trace_stretch=asked.trace_stretch,
        delay_ms=asked.delay_ms,
        jitter_ms=asked.jitter_ms,
        queue_ms=_UNBOUNDED_MS,
    )


def _frames(kbit: float, time_s: float) -> float:
    """Full frames that a line of that rate carries in that time."""
    return kbit * 1000 / (8 * FRAME_BYTES) * time_s


class Lines(Generic[FlowT]):
    """Every node's hops, and a heap of their next releases."""

    def __init__(self, nodes: int, table: CounterTable) -> None:
        self.hops: list[list[Hop[FlowT]]] = [
            [Hop(node, way, table) for way in (UP, DOWN)] for node in range(nodes)
        ]
        self.roomier: dict[Hop[FlowT], None] = {}
        """Where flows wait and something has changed; whoever reads it clears it."""
        self._due: list[tuple[float, int, Hop[FlowT]]] = []

    @property
    def due(self) -> float:
        """When the next chunk leaves a hop; infinity where there is none."""
        return self._due[0][0] if self._due else math.inf

    def shape(self, now: float, hop: Hop[FlowT], asked: Direction) -> None:
        hop.shape(now, asked)
        self._changed(hop)

    def cap(self, hop: Hop[FlowT], cap_kbit: float) -> None:
        hop.cap(cap_kbit)
        self._changed(hop)

    def offer(self, hop: Hop[FlowT], now: float, chunk: Chunk[FlowT]) -> None:
        hop.offer(now, chunk)
        self._schedule(hop)

    def release(self, now: float) -> Iterator[tuple[float, Chunk[FlowT]]]:
        """Move on every chunk whose time has come, by the model's time and not the clock's.

        Yields those that have crossed the whole of their path, with their release time.
        """
        while self._due and self._due[0][0] <= now:
            _, _, hop = heapq.heappop(self._due)
            hop.scheduled = False
            release, chunk = hop.pop()
            self._changed(hop)
            first, last = chunk.flow.path
            if hop is first:
                self.offer(last, release, chunk)
            else:
                yield release, chunk

    def _changed(self, hop: Hop[FlowT]) -> None:
        self._schedule(hop)
        if hop.waiting:
            self.roomier[hop] = None

    def _schedule(self, hop: Hop[FlowT]) -> None:
        if hop.queue and not hop.scheduled:
            hop.scheduled = True
            heapq.heappush(self._due, (hop.queue.due, hop.sequence, hop))
