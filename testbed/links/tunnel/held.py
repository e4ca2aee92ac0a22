"""Frames from another host, held until their time."""

import heapq

from testbed.links.queueing.queue import FOREVER, Entry, LinkQueue, parted
from testbed.links.userspace.bursts import Burst

Packet = bytes | Burst


class Held(LinkQueue[Packet]):
    """A line whose packets come with their releases: lines elsewhere have given them."""

    __slots__ = ("_heap", "_number", "bytes")

    def __init__(self) -> None:
        super().__init__(None, seed=0)
        self._heap: list[tuple[float, int, Entry[Packet]]] = []
        self._number = 0
        self.bytes = 0

    def hold(self, entry: Entry[Packet]) -> None:
        self._frames += entry[3]
        self.bytes += entry[3] * entry[5]
        self._push(entry)

    def take(self, now: float = FOREVER) -> Entry[Packet]:
        """The segments of the next entry that have left by then, the first one at least.

        Raises:
            IndexError: there is none.
        """
        entry, rest = parted(heapq.heappop(self._heap)[2], now)
        self._frames -= entry[3]
        self.bytes -= entry[3] * entry[5]
        if rest is not None:
            self._push(rest)
        self.due = self._heap[0][0] if self._heap else FOREVER
        return entry

    def _push(self, entry: Entry[Packet]) -> None:
        # Of those of one time the first that came goes first.
        self._number += 1
        heapq.heappush(self._heap, (entry[0], self._number, entry))
        self.due = self._heap[0][0]
