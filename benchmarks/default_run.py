"""The default run: from the command to the first round, to the end, memory and bytes.

    python benchmarks/default_run.py [--repeat=3] [cli.py launch's own flags]

Each row: what, the median of the repeats, the limit, and measured / limit.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import table

CLI = Path(__file__).parent.parent / "cli.py"

STARTUP_LIMIT_S = 10.0
TOTAL_LIMIT_S = 90.0
CLIENT_MEMORY_LIMIT_MB = 25.0
ACCURACY_FLOOR = 0.93
WIRE_OVERHEAD_LIMIT_PERCENT = 10.0


def one_run(flags: tuple[str, ...]) -> dict[str, Any]:
    """The summary of one `launch` with these flags."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(CLI), "launch", f"--out={out}", *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=900)
        (summary,) = Path(out).glob("*/summary.json")
        found: dict[str, Any] = json.loads(summary.read_text())
        return found


def figures(summary: dict[str, Any]) -> dict[str, float]:
    clients = [row for row in summary["processes"] if row["node"] != "server"]
    payload, wire = (sum(summary["bytes"][level].values()) for level in ("payload", "wire"))
    return {
        "start to first round, s": summary["seconds"]["startup"],
        "whole run, s": summary["seconds"]["total"],
        "most private memory of a client, MB": max(row["private_mb"] for row in clients),
        "median private memory of a client, MB": statistics.median(
            row["private_mb"] for row in clients
        ),
        "wire over payload, %": 100 * (wire / payload - 1),
        "final accuracy": summary["metrics"]["final"]["accuracy"],
    }


LIMITS = {
    "start to first round, s": STARTUP_LIMIT_S,
    "whole run, s": TOTAL_LIMIT_S,
    "most private memory of a client, MB": CLIENT_MEMORY_LIMIT_MB,
    "median private memory of a client, MB": CLIENT_MEMORY_LIMIT_MB,
    "wire over payload, %": WIRE_OVERHEAD_LIMIT_PERCENT,
    "final accuracy": ACCURACY_FLOOR,
}


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1, 20))
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def main(repeat: int, flags: tuple[str, ...]) -> None:
    summaries = [one_run(flags) for _ in range(repeat)]
    rows = [figures(summary) for summary in summaries]
    click.echo(f"{summaries[0]['clients']} clients, {summaries[0]['profile']}, {repeat} runs")
    for name, limit in LIMITS.items():
        values = [row[name] for row in rows]
        middle = statistics.median(values)
        bound = "at least" if name == "final accuracy" else "limit"
        click.echo(
            f"{name:40} {middle:8.2f}  {bound} {limit:6.2f}  ratio {middle / limit:.2f}  "
            f"(from {min(values):.2f} to {max(values):.2f})"
        )
        what, _, unit = name.partition(", ")
        asked = {"least": 1.0} if name == "final accuracy" else {"most": 1.0}
        table.add(f"default run: {what}", unit, middle, "limit", limit, **asked)
    curves = [
        [round(entry["metrics"]["accuracy"], 3) for entry in summary["rounds"]]
        for summary in summaries
    ]
    click.echo(f"accuracy before {summaries[0]['metrics']['initial']['accuracy']:.3f}, by round:")
    for curve in curves:
        click.echo(f"  {curve}")


if __name__ == "__main__":
    main()
