"""Spells of computing, from one message to the next: how long the next may take at least.

An elastic clock lets packets travel while a node computes, for as long as it could not be done
anyway. A method's spells are much alike from round to round.
"""

import contextlib
from collections import deque
from collections.abc import Iterator

UNKNOWN_S = 0.05
"""Of the first, where nothing tells more."""
SURE = 0.8
"""Share of the shortest of the last ones that the next is believed to take."""
REMEMBERED = 3
LEAST_S = 0.0005
"""Less is the reading of a message that asks for nothing."""
LEAST_OF_FIRST = 0.5
"""Share of a client's operations in its first round, as counted, that its first spell has."""


def least_of_first(first: int, second: int) -> float:
    """Operations of a node's first spell at least, by those of its parts in rounds 1 and 2.

    What the first round alone has is a set-up, answered before the rest begins.
    """
    return LEAST_OF_FIRST * (first - second if first > second else first)


class Spells:
    """Device's seconds of the last spells of one node."""

    def __init__(self, first_s: float = UNKNOWN_S) -> None:
        """``first_s``: what the first one is believed to take at least."""
        self._first_s = first_s
        self._last: deque[float] = deque(maxlen=REMEMBERED)
        self._present_s = 0.0
        self.settles = False
        """A device's time passes, after which the node only sends."""

    def add(self, device_s: float) -> None:
        """The device was given so much more in the present spell."""
        self._present_s += device_s

    @contextlib.contextmanager
    def settling(self) -> Iterator[None]:
        """Within, the node settles."""
        self.settles = True
        try:
            yield
        finally:
            self.settles = False

    def begin(self) -> float:
        """A spell begins; seconds that it will take at least."""
        if self.settles:
            return 0.0
        if self._present_s > LEAST_S:
            self._last.append(self._present_s)
        self._present_s = 0.0
        return SURE * min(self._last) if self._last else self._first_s
