"""Minutes and bytes to the target as bars, by place and run: which run pays on which link."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from testbed.metrics import Target
from testbed.report.compare import comparison
from testbed.report.compare.comparison import Row
from testbed.report.page import svg
from testbed.report.page.html import Markup, section, tag

MOST_BARS = 60
"""Of a chart; a bar takes some 300 bytes."""


def sections(
    rows: Sequence[Row], target: Target | None, styles: Mapping[str, int]
) -> Iterator[Markup]:
    """The chart, where there is a target that a run has reached.

    ``styles``: of each name, the number of its colour.
    """
    if target is None or not any(_took(row) for row in rows):
        return
    # A place's runs side by side, in the order in which both first came.
    places = list(dict.fromkeys(row.where for row in rows))
    ordered = sorted(rows, key=lambda row: (places.index(row.where), styles[row.name]))
    shown = ordered[:MOST_BARS]
    plots = [_bars(shown, styles, target, pick, unit) for pick, unit in ((0, "min"), (1, "MB"))]
    names = dict.fromkeys(row.name for row in shown)
    told = (
        "At the moment of the target between the ends of two rounds, or else at the end of the "
        "round that reached it. MB are of all clients, both ways, on the wire."
    )
    if len(ordered) > MOST_BARS:
        told += f" {len(ordered) - MOST_BARS} more runs are in the table."
    yield section(
        "target",
        f"To {comparison.goal(target)}, by link",
        svg.swatches((name, svg.colour(styles[name])) for name in names),
        tag("div", *plots, class_="plots"),
        tag("p", told, class_="note"),
    )


def _took(row: Row) -> tuple[float, float] | None:
    """Minutes and MB at the target; None where it was not reached."""
    if row.minutes_interpolated is not None and row.wire_mb_interpolated is not None:
        return row.minutes_interpolated, row.wire_mb_interpolated
    if row.minutes_to_target is not None and row.wire_mb_to_target is not None:
        return row.minutes_to_target, row.wire_mb_to_target
    return None


def named(places: Sequence[str]) -> dict[str, str]:
    """Names for places: without the words at their ends that all of several have."""
    words = {place: place.split(" ") for place in places}
    while len(places) > 1 and all(len(own) > 1 for own in words.values()):
        if len({own[-1] for own in words.values()}) > 1:
            break
        words = {place: own[:-1] for place, own in words.items()}
    return {place: " ".join(own).removesuffix(",") for place, own in words.items()}


def _bars(
    rows: Sequence[Row], styles: Mapping[str, int], target: Target, pick: int, unit: str
) -> Markup:
    lines = []
    told = []
    last = ""
    names = named(list(dict.fromkeys(row.where for row in rows)))
    for row in rows:
        took = _took(row)
        after = "never" if took is None else f"{svg.number(took[pick])} {unit}"
        amount = 0.0 if took is None else took[pick]
        place = names[row.where] if row.where != last else ""
        last = row.where
        lines.append((place, [(amount, svg.colour(styles[row.name]))], after))
        told.append(f"{row.where}, {row.name}: {after}")
    title = f"{'MB on the wire' if pick else 'Minutes'} to {comparison.goal(target)}"
    return svg.figure(title, svg.bars(title, "; ".join(told), lines, title))
