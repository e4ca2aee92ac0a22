"""A node's spans as columns of a plot, so that a page's size does not grow with its messages."""

from __future__ import annotations

from collections.abc import Sequence

from testbed.record.spans import Span


def columns(
    found: Sequence[Span], began_ns: int, ended_ns: int, count: int
) -> list[tuple[int, int, str]]:
    """``count`` equal columns of the time between, each what the node did longest in it.

    Returns runs of equal columns: (first column, column after the last, kind of span). Where
    nothing is known there is nothing.
    """
    width = (ended_ns - began_ns) / count
    spent: dict[tuple[int, str], float] = {}
    for span in found:
        first = max(0, int((span.began_ns - began_ns) / width))
        last = min(count - 1, int((span.ended_ns - began_ns) / width))
        for column in range(first, last + 1):
            low = max(span.began_ns, began_ns + column * width)
            high = min(span.ended_ns, began_ns + (column + 1) * width)
            if high > low:
                key = (column, span.kind)
                spent[key] = spent.get(key, 0.0) + high - low
    longest: dict[int, tuple[float, str]] = {}
    for (column, kind), ns in spent.items():
        longest[column] = max(longest.get(column, (0.0, "")), (ns, kind))
    runs: list[tuple[int, int, str]] = []
    for column, (_, kind) in sorted(longest.items()):
        if runs and runs[-1][1:] == (column, kind):
            runs[-1] = (runs[-1][0], column + 1, kind)
        else:
            runs.append((column, column + 1, kind))
    return runs
