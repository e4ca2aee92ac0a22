"""What a window of a trace can hold, wherever in the trace it lies."""

import numpy as np

from testbed.traces import Trace


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


def longest_ms(trace: Trace, count: int) -> float:
    """The longest time that ``count`` opportunities in a row can take, the wait for the first
    included."""
    periods, rest = divmod(count, len(trace.opportunities_ms))
    times = np.asarray(trace.opportunities_ms)
    unrolled = np.concatenate([times, times + trace.period_ms])
    spans = unrolled[rest : rest + len(times)] - times
    return float(periods * trace.period_ms + spans.max())
