"""How far a bench says it is, against a clock that is made up."""

import io
import re
from pathlib import Path

from made_run import events, summary
from rich.console import Console
from threads import threads

from experiments.plan import Bench, Outcome, Row, cells
from experiments.progress import BenchProgress, Lines, LiveTable, last_line, table


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def course(
    *rows: str, seeds: int = 1, budget_s: float | None = None
) -> tuple[BenchProgress, Clock]:
    clock = Clock()
    bench = Bench(rows=[Row(name) for name in rows], seeds=list(range(seeds)))
    return BenchProgress(cells(bench), budget_s, clock), clock


def make(found: BenchProgress, clock: Clock, seconds: float, log: Path = Path("none")) -> None:
    """The next run, from its begin to its end."""
    cell = found.cells[len(found.outcomes)]
    found.begin(log)
    clock.now_s += seconds
    found.end(Outcome(cell, summary(events(rounds=1, accuracies=[0.5])), None))


def text(found: BenchProgress, rows: int = 40) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(table(found, rows))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_nothing_is_known_before_a_run_has_ended() -> None:
    found, _ = course("a", "b")
    assert found.left_s() is None and found.time_left() == ""


def test_a_row_takes_as_long_as_it_took_and_a_new_one_as_long_as_all() -> None:
    found, clock = course("a", "b", "c", seeds=2)
    make(found, clock, 10)
    make(found, clock, 30)
    # c twice at the mean of 20 s, then a and b as before.
    assert found.left_s() == 20 + 10 + 30 + 20
    found.begin(Path("none"))
    clock.now_s += 5
    assert found.left_s() == 15 + 10 + 30 + 20
    clock.now_s += 50
    assert found.left_s() == 0 + 10 + 30 + 20


def test_what_an_earlier_bench_made_tells_the_time_and_takes_none() -> None:
    found, _ = course("a", seeds=3)
    found.took_s[found.cells[2].id] = 7.0
    assert found.left_s() == 14


def test_the_budget_stands_beside_the_time_left() -> None:
    found, clock = course("a", seeds=2, budget_s=60.0)
    assert found.time_left() == "60 s of the budget"
    make(found, clock, 45)
    assert found.time_left() == "about 45 s left, 15 s of the budget"
    clock.now_s += 100
    assert found.time_left().endswith("0 s of the budget")


def test_lines_say_each_begin_and_end() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    found, clock = course("a", "b", "c")
    found.begin(Path("none"))
    lines.began(found)
    lines.ticked(found)
    clock.now_s += 4
    found.end(Outcome(found.cells[0], None, "no route"))
    lines.ended(found)
    found.end(Outcome(found.cells[1], summary([]), None, earlier=True))
    lines.ended(found)
    assert said == [
        "[1/3] a-seed0",
        "[1/3] a-seed0: FAILED: no route after 4 s; about 8 s left",
        "[2/3] b-seed0: there already",
    ]


def test_the_table_shows_what_ended_what_goes_on_and_what_is_to_come(tmp_path: Path) -> None:
    found, clock = course("a", "b", "c", "d")
    make(found, clock, 10)
    cell = found.cells[1]
    found.begin(Path("none"))
    clock.now_s += 3
    found.end(Outcome(cell, None, "failed: [no] route"))
    log = tmp_path / "launch.log"
    log.write_text("links: made up\nround 3/5  accuracy 0.9\n\n")
    found.begin(log)
    clock.now_s += 2
    lines = [[c.strip() for c in re.split("[│┃]", line)[1:-1]] for line in text(found).splitlines()]
    assert [line for line in lines if line] == [
        ["run", "time", "state"],
        ["a-seed0", "10 s", "done, accuracy 0.500"],
        ["b-seed0", "3 s", "failed: [no] route"],
        ["c-seed0", "2 s", "round 3/5  accuracy 0.9"],
        ["d-seed0", "", "to come"],
    ]
    assert text(found).startswith("2 of 4 runs; about 11 s left")


def test_a_long_table_is_what_is_near_the_present_run() -> None:
    found, clock = course("a", seeds=300)
    for _ in range(150):
        make(found, clock, 1)
    shown = re.findall(r"a-seed(\d+)", text(found, rows=10))
    assert shown == [str(n) for n in range(145, 155)]
    for _ in range(150):
        make(found, clock, 1)
    assert re.findall(r"a-seed(\d+)", text(found, rows=10))[-1] == "299"


def test_the_live_table_is_drawn_without_a_thread() -> None:
    """Runs are forked while it is there."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=90, height=20)
    before = threads()
    found, clock = course("a", "b")
    with LiveTable(console) as live:
        found.begin(Path("none"))
        live.began(found)
        clock.now_s += 7
        live.ticked(found)
        assert not threads() - before
        found.end(Outcome(found.cells[0], summary([]), None))
        live.ended(found)
    assert "a-seed0" in screen.getvalue() and "7 s" in screen.getvalue()
    # And is gone afterwards, but for the cursor, which is back.
    assert screen.getvalue().endswith(("\x1b[?25h", "\x1b[2K"))


def test_the_last_line_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 10_000 + b"\nthe \xff end\n")
    assert last_line(log) == "the \ufffd end"
    assert last_line(tmp_path / "none") == ""
