"""Comparison of runs of programs: a row a run and role, and rates in the place of rounds"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table

from testbed.config_error import ConfigError
from testbed.record.events import UpDown
from testbed.record.host_summary import HostSummary
from testbed.record.run_summary import Status
from testbed.report import programs
from testbed.report.compare.comparison import Run, names, places
from testbed.report.page import html, svg
from testbed.report.page.html import Markup, section, tag
from testbed.report.page.svg import Curve, Point, number
from testbed.report.programs import Role
from testbed.report.rates import rates
from testbed.report.read import Reading, read, refusing
from testbed.report.text import counted, one_line

MOST_CURVES = 12
"""Of one network."""
TEXTS = ("run", "where", "who")
"""Columns that are no figures."""


class Ran(NamedTuple):
    """A run of programs among others."""

    folder: str
    name: str
    where: str
    status: Status
    reason: str | None
    seconds: float | None
    """Of the program that ran longest, of those that nobody asked to end."""
    wire: UpDown
    """Bytes of all clients."""
    rounds: int
    """Those that output marked."""
    roles: list[Role]
    rates: list[list[Point]] | None
    """All clients' kB/s by seconds, up and down; None: the record does not say."""
    hosts: Sequence[HostSummary] = ()
    """Where they were several."""


def ran(found: Sequence[Run]) -> list[Ran]:
    """Each of these runs, which are all of programs, with what it came to."""
    return [
        Ran(
            run.folder.as_posix(),
            name,
            where,
            run.summary.status,
            run.summary.reason,
            programs.longest_s(run.summary),
            run.summary.bytes.wire,
            run.summary.rounds_done,
            programs.roles(run.summary),
            _rates(run),
            run.summary.hosts,
        )
        for run, name, where in zip(found, names(found), places(found), strict=True)
    ]


def _rates(run: Run) -> list[list[Point]] | None:
    whole = []
    with contextlib.suppress(ConfigError), refusing("meters"):
        for each in read(run.folder).readings:
            up, down = zip(*each.bytes[1:], strict=True)
            whole.append(Reading(each.t, [(sum(up), sum(down))]))
    return [rates(whole, 0, way) for way in (0, 1)] if len(whole) > 2 else None


def sentence(row: Ran) -> str:
    """The run's result in plain words."""
    where = f"On {row.where}: {row.name}"
    up, down = number(row.wire.up / 1e6), number(row.wire.down / 1e6)
    ends = "; ".join(f"{role.name} {role.exits}" for role in row.roles)
    took = "ended nothing" if row.seconds is None else f"took {number(row.seconds)} s"
    took += f" for {counted(row.rounds, 'round')}" if row.rounds else ""
    text = f"{where} {took}, with {up} MB up and {down} MB down; exit codes: {ends}"
    return f"{text}." if row.status == "ok" else f"{text}; {row.status}: {row.reason}."


HEADS = (
    *("run", "where", "who", "nodes", "exit", "seconds", "CPU, s", "memory, MB"),
    *("sent, MB", "received, MB", "resent"),
)


def cells(rows: Sequence[Ran]) -> list[list[str]]:
    """A head, and a line for each run and role; where they ran is said if it is not the same."""
    lines = [list(HEADS)]
    for row in rows:
        lines += [[one_line(row.name), one_line(row.where), *_line(role)] for role in row.roles]
    several = len({row.where for row in rows}) > 1
    return lines if several else [[first, *rest] for first, _, *rest in lines]


def _line(role: Role) -> list[str]:
    low, high = role.seconds or (None, None)
    seconds = "-" if high is None or low is None else f"{high:.2f}"
    if seconds != "-" and f"{low:.2f}" != seconds:
        seconds = f"{low:.2f} to {seconds}"
    return [
        one_line(role.name),
        str(role.nodes),
        role.exits,
        seconds,
        f"{role.cpu_s:.2f}",
        "-" if role.memory_mb is None else f"{role.memory_mb:.1f}",
        *("-" if size is None else f"{size / 1e6:.3f}" for size in (role.up, role.down)),
        str(role.resent_segments),
    ]


def table(rows: Sequence[Ran]) -> Table:
    head, *lines = cells(rows)
    title = f"{counted(len(rows), 'run')} of programs"
    shown = Table(title=title, title_justify="left")
    for name in head:
        shown.add_column(name, justify="left" if name in TEXTS else "right", overflow="fold")
    for line in lines:
        shown.add_row(*line)
    return shown


def data(rows: Sequence[Ran]) -> list[dict[str, Any]]:
    """The comparison as data, for scripts."""
    return [
        {
            "folder": row.folder,
            "run": row.name,
            "where": row.where,
            "status": row.status,
            "reason": row.reason,
            "seconds": row.seconds,
            "rounds": row.rounds,
            "wire_up_bytes": row.wire.up,
            "wire_down_bytes": row.wire.down,
            "roles": [role_data(role) for role in row.roles],
            "sentence": sentence(row),
        }
        for row in rows
    ]


def role_data(role: Role) -> dict[str, Any]:
    """A role as data."""
    low, high = role.seconds or (None, None)
    return {
        "role": role.name,
        "nodes": role.nodes,
        "command": role.command,
        "exits": role.exits,
        "seconds_min": low,
        "seconds_max": high,
        "cpu_s": role.cpu_s,
        "memory_mb": role.memory_mb,
        "wire_up_bytes": role.up,
        "wire_down_bytes": role.down,
        "resent_segments": role.resent_segments,
    }


def sections(rows: Sequence[Ran]) -> list[Markup]:
    """Parts of a comparison's page: curves of each network, and a table of all."""
    if not rows:
        return []
    styles = {name: n for n, name in enumerate(dict.fromkeys(row.name for row in rows))}
    parts = [
        _place(f"programs-{n}", place, [row for row in rows if row.where == place], styles)
        for n, place in enumerate(dict.fromkeys(row.where for row in rows), start=1)
    ]
    head, *lines = cells(rows)
    caption = (
        "Programs by run and role: seconds are the least and the most that one ran, memory is the "
        "most that one had to itself, bytes are those of all on the wire, and resent are TCP's "
        "segments"
    )
    texts = sum(name in TEXTS for name in head)
    return [*parts, section("programs", "Every program", html.table(caption, head, lines, texts))]


def _place(name: str, place: str, rows: Sequence[Ran], styles: dict[str, int]) -> Markup:
    told = [row for row in rows if row.rates]
    if not told:
        return section(
            name, f"Programs on {place}", tag("p", "They ran too briefly for the meters.")
        )
    plots = []
    for way, word in enumerate(("up", "down")):
        found = [
            Curve(row.name, row.rates[way], styles[row.name])
            for row in told[:MOST_CURVES]
            if row.rates
        ]
        label = f"kB/s {word}"
        most = {curve.name: max(rate for _, rate in curve.points) for curve in found}
        description = "; ".join(f"{name}: at most {number(rate)}" for name, rate in most.items())
        drawn = svg.curves(f"{label}, all clients", description, found, "seconds", label, None)
        plots.append(svg.figure(f"{word} on the wire, all clients together", drawn))
    note = "Seconds are counted from when the links had been checked."
    if len(told) < len(rows):
        note += f" {len(rows) - len(told)} more ran too briefly for the meters."
    if len(told) > MOST_CURVES:
        note += f" These are {MOST_CURVES} of {len(told)} runs; the table has all."
    legend = svg.legend((row.name, styles[row.name]) for row in told[:MOST_CURVES])
    return section(
        name,
        f"Programs on {place}",
        legend,
        tag("div", *plots, class_="plots"),
        tag("p", note, class_="note"),
    )
