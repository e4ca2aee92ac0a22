"""The README's two results: in places that benchmarks/readme.py finds, and of what there is now."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme  # noqa: E402

from experiments import plan  # noqa: E402

TEXT = readme.README.read_text()
FIGURES = {field: 0.5 for field, _ in readme.COLUMNS.values()}


def block(name: str) -> list[str]:
    begin, end = readme.marks(name)
    return TEXT.split(begin)[1].split(end)[0].strip().splitlines()


def test_the_table_of_methods_is_the_presets() -> None:
    rows = block("digits")
    names = [row.split("|")[1].strip() for row in rows[2:]]
    assert names == [row.name for row in plan.load("digits").rows]
    again = readme.methods_table([{"row": name, **FIGURES} for name in names]).splitlines()
    assert rows[:2] == again[:2] and len({row.count("|") for row in rows}) == 1


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
    lacking = readme.methods_table([{"row": "a", **FIGURES, "client_accuracy": None}])
    assert lacking.splitlines()[2].startswith("| a | 0.500 | | 0.5 | 0.500 |")
