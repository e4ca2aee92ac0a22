"""`cli.py bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from experiments.commands import options as common
from testbed.config_error import ConfigError
from testbed.network import mix
from testbed.report import terminal
from testbed.run.config import option_value
from testbed.units import MOST_DIGITS, whole

MOST_MINUTES = 1e6
"""Of a bench's budget: two years."""


def _list(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> list[Any]:
    """ "0,1" and "2" to a list, numbers where the option is of numbers."""
    found: list[Any] = []
    for value in given:
        pieces = mix.listed(value)
        if not pieces:
            raise ConfigError(f"{option.opts[0]} {value!r}: has no value; leave it out")
        if option.metavar == "N,...":
            for piece in pieces:
                if (number := whole(piece)) is None:
                    raise ConfigError(
                        f"{option.opts[0]} {value!r}: {piece!r} is no whole number of at most "
                        f"{MOST_DIGITS} digits"
                    )
                found.append(number)
        else:
            found += pieces
    return found


def _stages(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> list[str]:
    """ "int8,topk:k=0.1,feedback=true" to ["int8", "topk:k=0.1,feedback=true"]."""
    found: list[str] = []
    for piece in _list(context, option, given):
        # An option of the stage before it, which a comma stands before too.
        if "=" in piece and ":" not in piece and found:
            found[-1] += f",{piece}"
        else:
            found.append(piece)
    return found


def _grid(
    context: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> dict[str, list[Any]]:
    """``learning_rate=0.001,0.01`` to {"learning_rate": [0.001, 0.01]}."""
    found: dict[str, list[Any]] = {}
    for text in given:
        flag = f"--{option.name} {text!r}"
        name, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise ConfigError(f"{flag}: write OPTION=VALUE,VALUE,...")
        if name in found:
            raise ConfigError(f"{flag}: {name} has values already; give all of them once")
        pieces = mix.split(values)
        if "" in pieces:
            raise ConfigError(
                f"{flag}: a value is missing; write OPTION=VALUE,VALUE,..., such as "
                f"{name}=0.001,0.01"
            )
        found[name] = [option_value(piece) for piece in pieces]
        if None in found[name]:
            raise ConfigError(f"{flag}: None stands for no value, which cannot be tried")
    return found


@click.command()
@click.option(
    "--preset",
    shell_complete=common.offers("preset"),
    metavar="NAME|FILE.toml",
    help="A bench that comes with Wiretune, or your own file.",
)
@click.option(
    "--methods",
    shell_complete=common.offers("method"),
    multiple=True,
    metavar="METHOD[:OPTION=VALUE...],...",
    help="Rows of the comparison, such as fedavg,fedpeft:variant=bias; may be repeated.",
)
@click.option(
    "--exec",
    "programs",
    shell_complete=common.offers("file"),
    multiple=True,
    metavar="FILE.toml",
    help="Instead of methods: programs as exec takes them in a file, a row each; may be repeated.",
)
@click.option(
    "--profiles",
    shell_complete=common.offers("profile"),
    multiple=True,
    callback=_list,
    metavar="NAME,...",
    help="Link profiles to compare on.",
)
@click.option(
    "--stages",
    multiple=True,
    callback=_stages,
    metavar="none,NAME[:KEY=VALUE,...][+NAME...],...",
    help="Payload stages for what clients send: each row has each, such as "
    "none,int8,topk:k=0.01,feedback=true+deflate.",
)
@click.option(
    "--vary",
    multiple=True,
    callback=_grid,
    metavar="FIELD=VALUE,...",
    help="Compare over another field of a run's configuration too, such as "
    "device_class=pi,phone; may be repeated.",
)
@click.option(
    "--clients", multiple=True, callback=_list, metavar="N,...", help="Numbers of clients."
)
@click.option(
    "--seeds", multiple=True, callback=_list, metavar="N,...", help="Seeds; figures are medians."
)
@click.option(
    "--grid",
    multiple=True,
    callback=_grid,
    metavar="OPTION=VALUE,...",
    help="Tune each row first: an option of all its methods, and the values to try on the "
    "validation split; may be repeated.",
)
@click.option(
    "--grid-seeds",
    multiple=True,
    callback=_list,
    metavar="N,...",
    help="Seeds that rows are tuned by.  [default: all]",
)
@click.option(
    "--repeat", type=common.Whole(), metavar="N", help="Runs of each; figures are medians."
)
@common.of_a_run(
    *("rounds", "target", "budget_mb", "links", "compute", "device_class", "secure"),
    *("hosts", "place"),
    help_="As for launch.",
)
@common.token_file()
@common.of_a_method("An option of every row's method; may be repeated.")
@click.option(
    "--budget",
    type=common.Decimal(),
    metavar="MINUTES",
    help="Begin no run after so long.  [default: none]",
)
@click.option(
    "--out",
    shell_complete=common.offers("folder"),
    metavar="FOLDER",
    help="Keeps the runs; the same bench goes on where it ended.  [default: results/bench-NAME]",
)
@common.says(quietly=True)
def bench(
    preset: str | None,
    methods: tuple[str, ...],
    programs: tuple[str, ...],
    profiles: list[str],
    stages: list[str],
    vary: dict[str, list[Any]],
    clients: list[int],
    seeds: list[int],
    grid: dict[str, list[Any]],
    grid_seeds: list[int],
    repeat: int | None,
    options: dict[str, Any],
    budget: float | None,
    out: str | None,
    token_file: Path | None,
    output: terminal.Output,
    **flags: Any,
) -> None:
    """Compare methods, or programs, over link profiles: many runs, one table.

    \b
    Examples:
      python cli.py bench --preset=digits
      python cli.py bench --methods=fedavg --methods=fedpeft --profiles=4g,wifi --seeds=0,1,2
      python cli.py bench --methods=fedavg --stages=none,int8,topk:k=0.01,feedback=true+deflate
      python cli.py bench --preset=digits --seeds=0,1,2 --grid learning_rate=0.001,0.003,0.01
      python cli.py bench --preset=fedpeft-table --profiles=ethernet --device-class=server
      python cli.py bench --exec=net.toml --profiles=4g,wifi --clients=2,8 --repeat=3
      python cli.py bench --preset=digits --hosts=10.0.0.1,10.0.0.2
      python cli.py bench --exec=net.toml --profiles=4g,wifi --hosts=10.0.0.1,10.0.0.2
    """
    from experiments import bench as benching

    if budget is not None and not 0 <= budget <= MOST_MINUTES:
        raise ConfigError(f"--budget {budget:g}: must be minutes, 0 to {MOST_MINUTES:g}")
    if out == "":
        raise ConfigError("--out '': must be some text; leave it out for the default")
    run = {name: value for name, value in flags.items() if value is not None}
    if options:
        run["options"] = options
    axes = {
        "profiles": profiles,
        "stages": stages,
        "clients": clients,
        "vary": vary,
        "seeds": seeds,
        "grid": grid,
        "grid_seeds": grid_seeds,
    }
    told = preset, methods, programs, axes, repeat, run, out, budget, output, token_file
    sys.exit(benching.bench(*told))
