"""Bench of programs: rows from files of `exec`, and what each took: exit codes, seconds, bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from rich.table import Table

from experiments import compare
from experiments.compare import Figures, Spread
from experiments.plan import Bench, Cell, Outcome, Row
from testbed import outside
from testbed.config_error import ConfigError
from testbed.exec import config as configuration
from testbed.exec.config import OF_HOSTS, OF_LINKS, Request
from testbed.network.topology import client_name
from testbed.record.run_summary import Summary
from testbed.report import programs
from testbed.report.compare import program_comparison
from testbed.report.text import one_line
from testbed.run.config import DEFAULT_CLIENTS, RunConfig

FIELDS = (*(name for name in OF_LINKS if name not in ("dilation", "out")), *OF_HOSTS)
"""Fields of a run that one of programs may have in a bench."""


def rows(files: Sequence[str], run: Mapping[str, Any], axes: Mapping[str, Any]) -> list[Row]:
    """A row a file of ``exec``, called as the file; ``run``: fields by flags, which win.

    Raises:
        ConfigError: of a file, or of what flags and axes ask that programs do not have.
    """
    found = []
    for text in files:
        path = outside.expanded(text)
        links, own = configuration.load(path, {}, "--exec")
        values = {
            name: value
            for name, value in msgspec.to_builtins(links).items()
            if name in FIELDS and value != getattr(RunConfig(), name)
        }
        if axes["profiles"]:
            values.pop("positions", None)
        found.append(Row(path.stem, {**values, **run}, programs=own))
    return found


def check(bench: Bench) -> None:
    """Raises ConfigError where a bench of programs asks for what only methods have."""
    kinds = {row.programs is None for row in bench.rows}
    if len(kinds) > 1:
        raise ConfigError(
            "rows of methods and of programs have no table in common; make a bench of each, and "
            "hold both against one another by `cli.py compare`"
        )
    if True in kinds:
        return
    for axis, instead in (
        ("seeds", "programs draw nothing from a seed of a run; take --repeat"),
        *((name, "is of methods") for name in ("stages", "grid", "grid_seeds")),
    ):
        if getattr(bench, axis):
            raise ConfigError(f"{axis} = {getattr(bench, axis)!r}: {instead}")
    known = ", ".join(FIELDS)
    for where, values in (
        *((f"row {row.name!r}", {**bench.run, **row.run}) for row in bench.rows),
        ("vary", bench.vary),
    ):
        for name in values:
            if name not in FIELDS:
                raise ConfigError(f"{where}: {name}: programs have none; what they have: {known}")
    for row in bench.rows if bench.profiles else ():
        run = {**bench.run, **row.run}
        for count in bench.clients or [run.get("clients") or DEFAULT_CLIENTS]:
            names = [client_name(number) for number in range(1, count + 1)]
            if row.programs and 0 < count == len(configuration.profiles_of(row.programs, names)):
                raise ConfigError(
                    f"row {row.name!r}: profiles change nothing with {count} clients, for each has "
                    "one of its own table [nodes.…]; leave these out, or the bench's"
                )


def request(cell: Cell) -> Request:
    """The run of programs that a cell is."""
    assert cell.row.programs is not None
    return Request(cell.config, cell.row.programs)


def settings(cells: Iterable[Cell]) -> dict[str, Request]:
    """Runs of programs that differ in more than their repeat, by what each is called."""
    of_programs = [cell for cell in cells if cell.row.programs is not None]
    return {f"{cell.row.name}, {cell.where}": request(cell) for cell in of_programs}


class Case(NamedTuple):
    """Runs that differ in nothing but their repeat."""

    cell: Cell
    runs: list[Summary]
    figures: Figures
    """Medians."""
    spread: Spread


def together(outcomes: Iterable[Outcome]) -> list[Case]:
    """Repeats of a row put together, in the order of the rows; those of which nothing ran aside."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.summary is not None:
            groups.setdefault(outcome.cell.setting, []).append(outcome)
    found = []
    for group in groups.values():
        runs = [each.summary for each in group if each.summary is not None]
        middle, spread = compare.medians(map(_figures, runs))
        middle["runs_failed"] = sum(each.reason is not None for each in group)
        found.append(Case(group[0].cell, runs, middle, spread))
    return found


def _figures(summary: Summary) -> Figures:
    wire = summary.bytes.wire
    return {
        "seconds": programs.longest_s(summary),
        "up_mb": wire.up / 1e6,
        "down_mb": wire.down / 1e6,
        "wire_mb": wire.both / 1e6,
        "resent_segments": programs.resent_segments(summary),
    }


def _exits(case: Case) -> str:
    """Exit codes by role; those of several runs where they differ."""
    return " | ".join(dict.fromkeys(map(programs.exits, case.runs)))


def _certificate(case: Case) -> str:
    verdicts = {each.fidelity.verdict for each in case.runs}
    return next(each for each in ("fail", "skipped", "pass") if each in verdicts)


def data(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """Rows of comparison.json; ``roles`` has a list for each run."""
    return [
        {
            "links": case.cell.where,
            "row": case.cell.row.name,
            "at": {
                "profile": case.cell.config.profile,
                "clients": case.cell.config.clients,
                **case.cell.varied,
            },
            "exits": _exits(case),
            **case.figures,
            "spread": case.spread,
            "certificate": _certificate(case),
            "roles": [
                [program_comparison.role_data(role) for role in programs.roles(each)]
                for each in case.runs
            ],
        }
        for case in cases
    ]


_COLUMNS = (
    ("seconds", "seconds", "{:.2f}"),
    ("clients sent, MB", "up_mb", "{:.3f}"),
    ("clients received, MB", "down_mb", "{:.3f}"),
    ("wire MB", "wire_mb", "{:.3f}"),
    ("resent", "resent_segments", "{:g}"),
)


def table(bench: Bench, cases: Sequence[Case]) -> Table:
    """A row a case: medians, with (least to greatest) of several runs."""
    shown = Table(title=one_line(bench.title), title_justify="left", caption=bench.note or None)
    shown.caption_justify = "left"
    heads = ["links", "", "runs", "exit codes", *(head for head, *_ in _COLUMNS), "certificate"]
    lines = [
        [
            one_line(case.cell.where),
            one_line(case.cell.row.name),
            compare.text(case, "runs", "{:g}"),
            _exits(case),
            *(compare.text(case, name, form) for _, name, form in _COLUMNS),
            _certificate(case),
        ]
        for case in cases
    ]
    for head in heads:
        words = head in ("links", "", "exit codes", "certificate")
        shown.add_column(head, justify="left" if words else "right", overflow="fold")
    for line in lines:
        shown.add_row(*line)
    return shown
