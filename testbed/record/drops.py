"""Dropped messages of a node: the first few in full, the rest counted by sender and reason.

Whoever can reach a node can send it more than a record has room for.
"""

from testbed import clock
from testbed.record.events import Dropped, Event, Report, Usage

IN_FULL = 3
"""Of one sender and reason."""
MOST_KINDS = 50
"""Senders and reasons that are told apart."""
TELL_EVERY_S = 10.0
_OTHERS = ("others", "various")


class Condensed:
    """A report that passes every event on, but of "dropped" ones the first and sums of the rest.

    What is summed up is told every ten seconds, and with the node's "usage", after which it begins
    anew: so each round has its own.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._seen: dict[tuple[str, str], int] = {}
        self._untold: dict[tuple[str, str], tuple[int, int]] = {}
        """Number and bytes."""
        self._told_s = clock.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Dropped):
            self._take(event)
            return
        if isinstance(event, Usage):
            self._tell()
            self._seen.clear()
        self._report(event)

    def _take(self, event: Dropped) -> None:
        kind = event.peer, event.reason
        if kind not in self._seen and len(self._seen) >= MOST_KINDS:
            kind = _OTHERS
        number = self._seen[kind] = self._seen.get(kind, 0) + 1
        if number <= IN_FULL and kind != _OTHERS:
            self._report(event)
            return
        count, size = self._untold.get(kind, (0, 0))
        self._untold[kind] = count + 1, size + event.bytes
        if clock.monotonic() >= self._told_s + TELL_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        for (peer, reason), (count, size) in self._untold.items():
            self._report(Dropped(peer=peer, bytes=size, reason=reason, count=count))
        self._untold.clear()
        self._told_s = clock.monotonic()
