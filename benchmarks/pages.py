"""Pages of the docs that a bench's runs make: which method where, and papers' claims.

    python benchmarks/pages.py atlas --runs=results/bench-atlas [--budget=600 ...]
    python benchmarks/pages.py related-ten --runs=results/bench-related-ten [...]
    python benchmarks/pages.py fedpeft-table --runs=... [...]   # and sfprompt-claim, kdfft-bytes

Each carries out `cli.py bench --preset=PAGE` with the flags, or another bench where a flag names
one, and writes what came of it into its place. Runs that the folder has are not made again.
"""

import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
import readme

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from experiments import assumptions  # noqa: E402
from testbed import metrics  # noqa: E402
from testbed.report.compare import claims  # noqa: E402
from testbed.run import config  # noqa: E402

Row = dict[str, Any]
"""Of comparison.json."""
GRIDS = (
    ("the first to reach it, minutes", "minutes_to_target", "{:.3g}"),
    ("with the fewest bytes on the wire, MB", "wire_mb_to_target", "{:.3g}"),
)
"""What the cells of a grid are by: its title, the figure and how it is written."""


def which_method(folder: Path) -> str:
    """For each model two grids, links by devices, of the methods that took least; then all."""
    comparison = json.loads((folder / claims.NAME).read_text())
    run = config.renamed(json.loads((folder / "bench.json").read_text())["run"], "bench.json")
    metric, value = metrics.target(run["target"])
    parts = []
    for where, own in grouped(comparison["rows"], settled).items():
        parts += [f"### {metrics.words(metric).capitalize()} {value:g} with {where}"]
        parts += [*(grid(own, *how) for how in GRIDS), whole(own)]
    has = {row["row"]: row["has"] for row in comparison["rows"]}
    beside = assumptions.alone(list(has.values()))
    if others := [
        f"- {name}: {'; '.join(own)}" for name, own in zip(has, beside, strict=True) if own
    ]:
        parts += ["What some have that others lack:", "\n".join(others)]
    if left := comparison["without_result"]:
        parts += [f"Without a result, and so in no cell: {len(left)} runs."]
    return "\n\n".join(parts)


def settled(row: Row) -> str:
    """What all of a grid have in common: the model, and all that is neither link nor device."""
    apart = ("profile", "device_class", "model")
    rest = {key: value for key, value in row["at"].items() if key not in apart}
    words = [f"{value} clients" if key == "clients" else str(value) for key, value in rest.items()]
    return ", ".join([f"{row['model']} ({size(row['parameters'])} parameters)", *words])


def size(count: int) -> str:
    """ "970", "303 K", "2.4 M", "85.8 M" """
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            return f"{float(f'{count / unit:.3g}'):g} {letter}"
    return str(count)


def grouped(rows: list[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Rows of the same key together, in the order in which keys come first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def device(row: Row) -> str:
    return str(row["at"].get("device_class", "a core of this machine"))


def grid(rows: list[Row], title: str, figure: str, form: str) -> str:
    """Links down, devices across; in each cell the best, and the one after it in brackets."""
    devices = list(grouped(rows, device))
    lines = [f"| {title} | {' | '.join(devices)} |", f"|---|{'---|' * len(devices)}"]
    for profile, own in grouped(rows, lambda row: str(row["at"]["profile"])).items():
        there = grouped(own, device)
        cells = [cell(there.get(each, []), figure, form) for each in devices]
        lines.append(f"| {profile} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(rows: list[Row], figure: str, form: str) -> str:
    """ "FedPEFT head 0.002 (FedPEFT IA3 0.004)" """
    if not rows:
        return "not run"
    reached = [row for row in rows if row[figure] is not None]
    best = sorted(reached, key=lambda row: row[figure])[:2]
    texts = [
        f"{row['row']} {form.format(row[figure])}{'?' if row['certificate'] == 'fail' else ''}"
        for row in best
    ]
    return (
        f"none of {len(rows)}"
        if not texts
        else f"{texts[0]}{f' ({texts[1]})' if texts[1:] else ''}"
    )


def whole(rows: list[Row]) -> str:
    """Methods down, links and devices across; in each cell the minutes and the MB on the wire."""
    places = list(grouped(rows, place))
    head = ["minutes, MB on the wire", *places]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---|' * len(places)}"]
    for name, own in grouped(rows, lambda row: str(row["row"])).items():
        there = {place(row): both(row) for row in own}
        lines.append(f"| {' | '.join([name, *(there.get(each, 'not run') for each in places)])} |")
    return "\n".join(lines)


def place(row: Row) -> str:
    return f"{row['at']['profile']}, {device(row)}"


def both(row: Row) -> str:
    """ "0.0041?, 8.1" """
    if row["minutes_to_target"] is None:
        return "not reached"
    doubt = "?" if row["certificate"] == "fail" else ""
    return f"{row['minutes_to_target']:.3g}{doubt}, {row['wire_mb_to_target']:.3g}"


def examined(folder: Path) -> str:
    """Every claim of a bench, and how many have which verdict."""
    found = claims.read([folder])
    counts = Counter(claim.verdict for claim in found)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(claims.Verdict))
    rows = [claims.HEAD, *claims.cells(found)]
    head, *lines = (f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows)
    lines = [head, f"|{'---|' * len(claims.HEAD)}", *lines]
    word = "claim" if len(found) == 1 else "claims"
    return f"{len(found)} {word}: {said}.\n\n" + "\n".join(lines)


PAGES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "atlas": ("docs/which-method.md", which_method),
    "related-ten": ("docs/claims.md", examined),
    "fedpeft-table": ("docs/claims.md", examined),
    "sfprompt-claim": ("docs/claims.md", examined),
    "kdfft-bytes": ("docs/claims.md", examined),
}
"""By preset."""


def asked(page: str, flags: tuple[str, ...]) -> list[str]:
    """The bench's flags: the preset's, unless they name another bench."""
    own = any(flag.startswith(("--preset", "--methods")) for flag in flags)
    return [*([] if own else [f"--preset={page}"]), *flags]


def told(page: str, flags: tuple[str, ...]) -> str:
    return f"`{shlex.join(['python', 'cli.py', 'bench', *asked(page, flags)])}`:"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("page", type=click.Choice(list(PAGES)))
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER",
    help="Keeps the bench's runs: the same command goes on where it ended.",
)
@click.argument("flags", nargs=-1)
def main(page: str, runs: Path, flags: tuple[str, ...]) -> None:
    """Carry out the bench of a PAGE, with FLAGS, and write what came of it there."""
    command = [sys.executable, str(ROOT / "cli.py"), "bench", *asked(page, flags)]
    done = subprocess.run([*command, f"--out={runs}"])
    # 1: some runs have no result, which the page says.
    if done.returncode not in (0, 1):
        sys.exit(done.returncode)
    name, text = PAGES[page]
    path = ROOT / name
    block = f"{told(page, flags)}\n\n{text(runs)}"
    path.write_text(readme.put(path.read_text(), page, block, "pages"))


if __name__ == "__main__":
    main()
