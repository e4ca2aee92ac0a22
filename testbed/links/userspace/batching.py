"""Batching of the link process's work: at every event, or at intervals while there is much.

With little to carry each packet is read when it comes and released at its time; on lines of 24 to
121 Mbit/s the last microseconds before it are spent polling, since waking up takes longer. Beyond
MOST_FRAMES_PER_S that is more than a core can do. The process then sleeps between batches
of BATCH_S and moves in each what has come or is due by then; segments of one TCP burst that are due
leave in one write, as a network card's interrupt moderation and receive offload have it. What that
costs in lateness is counted like all lateness.
"""

import select
import time

from testbed.network.direction import FRAME_BYTES, Direction

MOST_FRAMES_PER_S = 20_000
"""Beyond it the process works in batches."""
BATCH_S = 0.0003
LEAST_REST = 0.06
"""Share of the time to sleep at least. A real-time process that lets nobody else run for 95 % of a
second is stopped for the rest of it (sched_rt_runtime_us): 50 ms, at once."""
CALM_REST = 0.5
"""Share of the time asleep from which on nothing needs to be saved any more."""
POLLED_S = 0.00008
"""Before a release, where a frame takes from SHORTEST_S to LONGEST_S: twice what the kernel needs
to wake a process. Slower lines can do without, and on faster ones there is no time for it."""
SHORTEST_S, LONGEST_S = 0.0001, 0.0005
WINDOW_S = 0.01
"""How often the two ways are chosen between."""


def polled_s(direction: Direction | None) -> float:
    """How long to poll before a release on such a line."""
    rate_kbit = direction.rate_kbit if direction else None
    if rate_kbit is None or not SHORTEST_S <= 8 * FRAME_BYTES / (1000 * rate_kbit) <= LONGEST_S:
        return 0.0
    return POLLED_S


class Batching:
    """Waits for the next look at the lines."""

    def __init__(self, descriptor: int) -> None:
        """``descriptor`` is readable when there is something to read."""
        self.batches = False
        self.frames = 0
        """That have left their last line here so far; the owner counts."""
        self.frames_in_batches = 0
        self.polls = True
        """There is time to poll before releases."""
        self._descriptors = [descriptor]
        self._began = time.monotonic()
        self._window_began = self._began
        self._window_frames = 0
        self._rested_s = 0.0

    def wait(self, left_s: float) -> None:
        """Sleep until there is something to do, for ``left_s`` at most.

        In batches it is until the next one.
        """
        now = time.monotonic()
        if now - self._window_began > WINDOW_S:
            self._choose(now)
        if self.batches:
            time.sleep(max(self._began + BATCH_S - now, LEAST_REST * (now - self._began)))
        elif left_s > 0:
            # epoll_wait counts in milliseconds, select waits in microseconds.
            select.select(self._descriptors, [], [], left_s if left_s < 1e6 else None)
        else:
            return
        self._began = time.monotonic()
        self._rested_s += self._began - now

    def _choose(self, now: float) -> None:
        """How to work in the next window, by how it went in the last."""
        window_s = now - self._window_began
        frames, rest = self.frames - self._window_frames, self._rested_s / window_s
        if self.batches:
            self.frames_in_batches += frames
        if frames > MOST_FRAMES_PER_S * window_s:
            self.batches = True
        elif rest >= CALM_REST:
            self.batches, self.polls = False, True
        elif rest < LEAST_REST:
            # Polling is given up first.
            self.batches, self.polls = not self.polls, False
        self._window_began, self._window_frames, self._rested_s = now, self.frames, 0.0
