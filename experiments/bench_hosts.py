"""Hosts of a bench's runs, where they were several, and the network between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from rich.table import Table

from experiments import compare
from experiments.compare import Figures, Spread
from experiments.plan import Outcome
from testbed.record.host_summary import HostSummary
from testbed.report.text import one_line

_COLUMNS = (
    ("runs", "runs", "{:g}"),
    ("nodes", "nodes", "{:g}"),
    ("cores", "cores", "{:g}"),
    ("cores at work", "busy_cores", "{:.2f}"),
    ("RTT, ms", "rtt_ms", "{:.2f}"),
    ("to it, Mbit/s", "to_mbit", "{:.0f}"),
    ("from it, Mbit/s", "from_mbit", "{:.0f}"),
    ("frames from others", "frames", "{:g}"),
    ("late", "late_frames", "{:g}"),
)


class Host(NamedTuple):
    """One of them, in all runs that had it."""

    name: str
    address: str
    figures: Figures
    """Medians."""
    spread: Spread


def together(outcomes: Iterable[Outcome]) -> list[Host]:
    """A host each, in the order of their names."""
    rows: dict[tuple[str, str], list[Figures]] = {}
    for outcome in outcomes:
        for row in outcome.summary.hosts if outcome.summary else ():
            rows.setdefault((row.name, row.address), []).append(_figures(row))
    return [Host(*key, *compare.medians(found)) for key, found in sorted(rows.items())]


def _figures(row: HostSummary) -> Figures:
    def mbit(kbit: float | None) -> float | None:
        return None if kbit is None else kbit / 1000

    return {
        "nodes": row.nodes,
        "cores": row.cores,
        "busy_cores": row.busy_cores,
        "rtt_ms": row.rtt_ms,
        "to_mbit": mbit(row.rate_to_kbit),
        "from_mbit": mbit(row.rate_from_kbit),
        "frames": row.frames,
        "late_frames": row.late_frames,
    }


def data(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Hosts of each run that had several, by its folder, for comparison.json."""
    return {
        outcome.cell.id: msgspec.to_builtins(outcome.summary.hosts)
        for outcome in outcomes
        if outcome.summary is not None and outcome.summary.hosts
    }


def table(found: Sequence[Host]) -> Table | None:
    """A row a host: medians, with (least to greatest) of several runs; None where there was one."""
    if not found:
        return None
    caption = "RTT and rates are of the network between a host and the driver's own, the first"
    shown = Table(title="the hosts", title_justify="left", caption=caption)
    shown.caption_justify = "left"
    shown.add_column("host", overflow="fold")
    for head, *_ in _COLUMNS:
        shown.add_column(head, justify="right", overflow="fold")
    for host in found:
        cells = [compare.text(host, name, form) for _, name, form in _COLUMNS]
        shown.add_row(one_line(f"{host.name} {host.address}"), *cells)
    return shown
