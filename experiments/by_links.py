"""Minutes of a bench's rows on each of its links side by side, beside their share of a budget."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from experiments.compare import Group, cell

FIGURES = (
    ("minutes_to_target", "minutes to the target", "{:.2f}"),
    ("minutes_a_round", "minutes a round", "{:.2f}"),
)
"""The first that a row has is shown."""


def table(groups: Sequence[Group]) -> Table | None:
    """A row each and a column for each links; None where there are not several of both."""
    links = list(dict.fromkeys(group.where for group in groups))
    rows: dict[str, dict[str, Group]] = {}
    for group in groups:
        rows.setdefault(group.row.name, {})[group.where] = group
    if len(links) < 2 or len(rows) < 2:
        return None
    found = [group.figures for group in groups]
    name, words, form = next(
        (each for each in FIGURES if any(figures.get(each[0]) is not None for figures in found)),
        FIGURES[-1],
    )
    shown = Table(title=words, title_justify="left")
    shown.add_column("", overflow="fold")
    budget = any(figures.get("budget_share") is not None for figures in found)
    if budget:
        shown.add_column("of its budget", justify="right")
    for each in links:
        shown.add_column(each, justify="right", overflow="fold")
    for row, own in rows.items():
        # Bytes of payload are the same on all links.
        share = [cell(next(iter(own.values())), "budget_share", "{:.2%}")] if budget else []
        values = [cell(own[each], name, form) if each in own else "-" for each in links]
        shown.add_row(row, *share, *values)
    return shown
