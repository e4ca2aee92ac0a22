"""The bench: from flags to a comparison of many runs."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Group

from experiments import (
    accounts,
    assumptions,
    bench_hosts,
    bench_models,
    by_links,
    compare,
    plan,
    program_bench,
    ray_hosts,
    tuning,
)
from experiments import hosts as several
from experiments.plan import INTERRUPTED, Bench, Cell, Outcome
from experiments.progress import Lines, LiveTable
from experiments.runner import claimed, conduct
from experiments.venue import Venue
from testbed import extras, files, outside
from testbed.config_error import ConfigError, in_words, known_or_named
from testbed.exec.config import Request
from testbed.metrics import Target
from testbed.naming import slug
from testbed.network import mix
from testbed.record.events import Verdict
from testbed.report import curves
from testbed.report.compare import claims
from testbed.report.compare.claims import Examined
from testbed.report.terminal import Output
from testbed.run.config import RunConfig, choose, convert
from testbed.transport import congestion, keys

_WORST_FIRST: tuple[Verdict, ...] = ("fail", "skipped", "pass")


def bench(
    preset: str | None,
    methods: tuple[str, ...],
    programs: tuple[str, ...],
    axes: dict[str, Any],
    repeat: int | None,
    run: dict[str, Any],
    out: str | None,
    budget_minutes: float | None,
    output: Output,
    token_file: Path | None = None,
) -> int:
    """Carry out a bench and say what it found; returns the exit status.

    ``programs``: files of ``exec``. ``axes``: what stands in the place of the preset's profiles,
    clients, seeds and so on. ``run``: fields of every run that were given as flags.
    ``token_file``: of the runs' hosts, where they are several.

    Raises:
        ConfigError: refused before anything has started.
    """
    # 1. Everything is checked before the first run starts.
    asked = _asked(preset, methods, programs, axes, repeat, run)
    cells = plan.cells(asked)
    tuning.check(asked)
    trials = tuning.trials(asked)
    read = _checked(cells)
    _check_trials(trials)
    models = bench_models.told(cells)
    asks = program_bench.settings(cells)
    venue = Venue([cell.config for cell in cells], token_file, asks, output.aside)
    named = next(iter([*filter(None, [preset]), *programs]), "own")
    folder = outside.expanded(out or f"results/bench-{slug(Path(named).stem)}")
    # 2. The runs.
    budget_s = None if budget_minutes is None else 60 * budget_minutes
    with contextlib.ExitStack() as owned:
        owned.enter_context(claimed(folder, asked, read))
        owned.callback(venue.close)
        output.result("results", folder)
        before = f"{len(trials)} runs on the validation split, and then " if trials else ""
        output.say(f"{before}{len(cells)} runs")
        live = output.console.is_terminal
        progress = owned.enter_context(LiveTable(output.console)) if live else Lines(output.say)
        settle = functools.partial(tuning.settled, asked)
        everything = list(conduct([*trials, *cells], folder, progress, budget_s, settle, venue))
    # 3. What they found.
    outcomes = everything[len(trials) :]
    of_programs = asked.rows[0].programs is not None
    cases = program_bench.together(outcomes) if of_programs else []
    found = [] if of_programs else _together(asked, outcomes)
    examined = _examined(asked, found)
    left = {o.cell.id: o.reason for o in everything if o.reason is not None}
    result = {
        "title": asked.title,
        "note": asked.note,
        "rows": [_row(asked, each, everything, models) for each in found]
        + program_bench.data(cases),
        "claims": msgspec.to_builtins(examined),
        "without_result": left,
        "hosts": bench_hosts.data(everything),
    }
    text = msgspec.json.format(msgspec.json.encode(result), indent=2)
    whole = True
    try:
        files.write(folder / "comparison.json", text + b"\n")
    except OSError as error:
        whole = False
        output.error(f"no comparison.json: {in_words(error)}")
    if found or cases or output.as_json:
        table = program_bench.table(asked, cases) if cases else compare.table(asked, found)
        more = [by_links.table(found), claims.table(examined) if examined else None]
        more.append(bench_hosts.table(bench_hosts.together(outcomes)))
        output.show(Group(table, *filter(None, more)), result, kept=True)
    for outcome in everything:
        if outcome.reason is not None:
            what = "no result of" if outcome.summary is None else "a failure in"
            output.error(f"{what} {outcome.cell.id}: {outcome.reason}")
    if found or cases:
        whole = _compare(folder, plan.aim(asked), examined, output) and whole
    if INTERRUPTED in left.values():
        return 130
    # What a trial lacks is its point's result: a rate that is too high, say.
    return 0 if whole and all(o.reason is None for o in outcomes) else 1


def _row(
    asked: Bench,
    group: compare.Group,
    outcomes: list[Outcome],
    models: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """A row of comparison.json; ``models``: what it has of each model."""
    setting = (group.where, group.row.name)
    own = next(o.cell for o in outcomes if o.cell.setting == setting and not o.cell.trial)
    row: dict[str, Any] = {"links": group.where, "row": group.row.name}
    row["at"] = {"profile": own.config.profile, "clients": own.config.clients, **own.varied}
    row |= models[own.config.model]
    row |= {"has": assumptions.of(own.config), **group.figures, "spread": group.spread}
    row |= {"certificate": group.certificate, "metric": group.metric}
    if asked.grid:
        tried = msgspec.to_builtins(tuning.tried(asked, own, outcomes))
        row |= {"tuned": group.point, "at_edge": group.at_edge, "tuning": tried}
    return row


def _asked(
    preset: str | None,
    methods: tuple[str, ...],
    programs: tuple[str, ...],
    axes: dict[str, Any],
    repeat: int | None,
    run: dict[str, Any],
) -> Bench:
    if [preset is not None, bool(methods), bool(programs)].count(True) != 1:
        raise ConfigError(
            "bench needs --preset or --methods or --exec, and one alone; presets: "
            f"{', '.join(plan.presets())}, or a .toml file of your own"
        )
    if preset is not None:
        asked = plan.load(preset)
    elif programs:
        asked = plan.checked(Bench(rows=program_bench.rows(programs, run, axes)), "--exec")
    else:
        asked = plan.checked(
            Bench(rows=[plan.row(each) for text in methods for each in mix.listed(text)]),
            "--methods",
        )
    for field in axes["vary"]:
        if field in run:
            raise ConfigError(f"--vary {field} and {field} = {run[field]!r}: leave one out")
    shared = plan.over(asked.run, run)
    changed: dict[str, Any] = {key: value for key, value in axes.items() if value}
    changed["vary"] = asked.vary | axes["vary"]
    if repeat is not None:
        changed["repeat"] = repeat
    whole = {**msgspec.to_builtins(asked), "run": shared, **changed}
    whole["vary"] = {field: own for field, own in whole["vary"].items() if field not in run}
    found = plan.joined(convert(whole, Bench, "the flags"))
    program_bench.check(found)
    return plan.staged(bench_models.located(found))


def _checked(cells: list[Cell]) -> dict[str, str]:
    """Digests of the files that all runs read, and what else their links are by default.

    Raises:
        ConfigError: of the first run that `launch` would refuse.
    """
    read: dict[str, str] = {}
    for cell in cells:
        if cell.row.programs is None:
            read |= _check(cell.config)
    for name, request in program_bench.settings(cells).items():
        read |= _check_programs(name, request)
    return read | {"the congestion control": congestion.default()[0] or "the system's own"}


def _check_trials(trials: list[Cell]) -> None:
    """Raises ConfigError of the first point of the grid that a row's method does not take."""
    # What a seed draws does not matter here.
    for cell in {(*cell.setting, *cell.point.values()): cell for cell in trials}.values():
        try:
            _check(cell.config)
        except ConfigError as error:
            raise ConfigError(f"grid, row {cell.row.name!r}: {error}") from error


def _check(config: RunConfig) -> dict[str, str]:
    """Refusals of `launch`, as far as they can be known without building a network.

    Returns digests of the files that the run's links, data and weights are read from.
    """
    extras.require("bench", "train")
    from experiments import launch as launching
    from nodes.program import FineTuning
    from testbed.network.profiles import load
    from testbed.run import client_links

    several.settled(config, {})
    profiles = client_links.client_links(config)
    if config.hosts not in (None, ray_hosts.AUTO):
        several.placeable(config, len(profiles))
    import methods as known

    choose("method", config.method, known.names())
    if config.congestion is not None:
        congestion.check(config.congestion, config.links)
    client_links.times_away(config, len(profiles))
    keys.asked(config.secure, config.transport)
    program = FineTuning(config, len(profiles))
    # Which ones "auto" takes, each run finds out.
    launching.check_links(config, config.links, peer_to_peer=program.peer_to_peer)
    task = program.task
    server = [] if config.server_profile is None else [load(config.server_profile)]
    read = client_links.files(config, [*profiles, *server])
    data, weights = task.fingerprint(), None
    if config.compute == "real":
        weights = _weights(config.model)
    told = {
        f"data {config.data_path or config.dataset}": data,
        f"weights of {config.model}": weights,
    }
    return read | {name: digest for name, digest in told.items() if digest is not None}


@functools.cache
def _weights(model: str) -> str | None:
    from nodes.workload import models

    return models.fingerprint(model)


def _check_programs(name: str, request: Request) -> dict[str, str]:
    """Refusals of `exec`, likewise."""
    from experiments import exec as executing

    try:
        return executing.check(request)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _together(asked: Bench, outcomes: list[Outcome]) -> list[compare.Group]:
    """Seeds and repeats of a row put together, in the order of the rows."""
    target = plan.aim(asked)
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.cell.setting, []).append(outcome)
    middles: dict[tuple[str, str], compare.Figures] = {}
    alone = assumptions.alone([assumptions.of(group[0].cell.config) for group in groups.values()])
    found = []
    for has, (key, group) in zip(alone, groups.items(), strict=True):
        cell = group[0].cell
        summaries = [o.summary for o in group if o.summary is not None]
        metric = target.metric if target else curves.metric(*summaries)
        runs = [compare.figures(each, target, metric) for each in summaries]
        if runs:
            middles[key], spread = compare.medians(runs)
            own = cell.config.aim
            counted = [accounts.of(each, compare.figures(each, own)) for each in summaries]
            edge = tuning.at_edge(asked, cell.point)
            sums = accounts.medians(counted)
            verdicts = {each.fidelity.verdict for each in summaries}
            worst = next(each for each in _WORST_FIRST if each in verdicts)
            found.append(
                compare.Group(
                    *(key[0], cell.row, middles[key], spread, cell.point, edge, has, sums, worst),
                    metric,
                )
            )
    for each in found:
        baseline = each.row.baseline or asked.baseline
        whole = middles.get((each.where, baseline or ""))
        each.figures.update(compare.shares(each.figures, whole))
    return found


def _examined(asked: Bench, found: list[compare.Group]) -> list[Examined]:
    """Every claim of the rows that have a result."""
    there = {(group.where, group.row.name): group.accounts for group in found}
    return [
        compare.examined(
            group,
            claim,
            there.get((group.where, claim.base or group.row.baseline or asked.baseline or "")),
        )
        for group in found
        for claim in group.row.claims
    ]


def _compare(folder: Path, target: Target | None, examined: list[Examined], output: Output) -> bool:
    """Write the bench's page; whether it is there."""
    from testbed.report.compare import (
        comparability,
        comparison,
        comparison_page,
        program_comparison,
    )

    try:
        found = comparison.runs([folder])
        taught, others = comparison.parted(found)
        rows, reached = comparison.compare(taught, target)
        notes = comparability.notes(found, target)
        ran = program_comparison.ran(others)
        page = comparison_page.write(rows, reached, [folder], None, notes, examined, ran)
    except Exception as error:
        output.error(f"no comparison: {known_or_named(error)}")
        return False
    output.say(f"comparison: {page}")
    return True
