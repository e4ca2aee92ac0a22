"""Table of other hosts' clocks as a link process knows them, in memory that its owner reads."""

import mmap
from collections.abc import Sequence
from typing import NamedTuple

from testbed.links.tunnel.clocks import MOST_DRIFT, Offset

_WORD_BYTES = 8
_WORDS = 4
_NUMBER, _OFFSET, _ERROR, _AT = range(_WORDS)
_MOST_TRIES = 1000
"""Of reading what is being written, which takes a few instructions."""


class Reading(NamedTuple):
    """Another host's monotonic clock, against that of this one."""

    offset_s: float
    """Theirs less ours."""
    error_s: float
    """Bound of the error of that, as it is now."""


class ClockTable:
    """A row a host, which the link process alone writes; made before it is forked."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._rows = {name: _WORDS * place for place, name in enumerate(hosts)}
        memory = mmap.mmap(-1, max(1, len(hosts) * _WORDS * _WORD_BYTES))
        size = len(hosts) * _WORDS * _WORD_BYTES
        self._numbers = memoryview(memory)[:size].cast("Q")
        self._seconds = memoryview(memory)[:size].cast("d")

    def write(self, host: str, offset: Offset, now: float) -> None:
        """Tell what is known of a host's clock ``now``, by our own."""
        row = self._rows[host]
        # Odd while the others do not belong together.
        self._numbers[row + _NUMBER] += 1
        self._seconds[row + _OFFSET] = offset.seconds
        self._seconds[row + _ERROR] = offset.error_s(now)
        self._seconds[row + _AT] = now
        self._numbers[row + _NUMBER] += 1

    def read(self, now: float) -> dict[str, Reading]:
        """Readings of all hosts of which anything is known, as it is ``now``."""
        found = {}
        for host, row in self._rows.items():
            for _ in range(_MOST_TRIES):
                before = self._numbers[row + _NUMBER]
                offset_s, error_s, at = self._seconds[row + _OFFSET : row + _AT + 1]
                if before % 2 == 0 and before == self._numbers[row + _NUMBER]:
                    break
            else:
                continue
            if before:
                drifted_s = max(0.0, now - at) * MOST_DRIFT
                found[host] = Reading(offset_s, error_s + drifted_s)
        return found
