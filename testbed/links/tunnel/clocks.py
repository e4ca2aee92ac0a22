"""Offset of another host's monotonic clock: the interval in which it lies for certain.

A question that was asked at t0 by our clock, heard at t1 and answered at t2 by theirs, whose answer
came at t3 by ours, bounds it: neither was on its way for less than no time, so that ``theirs -
ours`` is t2 - t3 at least and t1 - t0 at most, however uneven the ways are. Intervals of several
such exchanges are intersected; with time each grows by what two clocks may drift apart.
"""

import math

MOST_DRIFT = 200e-6
"""Seconds that two clocks may drift apart in a second: 100 ppm each, as quartz has at worst."""
RESOLUTION_S = 1e-8
"""To which times are told as floats."""


class Contradiction(ValueError):
    """An exchange that no pair of clocks can have."""


class Offset:
    """Theirs less ours, in seconds."""

    def __init__(self) -> None:
        self._low, self._high = -math.inf, math.inf
        self._at = 0.0
        """When both bounds held, by our clock."""
        self.exchanges = 0
        self.steps = 0
        """Exchanges that contradict those before them: a clock was set, or slewed by more."""

    def learn(self, asked: float, heard: float, answered: float, came: float) -> None:
        """Take one exchange.

        Raises:
            Contradiction: the answer took longer by their clock than the whole by ours.
        """
        low, high = answered - came - RESOLUTION_S, heard - asked + RESOLUTION_S
        if low > high + (came - asked) * MOST_DRIFT:
            raise Contradiction(
                f"an answer that took {answered - heard:.6f} s came after {came - asked:.6f} s"
            )
        low, high = min(low, high), max(low, high)
        self.exchanges += 1
        spread = max(0.0, came - self._at) * MOST_DRIFT
        both = max(low, self._low - spread), min(high, self._high + spread)
        if both[0] > both[1]:
            self.steps += 1
            both = low, high
        self._low, self._high = both
        self._at = came

    @property
    def is_known(self) -> bool:
        return self.exchanges > 0

    @property
    def seconds(self) -> float:
        """The middle of the interval; nan before the first exchange."""
        return (self._low + self._high) / 2 if self.exchanges else math.nan

    def error_s(self, now: float) -> float:
        """How far that may be from the true offset at ``now``, by our clock."""
        return (self._high - self._low) / 2 + max(0.0, now - self._at) * MOST_DRIFT
