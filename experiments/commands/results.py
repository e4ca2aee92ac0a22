"""Commands on runs that have been: report, links, export, compare, results."""

from __future__ import annotations

from pathlib import Path

import click

from experiments.commands import options as common
from testbed.config_error import Unwritten
from testbed.report import terminal
from testbed.report.text import visible


@click.command()
@click.argument("run", metavar="RUN", type=common.File(), shell_complete=common.offers("run"))
@click.option(
    "--job", is_flag=True, help="Also a table in the summary of a GitHub job, and a step's outputs."
)
def report(run: Path, job: bool) -> None:
    """Write RUN/report.html, one page that opens from disk; launch does so by itself.

    \b
    Example:
      python cli.py report results/RUN
    """
    from testbed.report.page import run_page

    try:
        click.echo(visible(f"report: {run_page.write(run)}"))
        if job:
            from testbed.report import job_summary

            job_summary.write(run)
    except OSError as error:
        raise Unwritten(f"RUN {run}: cannot write the report: {error.strerror}") from error


@click.command()
@click.argument("run", metavar="RUN", type=common.File(), shell_complete=common.offers("run"))
@common.says()
def links(run: Path, output: terminal.Output) -> None:
    """Say a run's links in tc's words, and while it goes on the way into its namespaces.

    \b
    Example:
      python cli.py links results/RUN
    """
    from testbed.report import way_in

    found = way_in.of(run)
    if output.as_json:
        output.document(way_in.document(found))
        return
    for line in way_in.lines(found):
        click.echo(visible(line))


@click.command()
@click.argument("run", metavar="RUN", type=common.File(), shell_complete=common.offers("run"))
@click.option("--csv", "as_csv", is_flag=True, help="rounds, clients and more, as CSV.")
@click.option("--tensorboard", is_flag=True, help="Event files for TensorBoard.")
@click.option(
    "--out",
    type=common.File(),
    metavar="FOLDER",
    help="Gets what is written.  [default: the run's folder]",
)
@common.says()
def export(
    run: Path, as_csv: bool, tensorboard: bool, out: Path | None, output: terminal.Output
) -> None:
    """Write a run's figures for other programs.

    \b
    Examples:
      python cli.py export results/RUN --csv
      python cli.py export results/RUN --tensorboard && tensorboard --logdir=results/RUN
    """
    from testbed.report import export as exporting

    forms = [form for form, asked in (("csv", as_csv), ("tensorboard", tensorboard)) if asked]
    written = [path.as_posix() for path in exporting.export(run, forms, out)]
    if output.as_json:
        output.document({"written": written})
    for path in written:
        output.say(f"export: {path}")


@click.command()
@click.argument(
    "runs",
    metavar="RUN...",
    nargs=-1,
    required=True,
    type=common.File(),
    shell_complete=common.offers("run or bench"),
)
@click.option(
    "--target",
    metavar="X|METRIC=X",
    help="What to compare at: a value of the runs' own metric, or of another.  [default: the best "
    "that all reached, to 0.01]",
)
@click.option(
    "--out",
    type=common.File(),
    metavar="FILE.html",
    help="[default: comparison.html in the bench's folder, or beside the first run's]",
)
@common.says(quietly=True)
def compare(
    runs: tuple[Path, ...], target: str | None, out: Path | None, output: terminal.Output
) -> None:
    """Hold runs against one another: a table, and a page with their curves.

    RUN is a run's folder, of launch or of exec, or a bench's with all its runs.

    \b
    Examples:
      python cli.py compare results/RUN results/OTHER-RUN
      python cli.py compare results/bench-digits --target=0.9
    """
    from rich.console import Group

    from testbed.report.compare import claims, comparability, comparison, comparison_page
    from testbed.report.compare import program_comparison as programs

    found = comparison.runs(runs)
    taught, others = comparison.parted(found)
    aim = None if target is None else comparison.aimed(target, taught)
    rows, reached = comparison.compare(taught, aim)
    ran = programs.ran(others)
    notes = comparability.notes(found, aim)
    try:
        path = comparison_page.write(rows, reached, runs, out, notes, claims.read(runs), ran)
    except OSError as error:
        where = f"RUN {runs[0]}" if out is None else f"--out {out}"
        raise Unwritten(f"{where}: cannot write the page: {error.strerror}") from error
    tables = [comparison.table(rows, reached)] if rows else []
    tables += [programs.table(ran)] if ran else []
    data = comparison.data(rows, reached, notes) | {"programs": programs.data(ran)}
    output.show(Group(*tables), data)
    said = [*(comparison.sentence(row, reached) for row in rows), *map(programs.sentence, ran)]
    for text in [*said, *notes]:
        output.say(text)
    output.result("comparison", path)


@click.command()
@click.option(
    "--out",
    default="results",
    type=common.File(),
    metavar="FOLDER",
    help="Where the runs' folders are.  [default: results]",
)
@common.says()
def results(out: Path, output: terminal.Output) -> None:
    """List runs, the newest first."""
    from testbed.report import listing

    found = listing.rows(out)
    output.show(listing.table(found), found)
