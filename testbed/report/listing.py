"""The listing of every run under a folder of results, newest first."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from testbed import outside
from testbed.config_error import ConfigError
from testbed.metrics import metric, words
from testbed.report import curves, programs, summaries
from testbed.report.page.svg import number
from testbed.report.text import one_line

DEPTHS = ("*/summary.json", "*/*/summary.json", "*/*/*/summary.json")
"""A run; one in a folder of runs; a bench's, in BENCH/CELL/RUN."""
_NOT_CLOSED = "the run was not closed"


def rows(out: Path) -> list[dict[str, Any]]:
    """One row a run.

    Raises:
        ConfigError: there is no such folder, or it cannot be listed.
    """
    outside.check_folder(out, "--out")
    # Unlike a path's own, this passes over folders that end while it looks.
    names = [name for each in DEPTHS for name in glob.glob(each, root_dir=out, include_hidden=True)]
    paths = [out / name for name in names]
    # A run's folder begins with the time of its start.
    paths.sort(key=lambda path: (path.parent.name, path.as_posix()), reverse=True)
    return [_row(path) for path in paths if os.path.lexists(path)]


def _row(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"folder": path.parent.as_posix()}
    try:
        summary = summaries.load(path)
    except ConfigError as error:
        return {**row, "status": "unreadable", "reason": str(error)}
    metric = curves.metric(summary)
    points = curves.points(summary, metric)
    best = curves.best(points, metric)
    row |= {name: getattr(summary, name) for name in ("status", "reason", "method", "profile")}
    row |= {"clients": summary.clients, "rounds": summary.rounds_done}
    row |= {"accuracy": best if metric == "accuracy" else None, "metric": metric, "best": best}
    row["minutes"] = points[-1].minutes
    if summary.programs:
        seconds = programs.longest_s(summary)
        row |= {"minutes": None if seconds is None else seconds / 60, "metric": None}
        row["exits"] = programs.exits(summary)
    return {**row, "wire_mb": summary.bytes.wire.both / 1e6}


def table(found: Iterable[dict[str, Any]]) -> Table:
    found = list(found)
    metrics = {row["metric"] for row in found if row.get("best") is not None}
    # Each says its own where they differ.
    one = metrics.pop() if len(metrics) == 1 else None if metrics else "accuracy"
    shown = Table()
    columns = ("folder", "status", "method", "profile", "clients", "rounds")
    for name in (*columns, f"best {words(one)}" if one else "best", "minutes", "wire MB"):
        text = name in ("folder", "status", "method", "profile")
        shown.add_column(name, justify="left" if text else "right", overflow="fold")
    for row in found:
        best, minutes, wire = (row.get(name) for name in ("best", "minutes", "wire_mb"))
        named = "" if one else f"{words(str(row.get('metric')))} "
        own = {**row, "status": _status(row)}
        shown.add_row(
            *("-" if own.get(name) is None else one_line(str(own[name])) for name in columns),
            "-" if best is None else f"{named}{metric(best)}",
            "-" if minutes is None else number(minutes),
            "-" if wire is None else number(wire),
        )
    return shown


def _status(row: dict[str, Any]) -> str:
    if row["status"] == "interrupted" and str(row.get("reason")).startswith(_NOT_CLOSED):
        return "running or killed"
    return str(row["status"])
