"""The result of a calibration, as a table and as data."""

from collections import Counter
from typing import Any

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from testbed.calibration.gates import Row
from testbed.calibration.measure import Calibration
from testbed.report.terminal import styled

SUMMARISED = {
    "rate, %": "rate",
    "RTT, ms": "round trip",
    "goodput, %": "goodput",
    "two at once, %": "two at once",
    "queue, %": "queue",
}
"""Columns of the summary, and whose gates they are. A round trip of half a millisecond has no
percentage that says anything."""
_COLOURS = {"ok": "green", "missed": "red", "not measured": "yellow", "not judged": "cyan"}


def table(found: Calibration) -> Group:
    """A line for every row, and below them one for every profile."""
    return Group(_rows(found), summary(found))


def summary(found: Calibration) -> Table:
    """Each profile's worst deviation from what was asked, of either direction, and its verdicts."""
    shown = Table(title="worst deviation from what was asked", title_justify="left")
    shown.add_column("profile", no_wrap=True)
    for name in SUMMARISED:
        shown.add_column(name, justify="right", no_wrap=True)
    for name in _COLOURS:
        shown.add_column(name, justify="right", no_wrap=True)
    for link in dict.fromkeys(row.link for row in found.rows):
        rows = [row for row in found.rows if row.link == link]
        worst = [
            _worst([row for row in rows if row.name == gate], column.endswith("%"))
            for column, gate in SUMMARISED.items()
        ]
        counts = Counter(row.verdict for row in rows)
        shown.add_row(link, *worst, *(str(counts[name]) for name in _COLOURS))
    return shown


def _worst(rows: list[Row], percent: bool) -> str:
    """The greatest of what was judged, with its sign; "-" where nothing was."""
    if any(row.ok is False and row.measured is None for row in rows):
        return "nothing came"
    found = [
        (row.measured - row.expected) * (100 / row.expected if percent else 1)
        for row in rows
        if row.ok is not None and row.measured is not None and row.expected
    ]
    if not found:
        return "-"
    worst: float = max(found, key=abs)
    # Not "-0.00".
    return f"{round(worst, 2) + 0.0:+.2f}"


def _rows(found: Calibration) -> Table:
    shown = Table(title=found.links, title_justify="left")
    for name in ("profile", "gate", "way"):
        shown.add_column(name, no_wrap=True)
    for name in ("expected", "measured", "off", "allowed"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("unit", no_wrap=True)
    shown.add_column("n", justify="right", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    shown.add_column("note")
    last = ""
    for row in found.rows:
        if last and row.link != last:
            shown.add_section()
        last = row.link
        shown.add_row(*_cells(row))
    return shown


def closing(found: Calibration) -> str:
    """ "38 of 39 gates hold, 2 not measured; took 29 s; ..." and how late this host was."""
    counts = Counter(row.verdict for row in found.rows)
    parts = [f"{counts['ok']} of {counts['ok'] + counts['missed']} gates hold"]
    parts += [f"{counts[name]} {name}" for name in ("not judged", "not measured") if counts[name]]
    text = f"{', '.join(parts)}; took {found.seconds:.0f} s"
    late = [facts["lateness_max_ms"] for facts in found.facts if "lateness_max_ms" in facts]
    return text + (f"; releases at most {max(late):.2g} ms late" if late else "")


def data(found: Calibration) -> dict[str, Any]:
    """The result as data, for scripts."""
    return {
        "links": found.links,
        "passed": found.passed,
        "seconds": round(found.seconds, 3),
        "checks": [{**msgspec.to_builtins(row), "verdict": row.verdict} for row in found.rows],
        "networks": found.facts,
    }


def number(value: float | None) -> str:
    """Four digits, and whole numbers from a thousand on."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _cells(row: Row) -> list[str | Text]:
    off = None
    if row.measured is not None and row.expected is not None:
        off = row.measured - row.expected
    return [
        row.link,
        row.name,
        row.direction,
        number(row.expected),
        number(row.measured),
        "-" if off is None else f"{off:+.3g}",
        number(row.tolerance),
        row.unit,
        str(row.n or "-"),
        styled(row.verdict, _COLOURS[row.verdict]),
        row.note,
    ]
