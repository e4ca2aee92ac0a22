"""The runner of a bench: each run as `launch` or `exec` makes it, in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from experiments.plan import INTERRUPTED, Bench, Cell, Outcome
from experiments.progress import BenchProgress, Progress, last_line
from experiments.venue import Venue, anywhere
from testbed import files
from testbed.config_error import ConfigError, excerpt
from testbed.exec import config as configuration
from testbed.exec.config import Request
from testbed.processes import signals
from testbed.processes.child import Child
from testbed.processes.environment import original_environment
from testbed.record.run_summary import Summary
from testbed.report import summaries
from testbed.run import client_links
from testbed.run.config import write
from testbed.units import human_seconds

CLI = Path(__file__).parents[1] / "cli.py"
LEAVE_LIMIT_S = 30.0
"""How long a run gets to end itself where the bench is interrupted."""
POLL_S = 0.2
LOG = "launch.log"
"""In a cell's folder: what its last run said."""
SUMMARIES = "*/summary.json"
"""Likewise, those of its runs."""
TUNING = "tuning"
"""In a bench's folder, of the runs on the validation split."""
_CELLS = ("*", f"{TUNING}/*")
"""Cells' folders in a bench's."""
_BESIDE = ("title", "note", "baseline", "formula_mb", "claims")
"""What a bench or a row of it says to its runs' reader; they are the same without."""


@contextlib.contextmanager
def claimed(folder: Path, bench: Bench, read: dict[str, str]) -> Iterator[None]:
    """Have the bench's folder, new or as the same bench left it, for ourselves.

    ``read``: digests of the files that its runs read, which are a part of it.

    Raises:
        ConfigError: it cannot be written, belongs to another bench, or is in use.
    """
    told = msgspec.json.encode({**msgspec.to_builtins(anywhere(bench)), "files": read})
    # Of the kinds that are read back: a tuple is a list there.
    whole = msgspec.json.decode(told, type=dict[str, Any])
    text = msgspec.json.format(told, indent=2)
    path = folder / "bench.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {folder}: {error.strerror}; name a folder you can write"
        ) from error
    try:
        path.touch()
        file = files.updated(path)
    except OSError as error:
        raise ConfigError(
            f"--out {folder}: cannot write bench.json there: {error.strerror}; name another "
            "folder, or remove what is in its place"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--out {folder}: another bench is at work there") from None
        file.seek(0)
        before = files.contents(file, files.SUMMARY_BYTES).strip()
        if before and before != text:
            if others := _others(before, whole):
                raise ConfigError(
                    f"--out {folder}: holds {others}; name another folder, or remove it"
                )
            _reword(file, before, whole)
        if not before and any(next(folder.glob(f"{cells}/{SUMMARIES}"), None) for cells in _CELLS):
            raise ConfigError(
                f"--out {folder}: holds a bench's runs, and no bench.json that says of which; put "
                "that back, name another folder, or remove it"
            )
        if not before:
            file.write(text + b"\n")
            file.flush()
        try:
            yield
        except ConfigError:
            # Refused before its first run, it is nobody's.
            if not before:
                path.unlink()
            raise


def _reword(file: BinaryIO, before: bytes, whole: dict[str, Any]) -> None:
    """Have bench.json say what the bench now says to its runs' reader, which the page says too.

    In place, since it is held locked; of which files its runs read it goes on saying as before.
    """
    read = msgspec.json.decode(before, type=dict[str, Any]).get("files", {})
    text = msgspec.json.format(msgspec.json.encode({**whole, "files": read}), indent=2) + b"\n"
    if text.strip() == before:
        return
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    more = b" " * (len(text) - size)
    # Room first: where there is none, what is there stays whole.
    with contextlib.suppress(OSError):
        if os.pwrite(descriptor, more, size) == len(more):
            os.pwrite(descriptor, text, 0)
            os.truncate(descriptor, len(text))


def _others(before: bytes, whole: dict[str, Any]) -> str | None:
    """The other bench whose runs a folder holds; None where it is that of ``whole``.

    Of files that a bench had no digest of, as from an earlier version, nothing is known.
    """
    try:
        found = msgspec.json.decode(before, type=dict[str, Any])
        read = msgspec.convert(found.pop("files", {}), dict[str, str])
    except (ValueError, RecursionError) as error:
        return f"a bench.json that no bench has written ({excerpt(error)})"
    found = _of_runs(found)
    asked = _of_runs({name: value for name, value in whole.items() if name != "files"})
    if found != asked:
        return f"another bench's runs ({excerpt(_difference('', found, asked))})"
    now: dict[str, str] = whole["files"]
    wrong = client_links.differing({**now, **read}, now)
    return wrong and f"this bench's runs over other files ({wrong})"


def _of_runs(bench: dict[str, Any]) -> dict[str, Any]:
    """The bench, or a row, without what is no matter to its runs."""
    own = {name: value for name, value in bench.items() if name not in _BESIDE}
    if isinstance(rows := own.get("rows"), list):
        own["rows"] = [_of_runs(row) if isinstance(row, dict) else row for row in rows]
    return own


def _difference(place: str, before: Any, now: Any) -> str:
    """The first difference of two values, in words; ``place``: theirs, and a dot."""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(str(key), before.get(key), now.get(key)) for key in {**now, **before}]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(str(n), *pair) for n, pair in enumerate(zip(before, now, strict=True))]
    else:
        return f"{place.removesuffix('.')} = {before!r}, now {now!r}"
    told = (_difference(f"{place}{name}.", *each) for name, *each in pairs if each[0] != each[1])
    return next(told, f"{place.removesuffix('.')} says less or more")


def conduct(
    cells: list[Cell],
    folder: Path,
    progress: Progress,
    budget_s: float | None = None,
    settle: Callable[[Cell, Sequence[Outcome]], Cell | str] = lambda cell, outcomes: cell,
    venue: Venue | None = None,
) -> Iterator[Outcome]:
    """Each cell's outcome as it is there; those that earlier benches finished come at once.

    No run is begun after ``budget_s``. Ends early, without an error, where a signal asks for it:
    what is left has that as its reason. ``settle``: the cell as it is to be run, by the outcomes
    before it, or why it cannot be. ``venue``: where runs are carried out, if not here alone.

    Raises:
        ConfigError: before the first run: it cannot be there.
    """
    venue = Venue() if venue is None else venue
    course, asked = BenchProgress(list(cells), budget_s), signals.Interruption()
    with asked.heard():
        there = {cell.id: finished(folder / cell.id) for cell in cells}
        for id_, summary in there.items():
            if summary is not None:
                course.took_s[id_] = summary.seconds.total
        for number, planned in enumerate(cells):
            cell = settle(planned, course.outcomes)
            unsettled = cell if isinstance(cell, str) else None
            if isinstance(cell, str):
                cell = planned
            course.cells[number] = cell
            place = folder / cell.id
            earlier = there[cell.id] if cell.id in there else finished(place)
            budget_left_s = course.budget_left_s
            if earlier is not None:
                outcome = Outcome(cell, earlier, None, earlier=True)
            elif asked.times:
                outcome = Outcome(cell, None, INTERRUPTED, stopped=True)
            elif budget_s is not None and budget_left_s is not None and budget_left_s < 0:
                outcome = Outcome(cell, None, f"the budget of {human_seconds(budget_s)} was spent")
            elif unsettled is not None:
                outcome = Outcome(cell, None, unsettled)
            else:
                outcome = _made(cell, place, course, progress, venue, asked)
            course.end(outcome)
            progress.ended(course)
            yield outcome


def _made(
    cell: Cell,
    place: Path,
    course: BenchProgress,
    progress: Progress,
    venue: Venue,
    asked: signals.Interruption,
) -> Outcome:
    """The outcome of a cell's run, which is made now."""
    before: set[Path] = set()
    stopped = False
    try:
        with asked.raised():
            venue.open()
        course.begin(place / LOG)
        progress.began(course)
        before = set(place.glob(SUMMARIES))
        reason = _run(cell, place, lambda: progress.ticked(course), venue, asked)
    except signals.Interrupted:
        stopped, reason = True, INTERRUPTED
    summary = finished(place)
    outcome = Outcome(cell, summary, None if summary else reason, stopped=stopped)
    if cell.row.programs and summary is None and not stopped:
        outcome = _failed(outcome, set(place.glob(SUMMARIES)) - before)
    return outcome


def finished(place: Path) -> Summary | None:
    """The summary of the cell's last run that ended well."""
    for path in sorted(place.glob(SUMMARIES), reverse=True):
        with contextlib.suppress(ConfigError):
            summary = summaries.load(path)
            if summary.status == "ok":
                return summary
    return None


def _failed(outcome: Outcome, paths: Collection[Path]) -> Outcome:
    """The outcome of programs of which one failed, with what they did until then.

    A run that has lost a host is none of those that it would be compared with.
    """
    for path in paths:
        with contextlib.suppress(ConfigError):
            summary = summaries.load(path)
            whole = all(row.gone is None for row in summary.hosts)
            if whole and any(row.code is not None for row in summary.programs):
                return outcome._replace(summary=summary, reason=summary.reason or outcome.reason)
    return outcome


def _run(
    cell: Cell,
    place: Path,
    tick: Callable[[], None],
    venue: Venue,
    asked: signals.Interruption,
) -> str:
    """Make one run; returns why it has no result, for where it has none.

    ``tick`` is called while it goes on.
    """
    place.mkdir(parents=True, exist_ok=True)
    config, log = place / "config.toml", place / LOG
    # Its last words are shown elsewhere, and programs are to find their user's environment.
    told, more = venue.take(cell.config)
    environment = {**os.environ, "NO_COLOR": "1", **more}
    words = ["launch", f"--config={config}"]
    if cell.row.programs is None:
        write(told, config)
    else:
        configuration.write(Request(told, cell.row.programs), config)
        words = ["exec", f"--file={config}", "--plain"]
        environment = {**original_environment(), **more}
    command = [sys.executable, str(CLI), *words, f"--out={place}"]

    def launch() -> None:
        output = files.created(log)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        # Of a terminal's signals the bench tells by this one, which a child has ignored.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.execve(command[0], command, environment)

    # Which the run's own program does not have: its end tells that it is that.
    is_begun, begins = os.pipe()
    child = Child("launch", launch)
    os.close(begins)
    try:
        with asked.raised():
            while child.poll():
                tick()
                time.sleep(POLL_S)
    except signals.Interrupted:
        # Before, it ignores what it is told.
        select.select([is_begun], [], [], LEAVE_LIMIT_S)
        if child.poll():
            os.kill(child.pid, signal.SIGTERM)
        child.wait(LEAVE_LIMIT_S)
        raise
    finally:
        child.kill()
        os.close(is_begun)
    return last_line(log) or "it said nothing"
