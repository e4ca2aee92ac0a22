"""A bench as data: rows times link profiles times client counts times seeds times repeats."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from experiments import accounts
from testbed import metrics, naming, outside
from testbed.config_error import ConfigError, closest
from testbed.exec.config import ExecConfig
from testbed.record.run_summary import Summary
from testbed.run.config import OptionValue, RunConfig, convert, option_value, renamed

PRESETS = Path(__file__).parent / "presets"
INTERRUPTED = "the bench was interrupted"
MOST_RUNS = 10_000
MARK_DIGITS = 8
_AXES = {
    "profile": "profiles",
    "clients": "clients",
    "seed": "seeds",
    "stage": "stages",
    "options": "grid",
    "eval_on": "grid",
    "target": "run",
    "target_accuracy": "run",
    "method": "rows",
}
"""Fields of a run that a bench varies in another way, or not at all."""
_TARGETS = ("target", "target_accuracy")
Point = dict[str, OptionValue]
"""A point of a grid: a value for each of its options."""
Name = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]{1,120}$")]


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A paper's claim on what a row costs or gains, and the account that examines it."""

    counts: Name
    """What the paper's figure is of: direction, unit, precision, whose."""
    figure: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """None: nobody could verify one."""
    unit: str = ""
    """Such as "x", "GiB" or "%", which the account comes out in too."""
    holds: Literal["about", "at least", "at most"] = "about"
    tolerance: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    """Share of the figure that the run's may miss it by."""
    account: str | None = None
    """The same of a run, as ``experiments.accounts`` has it; None: a run here cannot say."""
    base: str | None = None
    """The row whose figures are ``base.NAME``, where it is not the row's baseline."""
    because: str = ""
    """What a verdict is to say of the circumstances; the reason, where there is no account."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One method with its options, or programs, or whatever else a bench compares."""

    name: Name
    run: dict[str, Any] = {}
    """Fields of a run's configuration, beyond those of all rows."""
    baseline: str | None = None
    """Another row's name, where it is not the bench's."""
    formula_mb: float | None = None
    """Payload of one client, one way, a round, 10^6 bytes, as the method's formula gives it."""
    claims: list[Claim] = []
    """What its paper says."""
    named: dict[str, str] = {}
    """Its method's own names of the grid's options, such as of the rate that is to be tuned."""
    programs: ExecConfig | None = None
    """Instead of a method: programs of ``exec``, and whose they are."""


class Bench(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A bench as its TOML file has it."""

    title: str = "bench"
    note: str = ""
    """What a reader must know to read the table; printed under it."""
    run: dict[str, Any] = {}
    """Fields of a run's configuration that all rows share."""
    presets: list[str] = []
    """Presets, or files, whose rows stand before its own, with what these have in common."""
    rows: list[Row] = []
    baseline: str | None = None
    """The row that others' shares are of."""
    profiles: list[str] = []
    clients: list[int] = []
    vary: dict[str, Annotated[list[OptionValue], msgspec.Meta(min_length=1)]] = {}
    """Values of other fields of a run's configuration, such as device_class."""
    seeds: list[int] = []
    stages: list[str] = []
    """Chains of payload stages, such as "topk:k=0.01+deflate", or "none"; each row has each."""
    repeat: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    grid: dict[str, Annotated[list[OptionValue], msgspec.Meta(min_length=1)]] = {}
    """Values of methods' options that each row is tuned with on the validation split."""
    grid_seeds: list[int] = []
    """By which each row is tuned; by all of ``seeds`` where there are none."""


class Cell(msgspec.Struct, frozen=True):
    """One run of a bench."""

    id: str
    """Its folder in the bench's."""
    row: Row
    config: RunConfig
    point: Point = {}
    """Values of the bench's grid that it has."""
    varied: Point = {}
    """Values of the fields that the bench varies."""
    words: tuple[str, ...] = ()
    """The same as tables have them: of a folder's path no more than tells it from the others."""
    trial_of: str = ""
    """Of one on the validation split: ``where`` the runs are that it finds a point for."""

    @property
    def trial(self) -> bool:
        """Whether it is on the validation split, to find a point for its row."""
        return bool(self.trial_of)

    @property
    def where(self) -> str:
        """Profile, clients and what else the bench varies."""
        if self.trial_of:
            return self.trial_of
        clients = f", {self.config.clients} clients" if self.config.clients else ""
        others = "".join(f", {value}" for value in self.words)
        return f"{self.config.profile or self.config.positions or '4g'}{clients}{others}"

    @property
    def setting(self) -> tuple[str, str]:
        """Network and row: the same of runs that differ in nothing but seed and repeat."""
        return self.where, self.row.name


class Outcome(NamedTuple):
    """The outcome of a cell."""

    cell: Cell
    summary: Summary | None
    """None: it did not run, or left nothing to read."""
    reason: str | None
    """Why it did not end well; figures there may be of programs alone, of which one failed."""
    earlier: bool = False
    """An earlier bench made it."""
    stopped: bool = False
    """A signal has ended the bench in it or before it."""


def presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load(name: str) -> Bench:
    """A preset by its name, or a file by its path.

    Raises:
        ConfigError: naming the file, the field and what would be right.
    """
    path = PRESETS / f"{name}.toml" if name in presets() else outside.expanded(name)
    if not path.suffix and not outside.exists(path):
        near = closest(name, presets()) or "."
        raise ConfigError(f"unknown preset {name!r}{near} Known: {', '.join(presets())}.")
    return checked(convert(outside.toml(path, "preset"), Bench, str(path)), str(path))


def checked(bench: Bench, where: str) -> Bench:
    """The same bench; ConfigError where its rows do not fit together."""
    if not bench.rows and not bench.presets:
        raise ConfigError(f"{where}: rows = []: give at least one, or presets to take them from")
    names = [row.name for row in bench.rows]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: two rows are called {name!r}; give each its own name")
    claims = [(row.name, claim) for row in bench.rows for claim in row.claims]
    bases = [claim.base for _, claim in claims]
    for wanted in (bench.baseline, *(row.baseline for row in bench.rows), *bases):
        # Rows of its presets are there once they are joined.
        if wanted is not None and wanted not in names and not bench.presets:
            raise ConfigError(f"{where}: baseline = {wanted!r}: must be one of {', '.join(names)}")
    for row, claim in claims:
        _check_claim(claim, f"{where}: row {row!r}: claim {claim.counts!r}")
    return bench


def _check_claim(claim: Claim, where: str) -> None:
    if claim.account is None:
        if not claim.because:
            raise ConfigError(f"{where}: give an account, or say in because why a run has none")
        return
    if claim.figure is None or claim.tolerance is None:
        raise ConfigError(f"{where}: an account needs the paper's figure and a tolerance")
    accounts.check(claim.account, where)


def joined(bench: Bench) -> Bench:
    """The same bench with the rows of its presets, as theirs but for what all rows of it share.

    Raises:
        ConfigError: a preset is unknown, has more settings than one, or a row that another has.
    """
    rows = [row for name in bench.presets for row in _rows_of(name, bench)]
    whole = msgspec.structs.replace(bench, presets=[], rows=[*rows, *bench.rows])
    return checked(whole, f"presets = {bench.presets}") if bench.presets else bench


def _rows_of(name: str, bench: Bench) -> Iterator[Row]:
    found = load(name)
    several = [own for own in ("profiles", "clients") if len(getattr(found, own)) > 1]
    several += [
        own
        for own in ("presets", "vary", "seeds", "stages", "grid", "grid_seeds")
        if getattr(found, own)
    ]
    if several or found.repeat > 1:
        wrong = (several or ["repeat"])[0]
        raise ConfigError(
            f"presets: {name!r} has {wrong} = {getattr(found, wrong)!r}: a bench that is a part of "
            "another has one setting; leave that to the other"
        )
    common = over(found.run, bench.run)
    for axis, own in (("profile", found.profiles), ("clients", found.clients)):
        common = ({axis: own[0]} if own else {}) | common
    for row in found.rows:
        base = row.baseline or found.baseline
        yield msgspec.structs.replace(row, run=over(common, row.run), baseline=base)


def over(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A run's fields: those of ``own``, and of ``common`` what it lacks; of options likewise."""
    if own.keys() & set(_TARGETS):
        common = {name: value for name, value in common.items() if name not in _TARGETS}
    values = {**common, **own}
    for each in (common, own):
        if not isinstance(each.get("options", {}), dict):
            raise ConfigError("options must be a table")
    if "options" in values:
        values["options"] = {**common.get("options", {}), **own.get("options", {})}
    return values


def aim(bench: Bench) -> metrics.Target | None:
    """The target that its rows are compared at."""
    text = renamed(bench.run, "all rows").get("target")
    if text is None:
        return None
    try:
        return metrics.target(str(text))
    except ValueError as error:
        raise ConfigError(f"all rows: target = {text!r}: {error}") from error


def staged(bench: Bench) -> Bench:
    """The same bench with a row for each of its rows and chains of stages.

    Raises:
        ConfigError: a chain is no text, or twice there.
    """
    chains = [chain.strip() for chain in bench.stages]
    for chain in chains:
        if not chain or chains.count(chain) > 1:
            raise ConfigError(f"stages = {bench.stages}: give each chain once, or none")
    if not chains:
        return bench
    for row in bench.rows:
        if (own := over(bench.run, row.run).get("stage")) is not None:
            raise ConfigError(
                f"row {row.name!r}: stage = {own!r}, and stages = {bench.stages} gives every row "
                "its chains; leave one out"
            )
    rows = [_with(row, chain) for row in bench.rows for chain in chains]
    own = "none" if "none" in chains else chains[0]
    base = None if bench.baseline is None else _named(bench.baseline, own)
    return msgspec.structs.replace(bench, rows=rows, baseline=base, stages=[])


def _with(row: Row, chain: str) -> Row:
    stage = [] if chain == "none" else chain.split("+")
    # A formula, and a paper's claims, are of what goes over the wire as it is.
    more: dict[str, Any] = {} if chain == "none" else {"formula_mb": None, "claims": []}
    base = row.baseline if row.baseline is None or chain == "none" else None
    run = {**row.run, "stage": stage}
    return msgspec.structs.replace(
        row, name=_named(row.name, chain), run=run, baseline=base, **more
    )


def _named(row: str, chain: str) -> str:
    return row if chain == "none" else f"{row} {chain}"


def cells(bench: Bench) -> list[Cell]:
    """Every run, in the order in which they are made: seed after seed, so that an early end leaves
    whole comparisons.

    Raises:
        ConfigError: a field of a run is wrong, or there are too many runs.
    """
    _check_axes(bench)
    varied = itertools.product(*bench.vary.values())
    axes: tuple[Sequence[Any], ...] = (
        range(bench.repeat),
        bench.seeds or [None],
        bench.clients or [None],
        [dict(zip(bench.vary, values, strict=True)) for values in varied],
        bench.profiles or [None],
        bench.rows,
    )
    count = math.prod(len(axis) for axis in axes)
    if bench.grid:
        tuned = math.prod(len(values) for values in bench.grid.values())
        count += tuned * count // bench.repeat
    if count > MOST_RUNS:
        raise ConfigError(f"these are {count} runs, at most {MOST_RUNS} are possible; take fewer")
    return _told_apart([_cell(bench, *chosen) for chosen in itertools.product(*axes)])


def _check_axes(bench: Bench) -> None:
    """Raises ConfigError where an axis has a value twice, or a field has two."""
    axes = {name: getattr(bench, name) for name in ("profiles", "clients", "seeds", "grid_seeds")}
    for name, values in (axes | {f"vary {name}": own for name, own in bench.vary.items()}).items():
        if again := [value for place, value in enumerate(values) if value in values[:place]]:
            raise ConfigError(f"{name}: {again[0]!r} is there twice; leave one out")
    for field in bench.vary:
        if field in _AXES:
            raise ConfigError(f"vary: {field} has an option of its own: {_AXES[field]}")
        for row in bench.rows:
            if row.programs is None and field in row.run:
                raise ConfigError(f"vary: row {row.name!r} has a {field} of its own; leave one out")


def _cell(
    bench: Bench,
    repeat: int,
    seed: int | None,
    clients: int | None,
    varied: Point,
    profile: str | None,
    row: Row,
) -> Cell:
    where = f"row {row.name!r}"
    try:
        values = over(bench.run, row.run)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    axis = {"profile": profile, "clients": clients, "seed": seed, **varied}
    values |= {field: value for field, value in axis.items() if value is not None}
    if "out" in values:
        raise ConfigError(f"{where}: out = {values['out']!r}: all runs stand in the bench's --out")
    config = convert(renamed(values, where), RunConfig, where)
    short = naming.short(str(value) for values in bench.vary.values() for value in values)
    words = tuple(short[str(value)] for value in varied.values())
    parts = [row.name, config.profile, f"{config.clients}c" if config.clients else None, *words]
    drawn = None if row.programs else f"seed{config.seed}"
    parts += [drawn, f"run{repeat + 1}" if bench.repeat > 1 else None]
    return Cell("-".join(filter(None, parts)), row, config, varied=varied, words=words)


def folder(text: str) -> str:
    """``text`` as a part of a folder's name, which no other text is."""
    name = naming.slug(text)
    return name if name == text else f"{name}@{naming.mark(text, MARK_DIGITS)}"


def _told_apart(cells: list[Cell]) -> list[Cell]:
    """The same with names that are folders', of which no two are alike even without case."""
    folders = [naming.slug(cell.id) for cell in cells]
    counts = Counter(folder.casefold() for folder in folders)
    ids = Counter(cell.id for cell in cells)
    for place, (cell, name) in enumerate(zip(cells, folders, strict=True)):
        if name != cell.id or counts[name.casefold()] > 1:
            # A hyphen parts a name from the next, or is in one.
            whole = cell.id if ids[cell.id] == 1 else [cell.id, *cell.setting]
            folders[place] = f"{name}@{naming.mark(whole, MARK_DIGITS)}"
    return [msgspec.structs.replace(c, id=name) for c, name in zip(cells, folders, strict=True)]


def row(text: str) -> Row:
    """A row from a flag: "fedpeft:variant=bias:rank=4" is a method and its options.

    Raises:
        ConfigError: an option without a value.
    """
    method, *options = text.split(":")
    found: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ConfigError(f"--methods {text!r}: write METHOD:OPTION=VALUE, not {option!r}")
        found[key] = option_value(value)
    name = " ".join((method, *options))
    return convert({"name": name, "run": {"method": method, "options": found}}, Row, "--methods")
