"""comparison.html: runs' curves together, and what each took to the target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from testbed.metrics import Target, one_of, words
from testbed.metrics import metric as told
from testbed.report import summaries
from testbed.report.compare import (
    claims,
    comparison,
    hosts_comparison,
    program_comparison,
    to_target,
)
from testbed.report.compare.claims import Examined
from testbed.report.compare.comparison import Row
from testbed.report.compare.program_comparison import Ran
from testbed.report.page import html, svg
from testbed.report.page.html import Markup, section, table, tag
from testbed.report.page.svg import Curve
from testbed.report.text import counted

NAME = "comparison.html"
MOST_SENTENCES = 40


def page(
    rows: Sequence[Row],
    target: Target | None,
    notes: Sequence[str] = (),
    examined: Sequence[Examined] = (),
    ran: Sequence[Ran] = (),
) -> str:
    """``notes``: what keeps these runs from being comparable; ``examined``: papers' claims;
    ``ran``: runs of programs."""
    title = f"{counted(len(rows) + len(ran), 'run')} compared"
    # A run's colour goes with its name, on every network.
    styles = {name: n for n, name in enumerate(dict.fromkeys(row.name for row in rows))}
    places = list(dict.fromkeys(row.where for row in rows))
    return html.page(
        title,
        tag("header", tag("h1", title), *_lead(rows, target, notes, ran)),
        *_claims(examined),
        *to_target.sections(rows, target, styles),
        *(
            _place(
                f"place-{n}",
                place,
                [row for row in rows if row.where == place],
                styles,
                svg.MARKS // (2 * len(places)),
            )
            for n, place in enumerate(places, start=1)
        ),
        *_every_run(rows, target),
        *program_comparison.sections(ran),
        *hosts_comparison.sections([*rows, *ran]),
        section("folders", "Where they are", _folders(rows, ran)),
    )


def write(
    rows: Sequence[Row],
    target: Target | None,
    folders: Sequence[Path],
    out: Path | None,
    notes: Sequence[str] = (),
    examined: Sequence[Examined] = (),
    ran: Sequence[Ran] = (),
) -> Path:
    """Write the page to ``out``, or into the bench's folder, or beside the first run's.

    Raises:
        OSError: it cannot be written.
    """
    first = folders[0]
    bench = len(folders) == 1 and not summaries.is_run(first)
    path = out or (first if bench else first.resolve().parent) / NAME
    html.write(path, page(rows, target, notes, examined, ran))
    return path


_FRONT = (
    "A round's end is on the front if no other there was as good in as few minutes with as few "
    "MB, and better in one of the three: stopping there is a choice that nothing beats."
)


def _every_run(rows: Sequence[Row], target: Target | None) -> list[Markup]:
    if not rows:
        return []
    head, *lines = comparison.cells(rows, target)
    caption = "Minutes are of rounds; MB are of all clients, both ways, on the wire"
    texts = sum(name in comparison.TEXTS for name in head)
    found = table(caption, head, lines, texts)
    return [section("table", "Every run", found, tag("p", _FRONT, class_="note"))]


def _lead(
    rows: Sequence[Row], target: Target | None, notes: Sequence[str], ran: Sequence[Ran]
) -> list[Markup]:
    told = [comparison.sentence(row, target) for row in rows]
    told += map(program_comparison.sentence, ran)
    said = [tag("li", text) for text in told[:MOST_SENTENCES]]
    if len(told) > MOST_SENTENCES:
        said.append(tag("li", f"{len(told) - MOST_SENTENCES} more are in the table."))
    if not rows:
        first = "What programs took, and what they moved:"
    elif target is None:
        metric = comparison.common_metric(rows)
        first = "The runs have no metric in common, so there is no target to compare at."
        if metric is not None:
            first = f"No run has {one_of(metric)}, so there is no target to compare at."
    else:
        named = "accuracy " if target.metric == "accuracy" else ""
        first = f"What each took to reach {named}{comparison.goal(target)}:"
    warned = [tag("p", note, class_="bad") for note in notes]
    return [tag("p", first, class_="lead"), tag("ul", *said), *warned]


def _claims(examined: Sequence[Examined]) -> list[Markup]:
    if not examined:
        return []
    caption = "Papers' figures, the same accounts of these runs, and the runs on the wire"
    found = table(caption, claims.HEAD, claims.cells(examined), len(claims.HEAD))
    return [section("claims", claims.TITLE, found)]


def _place(
    name: str, place: str, rows: Sequence[Row], styles: dict[str, int], marks: int
) -> Markup:
    learnt = [row for row in rows if row.best is not None]
    if not learnt:
        return section(name, place, tag("p", f"No run here has {one_of(rows[0].metric)}."))
    metric = words(learnt[0].metric)
    plots = []
    for label, pick in (("minutes", 0), ("MB on the wire", 1)):
        found = []
        for row in learnt:
            kept = [n for n, point in enumerate(row.points) if point.value is not None]
            along = [(row.points[n].minutes, row.points[n].wire_mb)[pick] for n in kept]
            heights = [row.points[n].value or 0.0 for n in kept]
            points = list(zip(along, heights, strict=True))
            solid = [row.front[n] for n in kept]
            found.append(Curve(row.name, points, styles[row.name], solid))
        description = "; ".join(
            f"{row.name}: {told(row.best)} at best, {svg.number(own.points[-1][0])} {label} in all"
            for row, own in zip(learnt, found, strict=True)
        )
        drawn = svg.curves(
            f"{metric.capitalize()} against {label}", description, found, label, metric, marks
        )
        plots.append(svg.figure(f"{metric.capitalize()} against {label}", drawn))
    legend = svg.legend((row.name, styles[row.name]) for row in learnt)
    note = (
        "A mark is a round's end: solid where it is on the front, hollow where another is better."
    )
    return section(
        name, place, legend, tag("div", *plots, class_="plots"), tag("p", note, class_="note")
    )


def _folders(rows: Sequence[Row], ran: Sequence[Ran]) -> Markup:
    cells = [(row.name, row.where, row.folder, row.status) for row in rows]
    cells += [(row.name, row.where, row.folder, row.status) for row in ran]
    return table("Runs and their folders", ("run", "where", "folder", "status"), cells, 4)
