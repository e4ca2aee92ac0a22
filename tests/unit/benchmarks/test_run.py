"""What `make bench` runs: files that need no word of anybody's, each with its line in the docs."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import run  # noqa: E402

NEEDS_WORDS = re.compile(r"required=True|click\.argument\((?![^)]*nargs=-1)")


def test_the_docs_have_each_of_them() -> None:
    page = (ROOT / "docs/benchmarking.md").read_text().partition("## All benchmarks")[2]
    assert sorted(re.findall(r"^\| `(\w+)\.py` \|", page, re.M)) == run.names()


def test_each_can_be_run_without_a_word() -> None:
    texts = {name: (ROOT / f"benchmarks/{name}.py").read_text() for name in run.names()}
    assert [name for name, text in texts.items() if NEEDS_WORDS.search(text)] == []


def test_the_docs_have_each_preset() -> None:
    from experiments import plan

    page = (ROOT / "docs/benchmarking.md").read_text().partition("## Presets")[2]
    rows = "".join(re.findall(r"^\| (`.*?) \|", page.partition("##")[0], re.M))
    assert sorted(re.findall(r"`([\w-]+)`", rows)) == plan.presets()
