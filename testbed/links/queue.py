"""One direction of an access link: rate, queue, delay, jitter and loss, as netem orders them.

A packet that enters at time t leaves at ``max(t + delay ± jitter, previous release) + size/rate``:
the line serves one packet at a time and never reorders, and jitter is absorbed under backlog, as
in ``sch_netem`` when rate and delay stand in the same qdisc. The packet limit covers the delay
line and the queue together. All times are seconds of one monotonic clock; releases follow the
model's own time, so a late reader does not slow the line down.
"""

import math
import random
from collections import deque
from typing import Generic, TypeVar

from testbed.profiles import Direction

T = TypeVar("T")

FOREVER = math.inf
LATE_S = 0.001
"""A release later than this after its time counts as late."""


class LinkQueue(Generic[T]):
    """A delay line with a rate in front of a bounded queue."""

    __slots__ = (
        "_delay_s",
        "_free_at",
        "_jitter_s",
        "_limit",
        "_loss",
        "_packets",
        "_random",
        "_seconds_per_byte",
        "losses",
        "queue_drops",
    )

    def __init__(self, direction: Direction | None, seed: int) -> None:
        """``direction`` None is a line without limits. ``seed`` fixes jitter and loss."""
        self._packets: deque[tuple[float, T]] = deque()
        self._free_at = 0.0
        self._random = random.Random(seed)
        self.queue_drops = 0
        self.losses = 0
        self.shape(direction or Direction(rate_kbit=None, delay_ms=0.0))

    def shape(self, direction: Direction) -> None:
        """Take new parameters; packets already in the line keep their times."""
        rate = direction.rate_kbit
        limit = direction.limit_packets
        self._seconds_per_byte = 8 / (rate * 1000) if rate else 0.0
        self._delay_s = direction.delay_ms / 1000
        self._jitter_s = direction.jitter_ms / 1000
        self._loss = direction.loss_percent / 100
        self._limit = limit if limit is not None else FOREVER

    def offer(self, now: float, size_bytes: int, packet: T) -> bool:
        """Put a packet in; False where it is lost or the queue is full."""
        if self._loss and self._random.random() < self._loss:
            self.losses += 1
            return False
        packets = self._packets
        if len(packets) >= self._limit:
            self.queue_drops += 1
            return False
        release = now + self._delay_s
        if self._jitter_s:
            release += self._jitter_s * (2 * self._random.random() - 1)
        release = max(release, now, self._free_at) + size_bytes * self._seconds_per_byte
        self._free_at = release
        packets.append((release, packet))
        return True

    @property
    def due(self) -> float:
        """When the next packet leaves; infinity where the line is empty."""
        return self._packets[0][0] if self._packets else FOREVER

    def pop(self) -> tuple[float, T]:
        """Take the next packet with its release time.

        Raises:
            IndexError: the line is empty.
        """
        return self._packets.popleft()

    def __len__(self) -> int:
        return len(self._packets)
