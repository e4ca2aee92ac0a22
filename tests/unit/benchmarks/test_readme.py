"""The README's two results: in places that benchmarks/readme.py finds, and of what there is now."""

import re
import sys
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme  # noqa: E402

from experiments import plan, tuning  # noqa: E402
from experiments.bench import _check_trials  # noqa: E402

TEXT, WHOLE = readme.README.read_text(), readme.WHOLE.read_text()
FIGURES = {field: 0.5 for field, _ in readme.COLUMNS.values()}


def block(name: str, text: str = TEXT) -> list[str]:
    begin, end = readme.marks(name)
    return text.split(begin)[1].split(end)[0].strip().splitlines()


def table(text: str) -> list[dict[str, str]]:
    """Cells of each row of methods by their heads."""
    lines = [line for line in block("digits", text) if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_the_readmes_table_has_the_medians_of_the_whole_one() -> None:
    short, whole = table(TEXT), table(WHOLE)
    assert [*short[0]] == ["", *readme.SHORT]
    spread = re.compile(r" \([^()]* to [^()]*\)")
    medians = [{head: spread.sub("", row[head]) for head in short[0]} for row in whole]
    assert short == medians


def test_the_table_of_methods_is_the_presets() -> None:
    rows = [line for line in block("digits", WHOLE) if line.startswith("|")]
    names = [row.split("|")[1].strip() for row in rows[2:]]
    assert names == [row.name for row in plan.load("digits").rows]
    heads = [head.strip() for head in rows[0].split("|")[2:-1]]
    shown = {readme.COLUMNS[head][0]: 0.5 for head in heads if head in readme.COLUMNS}
    if len(heads) > len(shown):
        shown |= {"has": ["images"], "tuned": {"learning_rate": 0.1}, "at_edge": []}
    again = readme.methods_table([{"row": name, **shown} for name in names]).splitlines()
    assert rows[:2] == again[:2] and len({row.count("|") for row in rows}) == 1


@pytest.mark.thorough
def test_what_the_table_is_made_with_is_a_bench() -> None:
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in readme.TUNED)
    option, values = flags["grid"].split("=")
    grid = {option: [float(value) for value in values.split(",")]}
    asked = msgspec.structs.replace(plan.load(flags["preset"]), grid=grid, seeds=[0])
    tuning.check(asked)
    _check_trials(tuning.trials(asked))
    assert readme.told(()).startswith(f"`python cli.py bench {' '.join(readme.TUNED)}`:\n")


def test_a_figure_of_several_runs_has_their_spread() -> None:
    row = {"row": "a", **FIGURES, "has": ["x", "y"], "tuned": {"rate": 0.003}, "at_edge": ["rate"]}
    spread = {"accuracy": [0.4, 0.6], "minutes_to_target": [0.5, 0.50004]}
    head, _, line = readme.methods_table([row | {"spread": spread}]).splitlines()
    assert head.startswith("| | also has | rate | accuracy |")
    assert line.startswith(
        "| a | x; y | 0.003 (edge) | 0.500 (0.400 to 0.600) | 0.500 | 0.5 | 0.500 |"
    )


def test_a_short_table_has_the_columns_asked_for_without_spreads() -> None:
    row = {"row": "a", **FIGURES, "has": ["x"], "spread": {"accuracy": [0.4, 0.6]}}
    lines = readme.methods_table([row], ("rounds", "accuracy"), spread=False).splitlines()
    assert lines == ["| | rounds | accuracy |", "|---|---:|---:|", "| a | 0.5 | 0.500 |"]


def test_minutes_are_in_doubt_where_a_certificate_failed() -> None:
    spread = {"minutes_to_target": [0.4, 0.6]}
    row = {"row": "a", "accuracy": 0.5, "minutes_to_target": 0.5, "spread": spread}
    lines = readme.methods_table([row | {"certificate": end} for end in ("fail", "pass")])
    assert lines.splitlines()[2:] == [
        "| a | 0.500 | 0.500? (0.400 to 0.600) |",
        "| a | 0.500 | 0.500 (0.400 to 0.600) |",
    ]


def test_a_target_that_was_not_reached_is_said() -> None:
    def rounds(runs: int, reached: int) -> str:
        row = {"row": "a", "rounds_to_target": None, "runs": runs, "runs_to_target": reached}
        return readme.methods_table([row]).splitlines()[2]

    assert rounds(3, 0) == "| a | never |"
    assert rounds(3, 2) == "| a | 2 of 3 runs |"


def test_the_launch_is_the_default_one_to_its_end() -> None:
    said = block("launch")
    assert said[0] == said[-1] == "```"
    rounds = [line.partition("  ")[0] for line in said if line.startswith("round ")]
    assert rounds == [f"round {number}/5" for number in range(1, 6)]
    (final,) = (line for line in said if line.startswith("accuracy "))
    last = next(line for line in said if line.startswith("round 5/5"))
    assert f"accuracy {final.split()[-1]} " in last


def test_a_block_is_put_between_its_marks_alone() -> None:
    begin, end = readme.marks("x")
    text = f"a\n{begin}\nold\n{end}\nb\n"
    assert readme.put(text, "x", "new") == f"a\n{begin}\nnew\n{end}\nb\n"
    assert readme.put(TEXT, "digits", "\n".join(block("digits"))) == TEXT
    for wrong in ("", text + text):
        with pytest.raises(ValueError, match="must have one"):
            readme.put(wrong, "x", "new")


def test_what_is_of_one_machine_alone_is_left_out() -> None:
    said = "results: x/y\nlinks: userspace (not netem: none (modprobe a; apt b))\nround 1/5\n"
    text = "```\nlinks: userspace (not netem: none (modprobe sch_netem; …))\nround 1/5\n```"
    assert readme.printed(said) == text
    rows = [{"row": "a", **FIGURES, "client_accuracy": None}, {"row": "b", **FIGURES}]
    assert readme.methods_table(rows).splitlines()[2].startswith("| a | 0.500 | | 0.5 | 0.500 |")
    assert readme.methods_table(rows[:1]).splitlines()[2].startswith("| a | 0.500 | 0.5 | 0.500 |")
