"""The README's two results, as they are now: measures them and writes them into their places.

The table of methods is there in short, and whole in docs/comparison.md.

    python benchmarks/readme.py --runs=results/bench-readme [--links=...]

The machine should do nothing else, for the table is of hundreds of runs: each method at each rate
by each seed, and then by each seed with the rate that was best for it.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
CLI = ROOT / "cli.py"
README = ROOT / "README.md"
WHOLE = ROOT / "docs/comparison.md"
TUNED = (
    *("--preset=digits", "--seeds=0,1,2"),
    *("--grid=learning_rate=0.001,0.003,0.01,0.03,0.1", "--grid-seeds=0"),
)
"""What the table of methods is of."""
TOLD = """\
each row with the rate that was best for it on the validation split (`edge`: the grid's least or
greatest; by the first seed), then run on the test images; medians of three seeds (least to
greatest). Minutes and MB are until the end of the round that reached it, and interpolated to the
moment within it; `?`: the certificate of one of the runs failed."""
COLUMNS = {
    "accuracy": ("accuracy", "{:.3f}"),
    "clients' own then": ("client_accuracy", "{:.3f}"),
    "rounds": ("rounds_to_target", "{:g}"),
    "minutes": ("minutes_to_target", "{:.3f}"),
    "interpolated": ("minutes_interpolated", "{:.3f}"),
    "payload, MB": ("payload_mb_to_target", "{:.2f}"),
    "interpolated, MB": ("payload_mb_interpolated", "{:.2f}"),
    "wire, MB": ("wire_mb_to_target", "{:.2f}"),
    "client memory at its peak, MB": ("client_memory_mb", "{:.1f}"),
    "client GFLOP a round": ("client_round_gflop", "{:.3g}"),
}
"""Heads of the table of methods, each with its figure's name in comparison.json."""
SHORT = ("accuracy", "rounds", "minutes", "payload, MB", "client memory at its peak, MB")
"""Those of the README's table, which has medians alone."""
TIMED = ("minutes_to_target", "minutes_interpolated")
"""What a certificate that failed puts in doubt."""


def printed(said: str) -> str:
    """What a launch said, without what is only of its machine: folders, and how to get netem."""
    kept = (
        re.sub(r"\(modprobe .*", "(modprobe sch_netem; …))", line)
        for line in said.splitlines()
        if not line.startswith(("results:", "report:", "trace:"))
    )
    return "\n".join(["```", *kept, "```"])


def methods_table(
    rows: list[dict[str, Any]],
    columns: Sequence[str] = ("also has", "rate", *COLUMNS),
    spread: bool = True,
) -> str:
    """Rows of comparison.json as Markdown: what a row lacks is left empty, what all lack left out.

    A figure of several runs is their median, with (least to greatest) where ``spread`` is wanted.
    """
    texts = [_texts(row, spread) for row in rows]
    heads = [head for head in columns if any(text[head] for text in texts)]
    aligned = ("---|" if head == "also has" else "---:|" for head in heads)
    lines = [f"| | {' | '.join(heads)} |", f"|---|{''.join(aligned)}"]
    for row, text in zip(rows, texts, strict=True):
        lines.append(f"| {row['row']} | {' | '.join(text[head] for head in heads)} |")
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def _texts(row: dict[str, Any], spread: bool) -> dict[str, str]:
    """A row's cells by their columns' heads."""
    found = {"also has": "; ".join(row.get("has", ())), "rate": ""}
    for option, value in row.get("tuned", {}).items():
        found["rate"] = f"{value:g}{' (edge)' if option in row['at_edge'] else ''}"
    for head, (field, form) in COLUMNS.items():
        value = row.get(field)
        ends = [form.format(end) for end in row.get("spread", {}).get(field, ())]
        several = f" ({ends[0]} to {ends[1]})" if spread and len(set(ends)) == 2 else ""
        doubt = "?" if field in TIMED and row.get("certificate") == "fail" else ""
        found[head] = "" if value is None else form.format(value) + doubt + several
    if row.get("rounds_to_target") is None and "runs_to_target" in row:
        reached = row["runs_to_target"]
        found["rounds"] = f"{reached:g} of {row['runs']:g} runs" if reached else "never"
    return found


def told(flags: tuple[str, ...]) -> str:
    """What was run for the table of methods."""
    command = " ".join(["python cli.py bench", *TUNED, *flags])
    return f"`{command}`:\n{TOLD}"


def put(text: str, name: str, block: str, by: str = "readme") -> str:
    """``text`` with ``block`` between the marks of that name and benchmark.

    Raises:
        ValueError: there are no such marks, or several.
    """
    begin, end = marks(name, by)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page must have one {begin} and one {end}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{block}\n{end}{rest.split(end)[1]}"


def marks(name: str, by: str = "readme") -> tuple[str, str]:
    return f"<!-- {name}: printed by benchmarks/{by}.py -->", f"<!-- end of {name} -->"


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keeps the bench's runs: the same command goes on where it ended.  [default: none kept]",
)
@click.argument("flags", nargs=-1)
def main(runs: Path | None, flags: tuple[str, ...]) -> None:
    """Run the default launch and the bench of methods, with FLAGS, and rewrite both pages."""
    with tempfile.TemporaryDirectory() as out:
        launch = [sys.executable, str(CLI), "launch", "--profile=4g", "--clients=20", *flags]
        said = subprocess.run(
            [*launch, f"--out={out}/run"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        bench = [sys.executable, str(CLI), "bench", *TUNED, *flags]
        folder = runs or Path(out) / "bench"
        subprocess.run([*bench, f"--out={folder}"], check=True)
        rows = json.loads((folder / "comparison.json").read_text())["rows"]
    text = put(README.read_text(), "launch", printed(said))
    README.write_text(put(text, "digits", methods_table(rows, SHORT, spread=False)))
    whole = f"{told(flags)}\n\n{methods_table(rows)}"
    WHOLE.write_text(put(WHOLE.read_text(), "digits", whole))


if __name__ == "__main__":
    main()
