"""Carries out the runs of a bench, each as `launch` makes it, in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import msgspec

from nodes.bench.plan import Bench, Cell
from testbed.child import Child
from testbed.config import write
from testbed.config_error import ConfigError
from testbed.units import human_seconds

CLI = Path(__file__).parents[2] / "cli.py"
LEAVE_LIMIT_S = 30.0
"""How long a run gets to end itself where the bench is interrupted."""
POLL_S = 0.2


class Outcome(NamedTuple):
    """What became of a cell."""

    cell: Cell
    summary: dict[str, Any] | None
    """None: it did not run, or left nothing to read."""
    reason: str | None
    """Why there are no figures of it; None where there are."""


class Interrupted(Exception):
    """A signal asked the bench to end."""


@contextlib.contextmanager
def claimed(folder: Path, bench: Bench) -> Iterator[None]:
    """Have the bench's folder, new or as the same bench left it, for ourselves.

    Raises:
        ConfigError: it cannot be written, belongs to another bench, or is in use.
    """
    text = msgspec.json.format(msgspec.json.encode(bench), indent=2)
    path = folder / "bench.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise ConfigError(
            f"--out {folder}: {error.strerror}; name a folder you can write"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--out {folder}: another bench is at work there") from None
        file.seek(0)
        before = file.read().strip()
        if before and before != text:
            raise ConfigError(
                f"--out {folder}: holds another bench's runs; name another folder, or remove it"
            )
        if not before:
            file.write(text + b"\n")
            file.flush()
        yield


def conduct(
    cells: list[Cell],
    folder: Path,
    say: Callable[[str], None],
    budget_s: float | None = None,
) -> Iterator[Outcome]:
    """Each cell's outcome as it is there; those that earlier benches finished come at once.

    No run is begun after ``budget_s``. Ends early, without an error, where a signal asks for it:
    what is left has that as its reason.
    """
    began, taken, stopped = time.monotonic(), [], False
    for number, cell in enumerate(cells, start=1):
        place = folder / cell.id
        summary = finished(place)
        head = f"[{number}/{len(cells)}] {cell.id}"
        if summary is not None:
            say(f"{head}: there already")
            yield Outcome(cell, summary, None)
            continue
        if stopped:
            yield Outcome(cell, None, "the bench was interrupted")
            continue
        if budget_s is not None and time.monotonic() - began > budget_s:
            yield Outcome(cell, None, f"the budget of {human_seconds(budget_s)} was spent")
            continue
        say(head)
        at = time.monotonic()
        try:
            reason = _run(cell, place)
        except Interrupted:
            stopped, reason = True, "the bench was interrupted"
        taken.append(time.monotonic() - at)
        summary = finished(place)
        left_s = (len(cells) - number) * sum(taken) / len(taken)
        result = "done" if summary else f"FAILED: {reason}"
        more = (
            f"; about {human_seconds(left_s)} left" if number < len(cells) and not stopped else ""
        )
        say(f"{head}: {result} after {human_seconds(taken[-1])}{more}")
        yield Outcome(cell, summary, None if summary else reason)


def finished(place: Path) -> dict[str, Any] | None:
    """The summary of the cell's last run that ended well."""
    for path in sorted(place.glob("*/summary.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            summary = json.loads(path.read_text())
            if isinstance(summary, dict) and summary.get("status") == "ok":
                return summary
    return None


def _run(cell: Cell, place: Path) -> str:
    """Make one run; returns why it has no result, for where it has none."""
    place.mkdir(parents=True, exist_ok=True)
    config, log = place / "config.toml", place / "launch.log"
    write(cell.config, config)
    command = [sys.executable, str(CLI), "launch", f"--config={config}", f"--out={place}"]

    def launch() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execv(command[0], command)

    with _signals_raised():
        child = Child("launch", launch)
        try:
            while child.poll():
                time.sleep(POLL_S)
        except Interrupted:
            if child.poll():
                os.kill(child.pid, signal.SIGTERM)
            child.wait(LEAVE_LIMIT_S)
            raise
        finally:
            child.kill()
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Within, SIGINT, SIGTERM and SIGHUP raise Interrupted."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
