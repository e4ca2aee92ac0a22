"""All benchmarks, one after the other, and a table of what they measured.

    python benchmarks/run.py [NAME ...]      make bench

What they print goes to the terminal and to results/benchmarks.txt; the table, with the machine's
load at each one's start, to results/benchmarks.md. One that fails or takes too long does not keep
the others from running; the exit status is 1 then, and 0 otherwise, whatever the figures are.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import click
import table

from testbed.metering import meter

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
NO_BENCHMARKS = {"forty_hosts", "pages", "readme", "run", "streams", "table"}
LIMIT_S = 3600.0
END_LIMIT_S = 30.0


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NO_BENCHMARKS)


def run(name: str, rows: Path, log: TextIO) -> str | None:
    """Run one, showing what it prints as it comes; why it has no result, or None."""
    environ = os.environ | {table.FILE: str(rows), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, str(HERE / f"{name}.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ,
    ) as process:
        # As by Ctrl-C, so that what it started ends with it.
        limit = threading.Timer(LIMIT_S, process.send_signal, [signal.SIGINT])
        limit.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                click.echo(line, nl=False)
                log.write(line)
                log.flush()
            late = not limit.is_alive()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait(END_LIMIT_S)
            raise
        finally:
            limit.cancel()
    if late:
        return f"took longer than {LIMIT_S:g} s"
    return None if process.returncode == 0 else f"ended with {process.returncode}"


def cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def lines(row: table.Row) -> str:
    asked = ""
    if row.least is not None:
        asked = f"≥ {row.least:g}"
    elif row.most is not None:
        asked = f"≤ {row.most:g}"
    met = {None: "", True: "yes", False: "no"}[row.met]
    ratio = "" if row.ratio is None else f"{row.ratio:.4g}"
    measured = row.reason or f"{cell(row.measured)} {row.unit}"
    value = "" if row.value is None else f"{cell(row.value)} {row.unit}"
    return f"| {row.what} | {measured} | {row.against} | {value} | {ratio} | {asked} | {met} |"


def machine() -> str:
    facts = meter.environment()
    return (
        f"{facts['cores']} cores, {facts['memory_mb'] / 1000:.0f} GB, {facts['kernel']}, "
        f"Python {facts['python']}, torch {facts['torch']}, commit {facts['git']}"
    )


@click.command()
@click.argument("chosen", nargs=-1, metavar="[NAME ...]", type=click.Choice(names()))
def main(chosen: tuple[str, ...]) -> None:
    RESULTS.mkdir(exist_ok=True)
    began = time.monotonic()
    failed = 0
    head = "| | measured | against | its figure | ratio | asked | met |\n"
    head += "|---|---:|---|---:|---:|---:|---|\n"
    with (
        (RESULTS / "benchmarks.txt").open("w") as log,
        (RESULTS / "benchmarks.md").open("w") as page,
        tempfile.TemporaryDirectory() as folder,
    ):
        page.write(f"# Benchmarks of {datetime.now(UTC):%Y-%m-%d}\n\n{machine()}\n")
        for name in chosen or names():
            load = os.getloadavg()[0]
            title = f"== {name}"
            click.echo(title)
            log.write(f"{title}\n")
            rows = Path(folder) / name
            at = time.monotonic()
            reason = run(name, rows, log)
            page.write(f"\n## {name}\n\n")
            if reason:
                failed += 1
                click.echo(f"{name}: {reason}", err=True)
                page.write(f"No result: it {reason}.\n\n")
            if found := table.read(rows):
                page.write(head + "".join(f"{lines(row)}\n" for row in found))
            page.write(f"\n{time.monotonic() - at:.0f} s, load {load:.2f} at its start\n")
            page.flush()
        total_s = time.monotonic() - began
        page.write(f"\n{total_s / 60:.0f} minutes in all\n")
    click.echo(f"table: {RESULTS / 'benchmarks.md'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
