"""Stops of a run's processes during rounds: by SIGSTOP, a debugger, or Ctrl-Z for all of them.

A round waits for a node that stands still as it would for a slow link, and no device stood still.
A node's is seen in the system's list of processes. What stops all at once stops who looks there
too, who is late then for no want of a core. Times are of the run's clock: an elastic one stands
still with the process that keeps it, and nothing is lost.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from testbed import clock
from testbed.metering import meter
from testbed.processes import states
from testbed.record.events import Stopped
from testbed.record.reading import SUPERVISOR

LOOK_S = 0.5
"""Of this machine, between two looks at few nodes."""
LOOK_AT_ONE_S = 0.002
"""As much more for each of many: looking at one takes some 20 us."""
STILL_S = 2.0
"""Who looks is at other work of its own for less, or waits for it."""


class Stops:
    """Processes by their ids, looked at from ``begin`` to ``end``."""

    def __init__(self, record: Callable[[str, Stopped], None]) -> None:
        """``record`` takes who says so, and what."""
        self._record = record
        self._pids: dict[str, int] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        """Of those that stand still, so far."""
        self._look_at = math.inf
        self._seen = _Seen()

    def watch(self, node: str, pid: int) -> None:
        self._pids[node] = pid

    def forget(self, node: str) -> None:
        self._pids.pop(node, None)

    def begin(self) -> None:
        """Rounds begin, or go on."""
        self._seen, self._look_at = _Seen(), 0.0

    def end(self) -> None:
        """Rounds are over; tell of who stands still at that moment."""
        self._look_at = math.inf
        self._tell(list(self._seconds))

    @property
    def wait_s(self) -> float:
        """Seconds of this machine until the next look."""
        return max(0.0, self._look_at - time.monotonic())

    def look(self) -> None:
        """Tell of who stood still and goes on, where it is time to look."""
        if self.wait_s > 0:
            return
        before, self._seen = self._seen, _Seen()
        passed_s = self._seen.clock_s - before.clock_s
        every_s = max(LOOK_S, LOOK_AT_ONE_S * len(self._pids))
        self._look_at = self._seen.host_s + every_s
        held_now = {node for node, pid in self._pids.items() if states.is_held(pid)}
        for node in held_now:
            # Since some time between the two looks, half of it in the mean, as it will go on then.
            self._seconds[node] += passed_s
        own_s = self._seen.idle_s - before.idle_s
        if own_s > every_s + STILL_S and passed_s > STILL_S:
            self._say(SUPERVISOR, passed_s)
        self._tell(self._seconds.keys() - held_now)

    def _tell(self, nodes: Iterable[str]) -> None:
        for node in sorted(nodes):
            self._say(node, self._seconds.pop(node))

    def _say(self, whose: str, seconds: float) -> None:
        self._record(SUPERVISOR, Stopped(peer=whose, seconds=round(seconds, 3)))


class _Seen:
    """A moment, as this thread sees it."""

    def __init__(self) -> None:
        self.host_s, self.clock_s = time.monotonic(), clock.monotonic()
        self.idle_s = self.host_s - time.thread_time() - (meter.thread_delay_s() or 0.0)
        """In which this thread neither had a core nor waited for one, since whenever."""
