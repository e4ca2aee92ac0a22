"""Accuracy against time and bytes, from summary.json alone; where a target is reached; fronts.

Minutes are of rounds, as `bench` counts them: start-up and probing are not the method's. Bytes are
on the wire, all clients, both ways; MB are of 10^6 bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from testbed.metrics import accuracy
from testbed.record.run_summary import Summary


class Point(NamedTuple):
    """A run's standing at the end of a round, or before the first."""

    round: int
    accuracy: float | None
    minutes: float
    wire_mb: float


def accuracy_name(summary: Summary) -> str:
    ours = "accuracy" in summary.metrics.final or "accuracy" in summary.metrics.initial
    clients = "client_accuracy" in summary.metrics.final
    return "accuracy (mean of clients)" if clients and not ours else "accuracy"


def points(summary: Summary) -> list[Point]:
    """Every finished round's end, with the start before them."""
    found = [Point(0, accuracy(summary.metrics.initial), 0.0, 0.0)]
    minutes = wire = 0.0
    for entry in summary.rounds:
        if entry.finished and entry.seconds is not None:
            minutes += entry.seconds / 60
            wire += entry.bytes.wire.both / 1e6
            found.append(Point(entry.round, accuracy(entry.metrics), minutes, wire))
    return found


def best(found: Iterable[Point]) -> float | None:
    """The greatest accuracy after any round."""
    return max((p.accuracy for p in found if p.round and p.accuracy is not None), default=None)


def reached(found: Iterable[Point], target: float) -> Point | None:
    """The end of the first round that was as accurate."""
    good = (p for p in found if p.round and p.accuracy is not None and p.accuracy >= target)
    return next(good, None)


def crossing(before: float | None, after: float, target: float) -> float | None:
    """Share of a round at which accuracy, on a straight line through the round, is the target.

    ``before``, ``after``: at the round's begin and at its end, which has reached the target. 0
    where the begin had; None where nobody knows the begin.
    """
    if before is None:
        return None
    return 0.0 if before >= target else (target - before) / (after - before)


def moment(found: Sequence[Point], target: float) -> tuple[float, float] | None:
    """Minutes and MB at which accuracy, on a straight line through the round, is the target.

    None where no round reached it, or where nobody knows the accuracy at that one's begin.
    """
    for before, after in itertools.pairwise(found):
        if after.accuracy is not None and after.accuracy >= target:
            share = crossing(before.accuracy, after.accuracy, target)
            if share is None:
                return None
            minutes = before.minutes + share * (after.minutes - before.minutes)
            return minutes, before.wire_mb + share * (after.wire_mb - before.wire_mb)
    return None


def common_target(runs: Iterable[Sequence[Point]]) -> float | None:
    """The greatest accuracy that all reached, rounded down to 0.01; runs without any aside."""
    bests = [top for top in map(best, runs) if top is not None]
    # 0.29 * 100 is 28.999999999999996.
    return math.floor(min(bests) * 100 + 1e-9) / 100 if bests else None


def front(runs: Sequence[Sequence[Point]]) -> list[list[bool]]:
    """The front: of each run's points, whether no other is as good in all three and better in one.

    More accuracy, fewer minutes and fewer MB are better. The start before a run is no result.
    """
    places = sorted(
        (-p.accuracy, p.minutes, p.wire_mb, run, n)
        for run, found in enumerate(runs)
        for n, p in enumerate(found)
        if p.round and p.accuracy is not None
    )
    on = [[False] * len(found) for found in runs]
    kept: list[tuple[float, float, float]] = []
    for less, minutes, wire_mb, run, n in places:
        own = (less, minutes, wire_mb)
        # All that could be better come before in this order, or are its equals.
        if not any(k[1] <= minutes and k[2] <= wire_mb and k != own for k in kept):
            on[run][n] = True
            kept.append(own)
    return on
