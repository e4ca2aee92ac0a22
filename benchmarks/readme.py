"""The README's two results, as they are now: measures them and writes them into their places there.

    python benchmarks/readme.py [--links=...]

The machine should do nothing else: it takes about five minutes on two cores.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
CLI = ROOT / "cli.py"
README = ROOT / "README.md"
COLUMNS = {
    "accuracy": ("accuracy", "{:.3f}"),
    "clients' own then": ("client_accuracy", "{:.3f}"),
    "rounds": ("rounds_to_target", "{:g}"),
    "minutes": ("minutes_to_target", "{:.3f}"),
    "payload, MB": ("payload_mb_to_target", "{:.2f}"),
    "wire, MB": ("wire_mb_to_target", "{:.2f}"),
    "client memory at its peak, MB": ("client_memory_mb", "{:.1f}"),
    "client GFLOP a round": ("client_round_gflop", "{:.3g}"),
}
"""Heads of the table of methods, each with its figure's name in comparison.json."""


def printed(said: str) -> str:
    """What a launch said, without what is only of its machine: folders, and how to get netem."""
    kept = (
        re.sub(r"\(modprobe .*", "(modprobe sch_netem; …))", line)
        for line in said.splitlines()
        if not line.startswith(("results:", "report:", "trace:"))
    )
    return "\n".join(["```", *kept, "```"])


def methods_table(rows: list[dict[str, Any]]) -> str:
    """Rows of comparison.json as Markdown; what a row lacks is left empty."""
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for row in rows:
        cells = (
            "" if row[field] is None else form.format(row[field])
            for field, form in COLUMNS.values()
        )
        lines.append(f"| {row['row']} | {' | '.join(cells)} |")
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def put(text: str, name: str, block: str) -> str:
    """``text`` with ``block`` between the marks of that name.

    Raises:
        ValueError: there are no such marks, or several.
    """
    begin, end = marks(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{README.name} must have one {begin} and one {end}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{block}\n{end}{rest.split(end)[1]}"


def marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: printed by benchmarks/readme.py -->", f"<!-- end of {name} -->"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("flags", nargs=-1)
def main(flags: tuple[str, ...]) -> None:
    """Run the default launch and `bench --preset=digits`, with FLAGS, and rewrite README.md."""
    with tempfile.TemporaryDirectory() as out:
        launch = [sys.executable, str(CLI), "launch", "--profile=4g", "--clients=20", *flags]
        said = subprocess.run(
            [*launch, f"--out={out}/run"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        bench = [sys.executable, str(CLI), "bench", "--preset=digits", *flags]
        subprocess.run([*bench, f"--out={out}/bench"], check=True)
        rows = json.loads((Path(out) / "bench" / "comparison.json").read_text())["rows"]
    text = put(README.read_text(), "launch", printed(said))
    README.write_text(put(text, "digits", methods_table(rows)))


if __name__ == "__main__":
    main()
