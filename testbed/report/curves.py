"""Metric of a run against time and bytes, from summary.json; where a target is reached; fronts.

Minutes are of rounds, as `bench` counts them: start-up and probing are not the method's. Bytes are
on the wire, all clients, both ways; MB are of 10^6 bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from testbed import metrics
from testbed.metrics import Target
from testbed.record.run_summary import Summary


class Point(NamedTuple):
    """A run's standing at the end of a round, or before the first."""

    round: int
    value: float | None
    """Of the metric that it is shown by."""
    minutes: float
    wire_mb: float


def metric(*summaries: Summary) -> str:
    """The metric that runs of one row are shown by: their target's, or the one that leads."""
    for summary in summaries:
        with contextlib.suppress(ValueError):
            if summary.target is not None:
                return metrics.target(summary.target).metric
    return metrics.leading(
        found
        for summary in summaries
        for found in (summary.metrics.initial, *(entry.metrics for entry in summary.rounds))
    )


def label(summary: Summary, name: str) -> str:
    """ "accuracy", "perplexity (mean of clients)" """
    ours = name in summary.metrics.final or name in summary.metrics.initial
    clients = metrics.OWN + name in summary.metrics.final
    return (
        f"{metrics.words(name)} (mean of clients)" if clients and not ours else metrics.words(name)
    )


def points(summary: Summary, name: str) -> list[Point]:
    """Every finished round's end, with the start before them, by a metric."""
    found = [Point(0, metrics.value(summary.metrics.initial, name), 0.0, 0.0)]
    minutes = wire = 0.0
    for entry in summary.rounds:
        if entry.finished and entry.seconds is not None:
            minutes += entry.seconds / 60
            wire += entry.bytes.wire.both / 1e6
            found.append(Point(entry.round, metrics.value(entry.metrics, name), minutes, wire))
    return found


def best(found: Iterable[Point], name: str) -> float | None:
    """The best after any round."""
    return metrics.best((point.value for point in found if point.round), name)


def reached(found: Iterable[Point], target: Target) -> Point | None:
    """The end of the first round that was as good."""
    return next((p for p in found if p.round and target.reached_by(p.value)), None)


def crossing(before: float | None, after: float, target: Target) -> float | None:
    """Share of a round at which its metric, on a straight line through the round, is the target.

    ``before``, ``after``: at the round's begin and at its end, which has reached the target. 0
    where the begin had; None where nobody knows the begin.
    """
    if before is None:
        return None
    return 0.0 if target.reached_by(before) else (target.value - before) / (after - before)


def moment(found: Sequence[Point], target: Target) -> tuple[float, float] | None:
    """Minutes and MB at which the metric, on a straight line through the round, is the target.

    None where no round reached it, or where nobody knows the metric at that one's begin.
    """
    for before, after in itertools.pairwise(found):
        if after.value is not None and target.reached_by(after.value):
            share = crossing(before.value, after.value, target)
            if share is None:
                return None
            minutes = before.minutes + share * (after.minutes - before.minutes)
            return minutes, before.wire_mb + share * (after.wire_mb - before.wire_mb)
    return None


def common_target(runs: Iterable[Sequence[Point]], name: str) -> Target | None:
    """The best that all reached, rounded to 0.01 that all have too; runs without any aside."""
    bests = [top for top in (best(found, name) for found in runs) if top is not None]
    if not bests:
        return None
    way = metrics.sign(name)
    least = min(way * top for top in bests)
    # 0.29 * 100 is 28.999999999999996.
    return Target(name, way * math.floor(least * 100 + 1e-9) / 100)


def front(runs: Sequence[Sequence[Point]], name: str) -> list[list[bool]]:
    """The front: of each run's points, whether no other is as good in all three and better in one.

    A better metric, fewer minutes and fewer MB are better. The start before a run is no result.
    """
    way = metrics.sign(name)
    places = sorted(
        (-way * p.value, p.minutes, p.wire_mb, run, n)
        for run, found in enumerate(runs)
        for n, p in enumerate(found)
        if p.round and p.value is not None
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
