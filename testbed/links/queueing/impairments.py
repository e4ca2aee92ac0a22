"""Impairments of a packet on its way into a line: duplicated, lost, corrupted, reordered.

The order is that of netem_enqueue in the kernel's sch_netem: duplicate, loss, corrupt, limit, then
reorder or else delay and rate. A packet that is both duplicated and lost stays one. A duplicate
goes in before its original, by the same way from the loss on, but is not duplicated again; the
original then goes in whatever the limit says. A reordered packet skips delay, rate and queue.
"""

from collections.abc import Callable
from random import Random
from typing import Generic, Protocol, TypeVar

from testbed.links.queueing.losses import lost_by
from testbed.network.direction import Direction

T = TypeVar("T")
Packet = TypeVar("Packet", contravariant=True)

Corrupted = Callable[[T, int, Random], T]
"""Makes of one segment of a packet, by number, a corrupt packet of its own."""


class Line(Protocol[Packet]):
    """The line that packets enter: a LinkQueue, whose methods these are."""

    losses: int
    queue_drops: int

    def put(
        self, now: float, size: int, packet: Packet, first: int, count: int, spacing: float
    ) -> int: ...

    def room(self, now: float) -> int: ...

    def place(
        self, now: float, size: int, packet: Packet, first: int, count: int, spacing: float
    ) -> None: ...

    def overtake(self, now: float, size: int, packet: Packet, first: int) -> None: ...


def impaired(
    direction: Direction, line: Line[T], random: Random, corrupted: Corrupted[T] | None
) -> Callable[..., int] | None:
    """The function to call in place of ``line.put``; None where nothing impairs a packet."""
    lost = lost_by(direction, random)
    if lost and direction.outage:
        return _Losses(line, lost).offer
    if direction.duplicate_percent or direction.corrupt_percent or direction.reorder_percent:
        return _Impairments(direction, line, random, lost or _never, corrupted).offer
    return _Losses(line, lost).offer if lost else None


def _never() -> bool:
    return False


class _Losses(Generic[T]):
    """Loss alone: what comes between two lost segments of a burst goes in together."""

    def __init__(self, line: Line[T], lost: Callable[[], bool]) -> None:
        self._line = line
        self._lost = lost

    def offer(
        self, now: float, size: int, packet: T, first: int = 0, count: int = 1, spacing: float = 0.0
    ) -> int:
        """LinkQueue.put, but for what is lost."""
        line, lost = self._line, self._lost
        entered = start = 0
        for number in range(count):
            if lost():
                line.losses += 1
                if start < number:
                    arrival = now + start * spacing
                    entered += line.put(
                        arrival, size, packet, first + start, number - start, spacing
                    )
                start = number + 1
        if start < count:
            arrival = now + start * spacing
            entered += line.put(arrival, size, packet, first + start, count - start, spacing)
        return entered


class _Impairments(Generic[T]):
    """Each segment for itself, with every impairment in netem's order."""

    def __init__(
        self,
        direction: Direction,
        line: Line[T],
        random: Random,
        lost: Callable[[], bool],
        corrupted: Corrupted[T] | None,
    ) -> None:
        self._line = line
        self._random = random
        self._lost = lost
        self._corrupted = corrupted
        self._duplicate = direction.duplicate_percent / 100
        self._corrupt = direction.corrupt_percent / 100
        self._reorder = direction.reorder_percent / 100

    def offer(
        self, now: float, size: int, packet: T, first: int = 0, count: int = 1, spacing: float = 0.0
    ) -> int:
        """LinkQueue.put with every impairment; duplicates count."""
        return sum(
            self._enter(now + number * spacing, size, packet, first + number, self._duplicate)
            for number in range(count)
        )

    def _enter(self, now: float, size: int, packet: T, first: int, duplicate: float) -> int:
        line, draw = self._line, self._random.random
        copies = 2 if duplicate and draw() < duplicate else 1
        if self._lost():
            copies -= 1
        if not copies:
            line.losses += 1
            return 0
        sent, number = packet, first
        if self._corrupt and draw() < self._corrupt and self._corrupted is not None:
            sent, number = self._corrupted(packet, first, self._random), 0
        if not line.room(now):
            line.queue_drops += 1
            return 0
        entered = 1
        if copies == 2:
            entered += self._enter(now, size, packet, first, 0.0)
        if self._reorder and draw() < self._reorder:
            line.overtake(now, size, sent, number)
        else:
            line.place(now, size, sent, number, 1, 0.0)
        return entered
