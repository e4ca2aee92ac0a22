"""What calibration found, as a table and as data."""

from collections import Counter
from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

from testbed.calibration.measure import Calibration
from testbed.calibration.row import Row

_COLOURS = {"ok": "green", "missed": "red", "not measured": "yellow", "not judged": "cyan"}


def table(found: Calibration) -> Table:
    shown = Table(title=escape(found.links), title_justify="left")
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
    """For scripts."""
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


def _cells(row: Row) -> list[str]:
    off = None
    if row.measured is not None and row.expected is not None:
        off = row.measured - row.expected
    return [
        escape(row.link),
        row.name,
        row.direction,
        number(row.expected),
        number(row.measured),
        "-" if off is None else f"{off:+.3g}",
        number(row.tolerance),
        row.unit,
        str(row.n or "-"),
        f"[{_COLOURS[row.verdict]}]{row.verdict}[/]",
        escape(row.note),
    ]
