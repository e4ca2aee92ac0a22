"""`cli.py export`: a run's figures for other programs, from its events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from testbed.config_error import ConfigError, Unwritten
from testbed.record.reading import EVENTS
from testbed.report import tables, tensorboard
from testbed.report.read import Story, read, refusing


def export(run: Path, forms: Sequence[str], out: Path | None = None) -> list[Path]:
    """Write the run in each of ``forms``, "csv" and "tensorboard", into ``out`` or its own folder.

    Returns what was written.

    Raises:
        ConfigError: no form, no run, or a package that is missing.
        Unwritten: it cannot be written there.
    """
    if not forms:
        raise ConfigError("export needs --csv or --tensorboard, or both")
    if "tensorboard" in forms:
        tensorboard.check()
    story, folder = read(run), out or run
    try:
        with refusing(f"RUN {run}: {EVENTS}"):
            return _write(story, forms, folder)
    except OSError as error:
        where = f"--out {out}" if out else f"RUN {run}"
        raise Unwritten(
            f"{where}: cannot write there ({error.strerror}); name a folder that you can write"
        ) from error


def _write(story: Story, forms: Sequence[str], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    found = tables.write(story.summary, folder, story.readings) if "csv" in forms else []
    if "tensorboard" in forms:
        found.append(tensorboard.write(story, folder))
    return found
