"""Windows of a trace: what one can hold, wherever in the trace it lies."""

import numpy as np

from testbed.network.traces import Trace

CELLS = 64
"""In which a window is searched for where the trace serves least."""
LUMP_MS = 2.0
"""A relay passes on what comes in that time at once."""


def chances(trace: Trace, span_ms: float) -> tuple[int, int]:
    """Least and most opportunities in a window of ``span_ms`` that begins behind one of them."""
    whole, rest_ms = divmod(span_ms, trace.period_ms)
    base = int(whole) * len(trace.opportunities_ms)
    times = np.asarray(trace.opportunities_ms)
    unrolled = np.concatenate([times, times + trace.period_ms])
    inside = np.searchsorted(unrolled, times + rest_ms, side="right") - np.arange(1, len(times) + 1)
    # Opportunities of the same millisecond as the window's first count for the most only.
    later = np.searchsorted(unrolled, times + rest_ms, side="left") - np.searchsorted(
        unrolled, times, side="right"
    )
    return base + max(0, int(later.min())), base + int(inside.max())


def chances_used(trace: Trace, span_ms: float, per_ms: float) -> tuple[float, float]:
    """Chances used in a window, of what comes to the trace at ``per_ms`` from some moment on.

    What leaves two servers in a row is at least the convolution of what each serves at least, and
    at most what comes in the window besides the longest queue (Le Boudec, Thiran: "Network
    Calculus", 2001).
    """
    least, most = chances(trace, span_ms)
    lump = max(1.0, LUMP_MS * per_ms)
    waits_ms = np.linspace(0.0, span_ms, CELLS + 1)
    # Of each cell the least of either: so nothing between two points is overlooked.
    served = [chances(trace, span_ms - wait_ms)[0] for wait_ms in waits_ms[1:]]
    slow = float(np.min(per_ms * waits_ms[:-1] + served))
    fast = float(most)
    if per_ms * trace.period_ms < len(trace.opportunities_ms):
        times = np.asarray(trace.opportunities_ms)
        ahead = per_ms * np.concatenate([times, times + trace.period_ms])
        ahead -= np.arange(len(ahead))
        queued = float((ahead - np.minimum.accumulate(np.minimum(ahead, 0.0))).max())
        fast = min(fast, per_ms * span_ms + queued + lump)
    return max(0.0, min(float(least), slow - lump)), fast


def longest_ms(trace: Trace, count: int) -> float:
    """The longest time that ``count`` opportunities in a row can take, the wait for the first
    included."""
    periods, rest = divmod(count, len(trace.opportunities_ms))
    times = np.asarray(trace.opportunities_ms)
    unrolled = np.concatenate([times, times + trace.period_ms])
    spans = unrolled[rest : rest + len(times)] - times
    return float(periods * trace.period_ms + spans.max())
