"""Section of a comparison on the hosts of its runs: a row for each run that had several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from testbed.record.events import known
from testbed.record.host_summary import HostSummary
from testbed.report.page import svg
from testbed.report.page.html import Markup, section, table, tag
from testbed.report.text import one_line

MOST_TROUBLES = 20
_HEAD = (
    *("run", "where", "hosts", "nodes", "cores", "at work", "RTT, ms", "Mbit/s"),
    *("drift, ms", "known to, ms", "frames", "late", "p99, ms late"),
)
TEXTS = ("run", "where")
"""Columns that are no figures."""


class Row(Protocol):
    """A run that is compared."""

    @property
    def name(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def hosts(self) -> Sequence[HostSummary]: ...


def sections(rows: Sequence[Row]) -> list[Markup]:
    """Nothing where each run had one host."""
    several = [row for row in rows if row.hosts]
    if not several:
        return []
    text = (
        "Of each run's hosts the worst: the longest round trip and the least rate between one and "
        "the driver's own, as measured before the run; the most that a clock drifted, and is known "
        "to; and the latest that one packet of a hundred left its link. Cores, those of them at "
        "work, and frames from other hosts are those of all."
    )
    if len(several) < len(rows):
        text += f" {len(rows) - len(several)} of {len(rows)} runs had one host."
    troubles = [tag("p", each, class_="bad") for row in several for each in _troubles(row)]
    if len(troubles) > MOST_TROUBLES:
        more = f"{len(troubles) - MOST_TROUBLES} more are in the runs' own reports."
        troubles[MOST_TROUBLES:] = [tag("p", more, class_="bad")]
    head, lines = list(_HEAD), [_cells(row) for row in several]
    if len({row.where for row in rows}) == 1:
        head, lines = [head[0], *head[2:]], [[line[0], *line[2:]] for line in lines]
    found = table("Runs on several hosts", head, lines, sum(name in TEXTS for name in head))
    return [section("hosts", "Hosts of the runs", tag("p", text), *troubles, found)]


def _troubles(row: Row) -> list[str]:
    found = []
    for host in row.hosts:
        if host.gone is not None:
            found.append(f"host {host.name} was gone before the run was over: {host.gone}")
        if others := known(host.cut_from):
            found.append(f"from some moment on host {host.name} did not reach {', '.join(others)}")
    return [f"{row.name}, on {row.where}: {text}." for text in found]


def _cells(row: Row) -> list[object]:
    hosts, busy = row.hosts, [host.busy_cores for host in row.hosts]
    rates = [rate for host in hosts for rate in (host.rate_to_kbit, host.rate_from_kbit)]
    return [
        *(one_line(row.name), one_line(row.where)),
        *(len(hosts), sum(host.nodes for host in hosts), sum(host.cores for host in hosts)),
        "-" if None in busy else svg.number(math.fsum(map(float, filter(None, busy)))),
        _of(max, (host.rtt_ms for host in hosts)),
        _of(min, (None if rate is None else rate / 1000 for rate in rates)),
        _of(max, (host.clock_drifted_ms for host in hosts)),
        _of(max, (host.clock_error_ms for host in hosts)),
        *(sum(host.frames for host in hosts), sum(host.late_frames for host in hosts)),
        _of(max, (host.links_late_ms for host in hosts)),
    ]


def _of(which: Callable[[list[float]], float], figures: Iterable[float | None]) -> str:
    """That of those which are known."""
    told = [figure for figure in figures if figure is not None]
    return svg.number(which(told)) if told else "-"
