"""The table of `make bench`: what it says of a row, and that one that fails stops no other."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import Forks

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"

GOOD = """
import table
table.add("fast", "s", 0.5, "limit", 2.0, most=1)
table.add("slow", "s", 3.0, "limit", 2.0, most=1)
table.add("times a peer", "ms", 2.0, "peer", 12.0, least=5, inverse=True)
table.add("ring", "MB", 7.0, "star", 4.0)
table.add_missing("peer", "ms", "peer", "no network")
print("words of its own")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with two benchmarks, the first of which fails after its first row."""
    there = tmp_path / "benchmarks"
    there.mkdir()
    for name in ("run.py", "table.py"):
        shutil.copy(BENCHMARKS / name, there)
    (there / "bad.py").write_text("import table\ntable.add('row', 's', 1, 'limit', 2)\n1 / 0\n")
    (there / "good.py").write_text(GOOD)
    return tmp_path


def run(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "benchmarks" / "run.py"), *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_rows_say_whether_they_are_as_asked(folder: Path) -> None:
    done = run(folder, "good")
    assert done.returncode == 0, done.stderr
    page = (folder / "results" / "benchmarks.md").read_text()
    for row in (
        "| fast | 0.5 s | limit | 2 s | 0.25 | ≤ 1 | yes |",
        "| slow | 3 s | limit | 2 s | 1.5 | ≤ 1 | no |",
        "| times a peer | 2 ms | peer | 12 ms | 6 | ≥ 5 | yes |",
        "| ring | 7 MB | star | 4 MB | 1.75 |  |  |",
        "| peer | no network | peer |  |  |  |  |",
    ):
        assert row in page.splitlines()
    assert "words of its own" in (folder / "results" / "benchmarks.txt").read_text()


def test_one_that_fails_is_told_and_the_others_run(folder: Path) -> None:
    done = run(folder)
    assert done.returncode == 1
    page = (folder / "results" / "benchmarks.md").read_text()
    bad, good = page.split("## bad")[1].split("## good")
    assert "No result: it ended with 1." in bad and "| row | 1 s |" in bad
    assert "| fast |" in good
    assert "ZeroDivisionError" in (folder / "results" / "benchmarks.txt").read_text()


def test_an_unknown_name_is_refused_before_anything_runs(folder: Path) -> None:
    done = run(folder, "god")
    assert done.returncode == 2
    assert "'bad', 'good'" in done.stderr
    assert not (folder / "results").exists()


SHARED = {"streams", "table"}
PROGRAMS = [path for path in sorted(BENCHMARKS.glob("*.py")) if path.stem not in SHARED]


BEGINNING = "import runpy, sys, click, torch"
START = """
path, folder = sys.argv[1:]
sys.path.insert(0, folder)
sys.argv = [path, "--help"]
runpy.run_path(path, run_name="__main__")
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks(BEGINNING) as forks:
        yield forks


@pytest.mark.thorough
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_each_file_still_starts(path: Path, forks: Forks) -> None:
    assert forks.printed(START, path, path.parent).startswith("Usage: ")
