"""One direction of an access link: delay, jitter, rate or trace, and queue, as netem orders them.

A packet that enters at time t leaves at ``max(t + delay ± jitter, previous release) + size/rate``:
the line serves one packet at a time and never reorders unless asked, and jitter is absorbed under
backlog, as in ``sch_netem`` when rate and delay stand in the same qdisc. The packet limit covers
the delay line and the queue together. All times are seconds of one monotonic clock; releases follow
the model's own time, so a late reader neither slows the line down nor fills its queue.

Segments of a TCP burst enter and leave in one call, each with a release time of its own.
"""

import math
import sys
from collections import deque
from collections.abc import Callable
from itertools import islice
from random import Random
from typing import Generic, TypeVar

from testbed.links.queueing.impairments import Corrupted, impaired
from testbed.links.queueing.opportunities import Opportunities
from testbed.network.direction import FRAME_OVERHEAD_BYTES, Direction

T = TypeVar("T")

FOREVER = math.inf
MOST_OVERDUE = 64
"""Entries looked at for what has left and is not taken: a reader that late has worse to tell."""
LATE_S = 0.001
"""A release later than this after its time counts as late."""

Entry = tuple[float, T, int, int, float, int]
"""Segments of a packet: when the first leaves, the packet, the number of the first and how many
they are, seconds from one's release to the next one's, and bytes of each one's frame."""


class LinkQueue(Generic[T]):
    """A delay line with a rate in front of a bounded queue."""

    __slots__ = (
        "_corrupted",
        "_delay_s",
        "_entries",
        "_frames",
        "_free_at",
        "_is_plain",
        "_jitter_s",
        "_limit",
        "_opportunities",
        "_random",
        "_seconds_per_byte",
        "due",
        "entered",
        "impairs",
        "is_clear",
        "losses",
        "offer",
        "queue_drops",
    )

    offer: Callable[..., int]
    """As ``put``, which it is where nothing impairs a packet before it enters."""

    def __init__(
        self,
        direction: Direction | None,
        seed: int,
        now: float = 0.0,
        corrupted: Corrupted[T] | None = None,
    ) -> None:
        """``direction`` None is a line without limits; ``seed`` fixes every draw.

        Without ``corrupted`` no packet is.
        """
        self._entries: deque[Entry[T]] = deque()
        self._frames = 0
        self._free_at = 0.0
        self._random = Random(seed)
        self._corrupted = corrupted
        self.queue_drops = 0
        self.losses = 0
        self.due = FOREVER
        """When the next packet leaves; infinity where the line is empty."""
        self.entered: Callable[[Entry[T]], None] | None = None
        """To be told of each entry as it enters, when its release is known."""
        self.shape(direction or Direction(), now)

    def shape(self, direction: Direction, now: float = 0.0) -> None:
        """Take new parameters, a trace from ``now`` on; what is in the line keeps its times."""
        rate = direction.rate_kbit
        limit = direction.limit_packets
        self._seconds_per_byte = 8 / (rate * 1000) if rate else 0.0
        self._delay_s = direction.delay_ms / 1000
        self._jitter_s = direction.jitter_ms / 1000
        self._limit = limit if limit is not None else sys.maxsize
        self._opportunities = None
        if direction.chances is not None:
            self._opportunities = Opportunities(direction.chances, now)
        self._is_plain = not self._jitter_s and self._opportunities is None
        impair = impaired(direction, self, self._random, self._corrupted)
        self.offer = impair or self.put
        self.impairs = impair is not None
        """A packet may be lost, or worse, before it enters."""
        self.is_clear = not self.impairs and limit is None and not direction.delay_ms
        """Each packet leaves at once, unless others are before it."""

    def put(
        self, now: float, size: int, packet: T, first: int = 0, count: int = 1, spacing: float = 0.0
    ) -> int:
        """Put in ``count`` segments of a packet, frames of ``size`` bytes; returns how many fit.

        They are those from number ``first`` on, the first comes at ``now``, and ``spacing`` seconds
        lie between one and the next.
        """
        if self._frames + count > self._limit:
            room = self.room(now, count)
            if room < count:
                self.queue_drops += count - room
                if not room:
                    return 0
                count = room
        if not self._is_plain or (count > 1 and spacing):
            self.place(now, size, packet, first, count, spacing)
            return count
        # As ``place`` has it where neither jitter nor a trace nor the way here spaces segments.
        release = now + self._delay_s
        if release < self._free_at:
            release = self._free_at
        step = size * self._seconds_per_byte
        release += step
        self._free_at = release + (count - 1) * step
        if not self._frames:
            self.due = release
        self._frames += count
        entry = (release, packet, first, count, step, size)
        self._entries.append(entry)
        if self.entered is not None:
            self.entered(entry)
        return count

    def room(self, now: float, wanted: int = 1) -> int:
        """Frames that may enter, exact below ``wanted``.

        A frame whose release has passed is gone, whether it is taken or not.
        """
        room = self._limit - self._frames
        if room >= wanted:
            return room
        for release, _, _, count, step, _ in islice(self._entries, MOST_OVERDUE):
            if release > now:
                break
            room += _gone(now, release, count, step)
        return max(0, room)

    def place(
        self, now: float, size: int, packet: T, first: int, count: int, spacing: float
    ) -> None:
        """Put in segments whatever the limit says."""
        release = now + self._delay_s
        free_at, jitter_s = self._free_at, self._jitter_s
        step = size * self._seconds_per_byte
        if count > 1 and (
            self._opportunities is not None
            or (spacing > step if release + jitter_s <= free_at else jitter_s)
        ):
            # Their releases are not evenly spaced.
            for number in range(count):
                self.place(now + number * spacing, size, packet, first + number, 1, 0.0)
            return
        if jitter_s:
            release += jitter_s * (2 * self._random.random() - 1)
        if release < free_at:
            release = free_at
        if self._opportunities is None:
            release += step
            if spacing > step:
                step = spacing
        else:
            release = self._opportunities.send(release, size - FRAME_OVERHEAD_BYTES)
        self._free_at = release + (count - 1) * step
        if not self._frames:
            self.due = release
        self._frames += count
        entry = (release, packet, first, count, step, size)
        self._entries.append(entry)
        if self.entered is not None:
            self.entered(entry)

    def overtake(self, now: float, size: int, packet: T, first: int) -> None:
        """Have one segment leave at once, before all others and beside the line."""
        entry = (now, packet, first, 1, 0.0, size)
        self._entries.appendleft(entry)
        self._frames += 1
        self.due = now
        if self.entered is not None:
            self.entered(entry)

    def take(self, now: float = FOREVER) -> Entry[T]:
        """The segments of the next entry that have left by then, the first one at least.

        Raises:
            IndexError: the line is empty.
        """
        entries = self._entries
        entry = entries.popleft()
        count = entry[3]
        if count > 1:
            entry, rest = parted(entry, now)
            if rest is not None:
                entries.appendleft(rest)
                count = entry[3]
        self._frames -= count
        self.due = entries[0][0] if entries else FOREVER
        return entry

    def pop(self) -> tuple[float, T]:
        """Take the next packet, all of its segments, with its release time.

        Raises:
            IndexError: the line is empty.
        """
        return self.take()[:2]

    def __len__(self) -> int:
        return self._frames


def parted(entry: Entry[T], now: float) -> tuple[Entry[T], Entry[T] | None]:
    """The part of an entry that has left by then, one segment at least; and the rest of it."""
    release, packet, first, count, step, size = entry
    gone = max(1, _gone(now, release, count, step))
    if gone >= count:
        return entry, None
    rest = (release + gone * step, packet, first + gone, count - gone, step, size)
    return (release, packet, first, gone, step, size), rest


def _gone(now: float, release: float, count: int, step: float) -> int:
    """How many of the segments of an entry have left by then."""
    if release + (count - 1) * step <= now:
        return count
    return int((now - release) / step) + 1 if release <= now else 0
