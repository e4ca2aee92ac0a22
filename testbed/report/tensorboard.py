"""A run's rounds as TensorBoard's event files, with the package `tensorboard` where it is there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from testbed import extras, files
from testbed.report import tables
from testbed.report.read import Story

FOLDER = "tensorboard"
_FILES = "events.out.tfevents.*"
_STAMP = "%Y%m%d-%H%M%S"


def check() -> None:
    """Raises ConfigError where the package, or torch, which writes for it, is missing."""
    extras.require("--tensorboard", "tensorboard")


def write(story: Story, folder: Path) -> Path:
    """Write what ``tables.scalars`` gives into ``folder``/tensorboard, in place of what is there.

    A step is a round, and relative time is that of rounds alone, as a report's minutes are; of
    programs' rates it is a step of time.

    Raises:
        ConfigError: the package is missing.
        OSError: nothing can be written there.
    """
    check()
    from torch.utils.tensorboard import SummaryWriter

    place = files.folder(folder / FOLDER)
    for old in place.glob(_FILES):
        old.unlink()
    began_s = _began_s(story.summary.run_id)
    writer: Any = SummaryWriter(str(place))
    try:
        writer.add_text("config", f"```\n{json.dumps(story.config, indent=2)}\n```", 0, began_s)
        for tag, value, number, seconds in tables.scalars(story.summary, story.readings):
            writer.add_scalar(tag, value, number, began_s + seconds)
    finally:
        writer.close()
    return place


def _began_s(run_id: str | None) -> float:
    """When the run began, as its folder's name has it; 0 where that says nothing."""
    try:
        return time.mktime(time.strptime("-".join(str(run_id).split("-")[:2]), _STAMP))
    except (ValueError, OverflowError):
        return 0.0
