"""Comparison of runs: their names, what each took to a target, and who is on the front.

Runs are held against one another where they did the same task: one data set, one network, as many
clients. All of it is from summary.json and config.toml.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rich.table import Table

from testbed import files, metrics, naming, outside
from testbed.config_error import ConfigError
from testbed.metrics import Target, words
from testbed.network.topology import SERVER
from testbed.record.host_summary import HostSummary
from testbed.record.run_summary import Summary
from testbed.report import curves, programs, summaries
from testbed.report.compare import places as setting
from testbed.report.curves import Point
from testbed.report.page.svg import number
from testbed.report.text import counted, one_line, ranges, shortened

MOST_LETTERS = 60
"""Of an option's value in a name, such as a program's command."""
CONDUCT = ("clients_per_round", "deadline_s")
"""Fields of a configuration that say how a method's rounds go, whatever its task."""
TEXTS = ("run", "where")
"""Columns that are no figures."""


class Run(NamedTuple):
    """One of those that are compared."""

    folder: Path
    summary: Summary
    options: dict[str, Any]
    """Of its method, and payload stages, or programs' commands; empty without a config.toml."""
    config: Mapping[str, Any] = MappingProxyType({})
    """The whole of its config.toml, likewise."""


class Row(NamedTuple):
    """The result of a run; None where it never reached the target, or learnt nothing."""

    folder: str
    name: str
    """Method and whatever tells it from the others: options, seed."""
    where: str
    status: str
    points: list[Point]
    front: list[bool]
    """Of each point: no other there is as good in metric, minutes and MB and better in one."""
    best: float | None
    rounds_to_target: int | None
    minutes_to_target: float | None
    wire_mb_to_target: float | None
    minutes_interpolated: float | None = None
    """Minutes, and MB likewise, at which accuracy was the target on a straight line through the
    round that reached it."""
    wire_mb_interpolated: float | None = None
    busiest_mb: float | None = None
    """Payload of the busiest node, sent and received, the server where all bytes pass there."""
    among_clients: bool = False
    """Whether that is a client, as clients speak to one another."""
    metric: str = "accuracy"
    """What its points and its best are of."""
    hosts: Sequence[HostSummary] = ()
    """Where they were several."""

    @property
    def minutes(self) -> float:
        return self.points[-1].minutes

    @property
    def wire_mb(self) -> float:
        return self.points[-1].wire_mb

    @property
    def front_rounds(self) -> list[int]:
        pairs = zip(self.points, self.front, strict=True)
        return [point.round for point, on in pairs if on]


def runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders: of one run each, or of a bench, which holds CELL/RUN.

    Raises:
        ConfigError: a folder holds no run that can be read.
    """
    found: list[Run] = []
    for path in paths:
        if summaries.is_run(path):
            own = [_load(path)]
        else:
            outside.check_folder(path, "RUN")
            summaries.check_open(path)
            own = [_load(each.parent) for each in sorted(path.glob("*/summary.json"))]
            cells = sorted({each.parent.parent for each in path.glob("*/*/summary.json")})
            own += [_last(cell) for cell in cells]
        if not own:
            raise ConfigError(
                f"RUN {path}: holds no summary.json; `cli.py results` lists folders that do"
            )
        known = {run.folder.resolve() for run in found}
        found += [run for run in own if run.folder.resolve() not in known]
    return found


def _last(cell: Path) -> Run:
    """The cell's last run that ended well, as bench takes it; the last of all if none did.

    One that cannot be read counts where there is no other.
    """
    folders = sorted(each.parent for each in cell.glob("*/summary.json"))
    tries: list[Run] = []
    for folder in folders:
        with contextlib.suppress(ConfigError):
            tries.append(_load(folder))
    return max(
        tries or [_load(folders[0])], key=lambda run: (run.summary.status == "ok", run.folder.name)
    )


def _load(folder: Path) -> Run:
    try:
        summary = summaries.load(folder / summaries.NAME)
    except ConfigError as error:
        raise ConfigError(f"RUN {folder}: {summaries.NAME}: {error}") from error
    try:
        text = files.read(folder / files.CONFIG, files.CONFIG_BYTES).decode()
        config = tomllib.loads(text)
    except (OSError, ValueError, RecursionError):
        return Run(folder, summary, {})
    if summary.programs:
        return Run(folder, summary, programs.settings(summary, config))
    options = config.get("options")
    stages = {name: _chain(config.get(name)) for name in ("stage", "stage_down")}
    return Run(folder, summary, (options if isinstance(options, dict) else {}) | stages, config)


def _chain(stages: object) -> str:
    """ "topk:k=0.01+deflate" """
    return "+".join(map(str, stages)) if isinstance(stages, list) and stages else "none"


def parted(found: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Runs of methods, and runs of programs, which have no metric."""
    ran = [run for run in found if run.summary.programs]
    return [run for run in found if not run.summary.programs], ran


def places(found: Sequence[Run]) -> list[str]:
    return setting.told([run.summary for run in found], [run.config for run in found])


def metrics_of(found: Sequence[Run], target: Target | None) -> list[str]:
    """The metric that each run is shown by: the target's, or its own if it has values of that."""
    if target is not None:
        return [target.metric] * len(found)
    own = [curves.metric(run.summary) for run in found]
    learnt = {
        name
        for name, run in zip(own, found, strict=True)
        if curves.best(curves.points(run.summary, name), name) is not None
    }
    return [*learnt] * len(found) if len(learnt) == 1 else own


def aimed(text: str, found: Sequence[Run]) -> Target:
    """The target that ``text`` says, of the runs' own metric where it is a number alone.

    Raises:
        ConfigError: it is none, or the runs have several metrics.
    """
    whole = text
    if "=" not in text:
        own = sorted(set(metrics_of(found, None)))
        if not own:
            raise ConfigError(f"--target {text!r}: programs have no metric; leave it out")
        if len(own) > 1:
            raise ConfigError(
                f"--target {text!r}: the runs are shown by {' and '.join(own)}; write METRIC=VALUE"
            )
        whole = f"{own[0]}={text}"
    try:
        return metrics.target(whole)
    except ValueError as error:
        raise ConfigError(f"--target {text!r}: {error}") from error


def names(found: Sequence[Run]) -> list[str]:
    """A name for each run, no two alike: method, options that differ, seed, and a number."""
    told = [_own_name(run, found) for run in found]
    where = places(found)
    in_place = list(zip(told, where, strict=True))
    again = Counter(in_place)
    seeds = {run.summary.seed for run in found}
    if len(seeds) > 1:
        told = [
            f"{name} seed={run.summary.seed}" if again[place] > 1 else name
            for name, place, run in zip(told, in_place, found, strict=True)
        ]
    count: Counter[tuple[str, str]] = Counter()
    in_place = list(zip(told, where, strict=True))
    total = Counter(in_place)
    shown = []
    for place in in_place:
        count[place] += 1
        shown.append(f"{place[0]} #{count[place]}" if total[place] > 1 else place[0])
    return shown


def _own_name(run: Run, found: Sequence[Run]) -> str:
    peers = [each for each in found if each.summary.method == run.summary.method]
    differ = [
        f"{name}={shortened(str(value), MOST_LETTERS)}"
        for name, value in run.options.items()
        if len({str(each.options.get(name)) for each in peers}) > 1
    ]
    differ += [
        f"{name}={run.config.get(name, 'none')}"
        for name in CONDUCT
        if len({str(each.config.get(name)) for each in found if each.config}) > 1
    ]
    models = naming.short(str(each.summary.model) for each in found)
    if len(models) > 1:
        differ.append(f"model={models[str(run.summary.model)]}")
    if len({each.summary.secure for each in found}) > 1:
        differ.append(f"secure={run.summary.secure or 'none'}")
    return " ".join([str(run.summary.method), *differ])


def compare(found: Sequence[Run], target: Target | None) -> tuple[list[Row], Target | None]:
    """A row for each run, and the target: the given one, or the best that all reached.

    There is none where runs are shown by different metrics.
    """
    by = metrics_of(found, target)
    points = [curves.points(run.summary, name) for run, name in zip(found, by, strict=True)]
    if target is None and len(set(by)) == 1:
        target = curves.common_target(points, by[0])
    fronts: dict[int, list[bool]] = {}
    where = places(found)
    if len(set(by)) > 1:
        where = [f"{place}, by {words(name)}" for place, name in zip(where, by, strict=True)]
    for place in dict.fromkeys(where):
        members = [n for n, own in enumerate(where) if own == place]
        on = curves.front([points[n] for n in members], by[members[0]])
        fronts |= dict(zip(members, on, strict=True))
    rows = []
    for n, (run, name) in enumerate(zip(found, names(found), strict=True)):
        at = None if target is None else curves.reached(points[n], target)
        moment = None if target is None else curves.moment(points[n], target)
        busiest = run.summary.busiest
        minutes_at, mb_at = moment or (None, None)
        rows.append(
            Row(
                run.folder.as_posix(),
                name,
                where[n],
                run.summary.status,
                points[n],
                fronts[n],
                curves.best(points[n], by[n]),
                at and at.round,
                at and at.minutes,
                at and at.wire_mb,
                minutes_at,
                mb_at,
                None if busiest is None else (busiest.sent + busiest.received) / 1e6,
                busiest is not None and busiest.node != SERVER,
                by[n],
                run.summary.hosts,
            )
        )
    return rows, target


def sentence(row: Row, target: Target | None) -> str:
    """The run's result in plain words."""
    rounds = row.points[-1].round
    spent = f"{number(row.minutes)} min with {number(row.wire_mb)} MB"
    if not rounds:
        return f"On {row.where}: {row.name} finished no round ({row.status})."
    if row.best is None or target is None:
        took = f"On {row.where}: {row.name} took {spent} for {counted(rounds, 'round')}"
        metric = words(row.metric)
        if row.best is None:
            return f"{took}; it has no {metric}."
        return f"{took}; its best {metric} was {metrics.metric(row.best)}."
    if row.minutes_to_target is None or row.wire_mb_to_target is None:
        best = metrics.metric(row.best)
        missed = f"did not reach {goal(target)}; its best was {best}, in {spent}"
        return f"On {row.where}: {row.name} {missed}."
    cost = f"{number(row.minutes_to_target)} min with {number(row.wire_mb_to_target)} MB"
    return f"On {row.where}: {row.name} reached {goal(target)} in {cost}."


def goal(target: Target) -> str:
    """ "0.90", "0.925", "perplexity 20" """
    metric, value = target
    if metric != "accuracy":
        return f"{words(metric)} {value:.4g}"
    return f"{value:.2f}" if round(value, 2) == value else f"{value:.4g}"


def common_metric(rows: Sequence[Row]) -> str | None:
    """The metric that all are shown by; None: they have several."""
    own = {row.metric for row in rows}
    return None if len(own) > 1 else own.pop() if own else "accuracy"


def cells(rows: Sequence[Row], target: Target | None) -> list[list[str]]:
    """A head, and a line for each run; where they ran is said if it is not the same of all."""
    aim = "target" if target is None else goal(target)
    metric = common_metric(rows)
    head = ["run", "where", "best" if metric is None else f"best {words(metric)}"]
    head += [f"{what} to {aim}" for what in ("rounds", "minutes", "wire MB")]
    head += ["minutes, interpolated", "wire MB, interpolated"]
    head += ["minutes in all", "wire MB in all", "front rounds"]
    lines = [head, *(_line(row, metric is None, target) for row in rows)]
    if any(row.among_clients for row in rows):
        # Elsewhere the server has all bytes, and its own say nothing new.
        head.append("payload MB of the busiest node")
        for row, line in zip(rows, lines[1:], strict=True):
            line.append("-" if row.busiest_mb is None else number(row.busiest_mb))
    several = len({row.where for row in rows}) > 1
    return lines if several else [[first, *rest] for first, _, *rest in lines]


def _line(row: Row, tell_metric: bool, target: Target | None) -> list[str]:
    named = f"{words(row.metric)} " if tell_metric else ""
    never = "-" if row.best is None or target is None else "never"
    to_target = (row.minutes_to_target, row.wire_mb_to_target)
    moment = (row.minutes_interpolated, row.wire_mb_interpolated)
    return [
        one_line(row.name),
        one_line(row.where),
        "-" if row.best is None else f"{named}{metrics.metric(row.best)}",
        never if row.rounds_to_target is None else str(row.rounds_to_target),
        *(never if value is None else number(value) for value in to_target),
        *("-" if value is None else number(value) for value in moment),
        number(row.minutes),
        number(row.wire_mb),
        "-" if row.best is None else ranges(row.front_rounds),
    ]


def table(rows: Sequence[Row], target: Target | None) -> Table:
    head, *lines = cells(rows, target)
    shown = Table(title=counted(len(rows), "run"), title_justify="left")
    for name in head:
        shown.add_column(name, justify="left" if name in TEXTS else "right")
    for line in lines:
        shown.add_row(*line)
    return shown


def data(rows: Sequence[Row], target: Target | None, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The comparison as data, for scripts."""
    return {
        "target": None if target is None else str(target),
        "target_accuracy": target.value if target and target.metric == "accuracy" else None,
        "notes": list(notes),
        "runs": [
            {
                "folder": row.folder,
                "run": row.name,
                "where": row.where,
                "status": row.status,
                "accuracy": row.best if row.metric == "accuracy" else None,
                "metric": row.metric,
                "best": row.best,
                "minutes": row.minutes,
                "wire_mb": row.wire_mb,
                "rounds_to_target": row.rounds_to_target,
                "minutes_to_target": row.minutes_to_target,
                "wire_mb_to_target": row.wire_mb_to_target,
                "minutes_interpolated": row.minutes_interpolated,
                "wire_mb_interpolated": row.wire_mb_interpolated,
                "front_rounds": row.front_rounds,
                "busiest_mb": row.busiest_mb,
                "sentence": sentence(row, target),
            }
            for row in rows
        ],
    }
