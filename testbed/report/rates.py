"""Rates of a link in a run of programs: kB/s between readings of its meters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from testbed.report.page.svg import MOST_POINTS as BINS
from testbed.report.read import Reading


def rates(readings: Sequence[Reading], place: int, way: int) -> list[tuple[float, float]]:
    """(seconds, kB/s) of one direction of a node's link, in at most BINS equal steps.

    Between two readings bytes are taken to have passed evenly.
    """
    began, ended = readings[0].t, readings[-1].t
    count = min(BINS, len(readings) - 1)
    width = (ended - began) / count or 1e-9
    sums = [0.0] * count
    for before, after in itertools.pairwise(readings):
        size = after.bytes[place][way] - before.bytes[place][way]
        if size <= 0 or after.t <= before.t:
            continue
        first = min(count - 1, int((before.t - began) / width))
        last = min(count - 1, int((after.t - began) / width))
        for bin_ in range(first, last + 1):
            low = max(before.t, began + bin_ * width)
            high = min(after.t, began + (bin_ + 1) * width)
            sums[bin_] += size * max(0.0, high - low) / (after.t - before.t)
    return [((n + 0.5) * width, size / width / 1000) for n, size in enumerate(sums)]
