"""A bench's progress on the terminal: a table, or a line a begin and an end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from experiments.plan import Cell, Outcome
from testbed.metrics import metric as told
from testbed.metrics import words
from testbed.report import curves
from testbed.report.terminal import styled
from testbed.units import human_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


OTHER_LINES = 6
"""Of a terminal, beside the table's rows."""
TAIL_BYTES = 500
ASKING_S = 5.0
"""Between lines on how far it has got with asking hosts."""


class BenchProgress:
    """How far a bench is, and how long the rest will take."""

    def __init__(
        self,
        cells: list[Cell],
        budget_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cells = cells
        self.outcomes: list[Outcome] = []
        """Of the first cells, in their order."""
        self.took_s: dict[str, float] = {}
        """By cell, of the runs that ended, in this bench or before it."""
        self.log: Path | None = None
        """What the present run says."""
        self._clock = clock
        self._began_s = clock()
        self._run_began_s = self._began_s
        self._budget_s = budget_s

    def begin(self, log: Path) -> None:
        """The next cell's run begins."""
        self.log, self._run_began_s = log, self._clock()

    def end(self, outcome: Outcome) -> None:
        """The next cell has its outcome."""
        if self.log is not None:
            self.took_s[outcome.cell.id] = self.elapsed_s
        self.outcomes.append(outcome)
        self.log = None

    @property
    def elapsed_s(self) -> float:
        """Time of the present run."""
        return self._clock() - self._run_began_s

    @property
    def budget_left_s(self) -> float | None:
        """None: there is no budget."""
        if self._budget_s is None:
            return None
        return self._budget_s - (self._clock() - self._began_s)

    def left_s(self) -> float | None:
        """Time left, by the mean of runs of the same row, or else of all; None before any ended."""
        if not self.took_s:
            return None
        rows: dict[str, list[float]] = {}
        for cell in self.cells:
            if cell.id in self.took_s:
                rows.setdefault(cell.row.name, []).append(self.took_s[cell.id])
        means = {name: sum(took) / len(took) for name, took in rows.items()}
        mean = sum(self.took_s.values()) / len(self.took_s)
        left = [
            means.get(cell.row.name, mean)
            for cell in self.cells[len(self.outcomes) :]
            if cell.id not in self.took_s
        ]
        if left and self.log is not None:
            left[0] = max(0.0, left[0] - self.elapsed_s)
        return sum(left)

    def time_left(self) -> str:
        """ "about 5 min left, 12 min of the budget", or nothing where nothing is known."""
        left_s, budget_s = self.left_s(), self.budget_left_s
        parts = [] if left_s is None else [f"about {human_seconds(left_s)} left"]
        if budget_s is not None:
            parts.append(f"{human_seconds(max(0.0, budget_s))} of the budget")
        return ", ".join(parts)


class Asking:
    """Hosts that are asked about a bench's settings: a line before, and one now and then."""

    def __init__(
        self,
        count: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count, self._say, self._clock = count, say, clock
        self._began_s = self._said_s = clock()
        self._asked = 0
        settings = "the setting" if count == 1 else f"each of {count} settings"
        say(f"asking the hosts whether they can have {settings}, before the first run")

    def asked(self) -> None:
        """They have said so of one more."""
        self._asked += 1
        now_s = self._clock()
        if self._asked < self._count and now_s - self._said_s >= ASKING_S:
            self._said_s = now_s
            left_s = (now_s - self._began_s) / self._asked * (self._count - self._asked)
            self._say(f"[{self._asked}/{self._count}] asked; about {human_seconds(left_s)} left")


class Progress(Protocol):
    """Shows a bench as it goes."""

    def began(self, course: BenchProgress) -> None:
        """The next cell's run has begun."""

    def ticked(self, course: BenchProgress) -> None:
        """It goes on."""

    def ended(self, course: BenchProgress) -> None:
        """The last outcome is there."""


class Lines:
    """A line as a run begins, and one as it ends."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def began(self, course: BenchProgress) -> None:
        place = len(course.outcomes)
        self._say(f"[{place + 1}/{len(course.cells)}] {course.cells[place].id}")

    def ticked(self, course: BenchProgress) -> None:
        return

    def ended(self, course: BenchProgress) -> None:
        place, outcome = len(course.outcomes), course.outcomes[-1]
        took_s = course.took_s.get(outcome.cell.id)
        head = f"[{place}/{len(course.cells)}] {outcome.cell.id}"
        if outcome.earlier:
            self._say(f"{head}: there already")
        elif took_s is not None:
            result = f"FAILED: {outcome.reason}" if outcome.reason else "done"
            left = course.time_left() if place < len(course.cells) and not outcome.stopped else ""
            more = f"; {left}" if left else ""
            self._say(f"{head}: {result} after {human_seconds(took_s)}{more}")


class LiveTable:
    """A table of runs that is drawn again and again, for a terminal; a context manager.

    It starts no thread, since runs are forked while it is there.
    """

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def began(self, course: BenchProgress) -> None:
        self.ticked(course)

    def ticked(self, course: BenchProgress) -> None:
        rows = max(3, self._console.size.height - OTHER_LINES)
        self._live.update(table(course, rows), refresh=True)

    def ended(self, course: BenchProgress) -> None:
        self.ticked(course)


def table(course: BenchProgress, rows: int) -> Table:
    """A table of at most ``rows`` runs: those that ended last, the present one, those to come."""
    from rich.table import Table

    ended = len(course.outcomes)
    first = max(0, min(ended - rows // 2, len(course.cells) - rows))
    head = f"{ended} of {len(course.cells)} runs"
    left = course.time_left() if ended < len(course.cells) else ""
    shown = Table(title=f"{head}; {left}" if left else head, title_justify="left")
    shown.add_column("run", overflow="ellipsis", no_wrap=True)
    shown.add_column("time", justify="right", no_wrap=True)
    shown.add_column("state", overflow="ellipsis", no_wrap=True)
    for place in range(first, min(first + rows, len(course.cells))):
        cell = course.cells[place]
        took_s = course.took_s.get(cell.id)
        time_ = "" if took_s is None else human_seconds(took_s)
        if place < ended:
            state = _ended(course.outcomes[place])
        elif place == ended and course.log is not None:
            time_, state = human_seconds(round(course.elapsed_s)), styled(last_line(course.log), "")
        else:
            state = styled("to come", "dim")
        shown.add_row(cell.id, time_, state)
    return shown


def _ended(outcome: Outcome) -> Text:
    if outcome.summary is None or outcome.reason:
        return styled(outcome.reason or "no result", "red")
    metric = curves.metric(outcome.summary)
    best = curves.best(curves.points(outcome.summary, metric), metric)
    text = "there already" if outcome.earlier else "done"
    return styled(text + ("" if best is None else f", {words(metric)} {told(best)}"), "green")


def last_line(log: Path) -> str:
    """The last line that a run said, or nothing yet."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            said = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(said) if line.strip()), "")
