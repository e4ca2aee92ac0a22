"""Tuning of a bench's rows on the validation split: one grid for all, a choice for each."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

import msgspec

import methods
from experiments import compare, plan
from experiments.plan import Bench, Cell, Outcome, Point
from experiments.runner import TUNING
from testbed.config_error import ConfigError
from testbed.metrics import sign
from testbed.report import curves
from testbed.run.config import RunConfig

GIVEN_UP_AFTER = 2
"""Times as many rounds as the fastest value took."""
_QUICK = {
    **{"profile": "ethernet", "server_profile": None, "links": "loopback", "dilation": 1.0},
    **{"device_class": None, "server_device_class": None, "secure": False, "strict": False},
    **{"congestion": None, "pcap": False},
}
"""What makes a run over of which only rounds and metrics are asked."""
_CARRIED = ("profile", "server_profile", "links", "dilation")
"""Of that, what decides whether hosts can carry it."""


class Tried(msgspec.Struct, frozen=True):
    """The result of a point of the grid on the validation split, over the seeds."""

    options: Point
    runs: int
    """Those that have a result."""
    reached: int
    """Those of them that reached the target; without one, those that have a metric."""
    rounds: float | None
    """Median of the rounds to the target, interpolated; None: some run never reached it."""
    best: float | None
    """Median of the best after any round."""
    metric: str = "accuracy"
    """What that is of."""


def points(bench: Bench) -> list[Point]:
    """Every combination of the grid's values; none without a grid."""
    if not bench.grid:
        return []
    return [
        dict(zip(bench.grid, values, strict=True))
        for values in itertools.product(*bench.grid.values())
    ]


def check(bench: Bench) -> None:
    """Raises ConfigError where the grid does not fit the rows, whatever their methods are."""
    if bench.grid_seeds and not bench.grid:
        raise ConfigError(f"grid_seeds = {bench.grid_seeds}: there is no grid to tune rows by")
    for option, values in bench.grid.items():
        if again := [value for place, value in enumerate(values) if value in values[:place]]:
            raise ConfigError(f"grid {option}: {again[0]!r} is there twice; leave one out")
    none: dict[str, str] = {}
    every = [("all rows", bench.run, none)]
    every += [(f"row {row.name!r}", row.run, row.named) for row in bench.rows]
    for whose, run, named in every:
        options = [named.get(option, option) for option in bench.grid]
        fixed = [option for option in options if option in run.get("options", {})]
        if fixed:
            raise ConfigError(
                f"{whose}: {fixed[0]} = {run['options'][fixed[0]]!r} is what the grid is to find; "
                "leave it out, or take it out of the grid"
            )
        if bench.grid and "eval_on" in run:
            raise ConfigError(
                f"{whose}: eval_on = {run['eval_on']!r}: with a grid rows are tuned on the "
                "validation split and then run on the test split; leave it out"
            )


def trials(bench: Bench) -> list[Cell]:
    """The runs on the validation split: each row's, of every point, by all its seeds."""
    once = msgspec.structs.replace(bench, repeat=1, seeds=bench.grid_seeds or bench.seeds)
    return [
        _at(cell, point, trial=True)
        for cell in (plan.cells(once) if bench.grid else [])
        for point in points(bench)
    ]


def settled(bench: Bench, cell: Cell, outcomes: Sequence[Outcome]) -> Cell | str:
    """The cell with the values that its row does best with, or why there are none.

    A trial is given up on after twice the rounds that another value took with its seed.

    ``outcomes``: among others, of its row's trials; of all of them, unless it is one itself.
    """
    if not bench.grid:
        return cell
    if cell.trial:
        return _bounded(bench, cell, outcomes)
    best = choice(tried(bench, cell, outcomes))
    return "no run of its tuning has a result" if best is None else _at(cell, best.options)


def _bounded(bench: Bench, cell: Cell, outcomes: Sequence[Outcome]) -> Cell:
    target = plan.aim(bench)
    there = [
        compare.figures(o.summary, target)["rounds_to_target"]
        for o in outcomes
        if o.cell.trial
        and o.cell.setting == cell.setting
        and o.cell.config.seed == cell.config.seed
        and o.summary is not None
    ]
    fewest = min((rounds for rounds in there if rounds is not None), default=None)
    if target is None or fewest is None:
        return cell
    rounds = min(cell.config.rounds, GIVEN_UP_AFTER * int(fewest))
    return msgspec.structs.replace(cell, config=msgspec.structs.replace(cell.config, rounds=rounds))


def tried(bench: Bench, cell: Cell, outcomes: Sequence[Outcome]) -> list[Tried]:
    """Each point's result, in the grid's order; empty without a grid."""
    target = plan.aim(bench)
    own = [o for o in outcomes if o.cell.trial and o.cell.setting == cell.setting]
    found = []
    for point in points(bench):
        there = [o.summary for o in own if o.cell.point == point]
        summaries = [each for each in there if each is not None]
        metric = target.metric if target else curves.metric(*summaries)
        runs = [compare.figures(each, target, metric) for each in summaries]
        found.append(_tried(point, runs, len(there), target is not None, metric))
    return found


def _tried(
    point: Point, runs: list[compare.Figures], asked: int, aimed: bool, metric: str
) -> Tried:
    best = [own for each in runs if (own := each[metric]) is not None]
    rounds: list[float] = []
    for each in runs if aimed else []:
        whole, moment = each["rounds_to_target"], each["rounds_interpolated"]
        if whole is not None:
            # A model that nobody has evaluated before the first round has no moment within it.
            rounds.append(whole if moment is None else moment)
    return Tried(
        point,
        len(runs),
        len(rounds) if aimed else len(best),
        statistics.median(rounds) if rounds and len(rounds) == asked else None,
        statistics.median(best) if best else None,
        metric,
    )


def choice(found: Sequence[Tried]) -> Tried | None:
    """The point that reaches the target by most seeds, then in the fewest rounds, then the best.

    Among equals the first. None where no run has a result.
    """
    there = [each for each in found if each.runs]
    if not there:
        return None
    return min(
        there,
        key=lambda each: (
            -each.reached,
            float("inf") if each.rounds is None else each.rounds,
            float("inf") if each.best is None else -sign(each.metric) * each.best,
        ),
    )


def at_edge(bench: Bench, point: Point) -> list[str]:
    """Options whose value is the least or greatest of the grid: one beyond it may be better."""
    found = []
    for option, value in point.items():
        values = bench.grid[option]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(values) > 1 and value in (min(numbers), max(numbers)):
            found.append(option)
    return found


def _is_timeless(config: RunConfig) -> bool:
    """Whether a run's models are the same over any links."""
    by_time = (config.deadline_s, config.availability, config.schedule, config.positions)
    return (
        all(each is None for each in by_time)
        and config.compute == "real"
        and not methods.load(config.method).asynchronous
    )


def _quick(config: RunConfig) -> RunConfig:
    """The run over links as fast as there are that its clients can speak to one another over.

    On several hosts they are its own, since it has more clients than this machine has room for, and
    nobody knows yet which faster ones the hosts' network would carry.
    """
    among_clients = methods.load(config.method).peer_to_peer or config.transport == "gloo"
    kept = _CARRIED if config.hosts is not None else ("links",) if among_clients else ()
    quick = {name: value for name, value in _QUICK.items() if name not in kept}
    return msgspec.structs.replace(config, **quick)


def _at(cell: Cell, point: Point, *, trial: bool = False) -> Cell:
    own = {cell.row.named.get(option, option): value for option, value in point.items()}
    config = msgspec.structs.replace(
        cell.config,
        options=cell.config.options | own,
        eval_on="validation" if trial else "test",
    )
    if trial and _is_timeless(config):
        config = _quick(config)
    id_ = f"{cell.id}-{plan.folder('-'.join(f'{name}={value}' for name, value in point.items()))}"
    found = msgspec.structs.replace(cell, id=id_, config=config, point=point)
    if not trial:
        return found
    return msgspec.structs.replace(found, id=f"{TUNING}/{id_}", trial_of=cell.where)
