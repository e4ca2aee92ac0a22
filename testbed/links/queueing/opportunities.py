"""Opportunities of a Mahimahi trace: when a line sends each packet.

At each opportunity the line sends OPPORTUNITY_BYTES of IP packets that wait by then: several small
ones share it, one that is larger than what is left goes on in the next, and what nobody waits for
is gone (Netravali et al., "Mahimahi: Accurate Record-and-Replay for HTTP", USENIX ATC 2015).
"""

from bisect import bisect_left

from testbed.network.traces import DIGITS, OPPORTUNITY_BYTES, Trace


class Opportunities:
    """The opportunities of one line, used up packet by packet. Times are seconds."""

    __slots__ = ("_at_ms", "_count", "_left_bytes", "_number", "_period_ms", "_stamps", "_start")

    def __init__(self, trace: Trace, start: float) -> None:
        """The trace begins at ``start``; each period begins where the one before it ends."""
        self._stamps = trace.opportunities_ms
        self._count = len(self._stamps)
        self._period_ms = trace.period_ms
        self._start = start
        self._number = -1
        """Of the opportunity used last, counted on from period to period."""
        self._at_ms = -1.0
        self._left_bytes = 0

    def send(self, ready: float, ip_bytes: int) -> float:
        """When the next packet has left, if it waits from ``ready`` on."""
        # A nanosecond's worth: what sums of seconds may miss a stamp by is less.
        ready_ms = round((ready - self._start) * 1000, DIGITS)
        if self._at_ms < ready_ms:
            self._number = self._first_from(ready_ms) - 1
            self._left_bytes = 0
        missing_bytes = ip_bytes - self._left_bytes
        if missing_bytes > 0:
            more = -(-missing_bytes // OPPORTUNITY_BYTES)
            self._number += more
            self._left_bytes += more * OPPORTUNITY_BYTES
            period, index = divmod(self._number, self._count)
            self._at_ms = round(period * self._period_ms + self._stamps[index], DIGITS)
        self._left_bytes -= ip_bytes
        return self._start + self._at_ms / 1000

    def _first_from(self, ready_ms: float) -> int:
        """The first opportunity that comes then or later."""
        period, within_ms = divmod(max(0.0, ready_ms), self._period_ms)
        within_ms = round(within_ms, DIGITS)
        if period and not within_ms:
            # The last stamps of a period are at the same time as those at 0 of the next.
            period, within_ms = period - 1, float(self._period_ms)
        return int(period) * self._count + bisect_left(self._stamps, within_ms)
