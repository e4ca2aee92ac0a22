"""Lateness of released frames: counts by lateness, from which percentiles come.

Counts stand by microsecond up to the first 32, and by 16 steps in each octave beyond, so that a
microsecond and a second are told equally well in little memory.
"""

from testbed.links.queueing.queue import LATE_S

PERCENTILES = (50, 95, 99, 99.9)
_STEPS_PER_OCTAVE = 16
"""A percentile is where its step ends: at most 6 % or 1 µs above the true one."""
_LONGEST_US = (1 << 27) - 1
"""Longer ones count as this: 134 s."""
_TABLE_US = 4096
"""Up to here the step is looked up: releases are many."""


class Lateness:
    """Lateness of every release so far."""

    def __init__(self) -> None:
        self._counts = [0] * (_step(_LONGEST_US) + 1)
        self._late = 0
        self._sum_s = 0.0
        self._max_s = 0.0

    def add(self, late_s: float, count: int = 1, step_s: float = 0.0) -> None:
        """``count`` frames left in one write; the first one's time was ``late_s`` ago.

        The others' times followed each ``step_s`` after the one before it. In the percentiles all
        stand where their middle is.
        """
        if late_s > self._max_s:
            self._max_s = late_s
        if late_s > LATE_S:
            late = int((late_s - LATE_S) / step_s) + 1 if step_s else count
            self._late += min(late, count)
        late_s -= (count - 1) * step_s / 2
        self._sum_s += count * late_s
        microseconds = int(late_s * 1e6)
        if microseconds < _TABLE_US:
            self._counts[_TABLE[microseconds]] += count
        else:
            self._counts[_step(min(microseconds, _LONGEST_US))] += count

    def facts(self) -> dict[str, float | int]:
        """Percentiles for the closing facts of a run."""
        releases = sum(self._counts)
        return {
            "releases": releases,
            "late_releases": self._late,
            "lateness_mean_ms": 1000 * self._sum_s / max(1, releases),
            **{f"lateness_p{p:g}_ms": self._at(p * releases / 100) for p in PERCENTILES},
            "lateness_max_ms": 1000 * self._max_s,
        }

    def _at(self, rank: float) -> float:
        """Most ms that so many releases were late, the most punctual ones first."""
        below = 0
        for step, count in enumerate(self._counts):
            below += count
            if count and below >= rank:
                return min(_bound_us(step) / 1000, 1000 * self._max_s)
        return 0.0


def _step(microseconds: int) -> int:
    if microseconds < 2 * _STEPS_PER_OCTAVE:
        return microseconds
    octave = (microseconds // _STEPS_PER_OCTAVE).bit_length() - 1
    return octave * _STEPS_PER_OCTAVE + (microseconds >> octave)


_TABLE = [_step(microseconds) for microseconds in range(_TABLE_US)]


def _bound_us(step: int) -> int:
    """The bound where a step ends and the next begins."""
    octave = max(0, step // _STEPS_PER_OCTAVE - 1)
    return step - octave * _STEPS_PER_OCTAVE + 1 << octave
